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

/** A DOM widget that is neither saved with the workflow nor sent with the prompt. */
export function addWidget(node, name, element, height, most) {
  const widget = node.addDOMWidget(name, "latentsync", element, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => height,
    getMaxHeight: most ? () => most : undefined,
    getValue: () => "",
    setValue: () => {},
  });
  widget.serialize = false;
  return widget;
}

/** The node's panel of this name, below its widgets; made, and room for it, when it is first asked for. */
export function panel(node, name, height, width) {
  node.latentsyncPanels ??= {};
  if (!node.latentsyncPanels[name]) {
    const element = make("section", { class: "latentsync-panel" });
    addWidget(node, name, element, height);
    node.latentsyncPanels[name] = element;
    const needed = node.computeSize();
    node.setSize([Math.max(node.size[0], needed[0], width), Math.max(node.size[1], needed[1])]);
    node.graph?.setDirtyCanvas(true, true);
  }
  return node.latentsyncPanels[name];
}

/** Leave the canvas' shortcuts alone while a key is meant for one of our controls. */
export function keepKeys(element) {
  element.addEventListener("keydown", (event) => event.stopPropagation());
}

/** Tab goes round within an element instead of leaving it. */
export function keepFocus(element) {
  element.addEventListener("keydown", (event) => {
    if (event.key !== "Tab") return;
    const stops = [...element.querySelectorAll("button, input")].filter((stop) => stop.checkVisibility());
    const [first, last] = [stops[0], stops[stops.length - 1]];
    const [edge, goal] = event.shiftKey ? [first, last] : [last, first];
    if (document.activeElement !== edge) return;
    goal.focus();
    event.preventDefault();
  });
}
