// Small helpers for elements, and for what our nodes show below their widgets.

/** make("button", { class: "x", onclick: f }, "text", child, …) */
export function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function draw(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** Our style sheet, once for the page. */
export function loadStyle() {
  const href = new URL("../latentsync.css", import.meta.url).href;
  if (!document.querySelector(`link[href="${href}"]`)) {
    document.head.append(make("link", { rel: "stylesheet", href }));
  }
}

const MARGIN = 10; // px that the classic canvas leaves around a DOM widget …
const SPACING = 4; // … and adds to the height of one with a fixed size
const NO_ROOM = { minHeight: 0, maxHeight: 0, minWidth: 0 };

/**
 * A DOM widget that is neither saved with the workflow nor sent with the prompt, in px as the classic canvas counts
 * them. Nodes 2.0 goes by the element's own height; fixed: the widget does not grow with its node.
 */
export function addWidget(node, name, element, height, fixed = false) {
  element.style.minHeight = `${height + (fixed ? SPACING : 0) - 2 * MARGIN}px`;
  const widget = node.addDOMWidget(name, "latentsync", element, {
    serialize: false,
    hideOnZoom: false,
    hideInPanel: true, // the side bar would take the element away from the node
    margin: MARGIN,
    getMinHeight: () => height,
    getMaxHeight: fixed ? () => height : undefined,
    getValue: () => "",
    setValue: () => {},
  });
  widget.serialize = false;
  if (fixed) {
    widget.computeLayoutSize = undefined; // what has one shares the free room of a node
    widget.computeSize = (width) => [width ?? 0, height];
  }
  return widget;
}

/**
 * Room for a panel below the node's widgets, from the start: a node that grows when it has run would cover others.
 * later: what stands there until then.
 */
export function addPanel(node, name, height, width, later) {
  const waiting = make("p", { class: "latentsync-later" }, later);
  const element = make("section", { class: "latentsync-panel" }, waiting);
  const widget = addWidget(node, name, element, height);
  node.latentsyncPanels = { ...node.latentsyncPanels, [name]: widget };
  const needed = node.computeSize();
  node.setSize([Math.max(node.size[0], needed[0], width), Math.max(node.size[1], needed[1])]);
}

/** The element of a panel, to be filled; null on a node without it. */
export function panel(node, name) {
  return node.latentsyncPanels?.[name]?.element ?? null;
}

/** Take a node's panels away for a while; their room stays with the node. */
export function hidePanels(node, hidden) {
  for (const widget of Object.values(node.latentsyncPanels ?? {})) {
    widget.hidden = hidden;
    if (hidden) widget.computeLayoutSize = () => NO_ROOM; // the canvas of old front ends gives room to hidden widgets
    else delete widget.computeLayoutSize;
    widget.element.classList.toggle("latentsync-hidden", hidden); // Nodes 2.0 before front end 1.58 looks at this only
  }
  node.graph?.setDirtyCanvas(true, true);
}

/** Leave the canvas' shortcuts alone while a key is meant for one of our controls. */
export function keepKeys(element) {
  element.addEventListener("keydown", (event) => event.stopPropagation());
}

/** Tab goes round within an element instead of leaving it. */
export function keepFocus(element) {
  element.addEventListener("keydown", (event) => {
    if (event.key !== "Tab") return;
    const stops = [...element.querySelectorAll("button:enabled, input:enabled")].filter((stop) => stop.checkVisibility());
    const [first, last] = [stops[0], stops[stops.length - 1]];
    const [edge, goal] = event.shiftKey ? [first, last] : [last, first];
    if (document.activeElement !== edge) return;
    goal.focus();
    event.preventDefault();
  });
}
