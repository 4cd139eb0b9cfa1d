// Which face a node takes: what its `face` input says, in words, and where that can be changed.
import { inputLink, originOf } from "./nodes.js";
import { say } from "./words.js";

const PRIMITIVE = /primitive/i; // ComfyUI's own nodes that hold one value, in their first widget

export function faceWidget(node) {
  return widgetOf(node, "face");
}

function widgetOf(node, name) {
  return node.widgets?.find((widget) => widget.name === name);
}

/**
 * {text, node, widget}: the choice and the widget that holds it, on the node or on a subgraph around it. Where a wire
 * brings the choice instead, {text, wired: title of the node that it comes from}, text only if that node shows it.
 */
export function choiceOf(node, slot = slotOf(node, "face"), widget = faceWidget(node)) {
  const link = inputLink(node, slot);
  if (!link) return { text: String(widget?.value ?? ""), node, widget };
  const origin = originOf(node.graph, link);
  if (origin.outside) return choiceOutside(origin.outside, origin.slot);
  const told = PRIMITIVE.test(origin.node?.type ?? "") ? origin.node.widgets?.[0]?.value : null;
  return { text: typeof told === "string" ? told : null, wired: origin.node?.title ?? node.graph.name ?? "" };
}

/** For an input of a subgraph's node, whose widget stands for the one inside. */
function choiceOutside(node, slot) {
  const input = node.inputs[slot];
  const widget = node.widgets?.find(({ name }) => name === (input.widget?.name ?? input.name));
  return widget || inputLink(node, slot) ? choiceOf(node, slot, widget) : { text: null, wired: node.title };
}

function slotOf(node, name) {
  return node.inputs?.findIndex((input) => (input.widget?.name ?? input.name) === name) ?? -1;
}

/** The same for a face that is pointed out by three points; null for a node that has no such input. */
export function pointsOf(node) {
  const widget = widgetOf(node, "points");
  return widget ? choiceOf(node, slotOf(node, "points"), widget) : null;
}

export function setFace(inner, text) {
  return write(choiceOf(inner), text);
}

/** Write a choice, as one step that can be undone. False where a wire brings it: a widget would not be heard. */
export function write({ node, widget }, text) {
  if (!widget) return false;
  node.graph?.beforeChange?.();
  widget.value = text;
  widget.callback?.(text);
  node.graph?.afterChange?.();
  node.graph?.setDirtyCanvas(true, true);
  return true;
}

export function rules() {
  return {
    largest: say("largest", "Largest face"),
    left: say("left", "Leftmost face"),
    right: say("right", "Rightmost face"),
  };
}

export function pointText(x, y, frame) {
  return `${Math.round(x)},${Math.round(y)},${frame}`;
}

/** {x, y, frame}, {number}, {rule} or {}. */
export function read(text) {
  if (text in rules()) return { rule: text };
  const parts = text.split(",").map((part) => (part.trim() ? Number(part) : NaN));
  if (!parts.every(Number.isFinite)) return {};
  if (parts.length === 1) return { number: parts[0] };
  return parts.length === 3 ? { x: parts[0], y: parts[1], frame: parts[2] } : {};
}

export function inWords(text) {
  const { rule, number, x, y, frame } = read(text);
  if (rule) return rules()[rule];
  if (number != null) return say("by_number", "face {n} (numbers as in Find Faces)", { n: number });
  if (x != null) return say("by_point", "the face at {x}, {y} in frame {frame}", { x, y, frame });
  return say("by_nothing", "“{text}”, which is not a face", { text });
}
