// Advanced inputs in the classic canvas: it can fold them away as Nodes 2.0 does, but is not told which they are.
import { app } from "../../../scripts/app.js";
import { say } from "./words.js";

const ALWAYS = "Comfy.Node.AlwaysShowAdvancedWidgets";

/** Fold the advanced inputs of a node away, below them a button that shows them. An older canvas shows them all. */
export function foldAdvanced(node) {
  const advanced = node.widgets?.filter((widget) => widget.options?.advanced) ?? [];
  const canFold = node.toggleAdvanced && node.getLayoutWidgets;
  if (!advanced.length || !canFold || app.extensionManager.setting.get(ALWAYS)) return;
  for (const widget of advanced) widget.advanced = true;
  const inherited = node.getLayoutWidgets; // leaves room for what is folded away
  node.getLayoutWidgets = function () {
    return inherited.call(this).filter((widget) => !widget.advanced || this.showAdvanced);
  };
  const button = node.addWidget("button", "advanced", "", () => toggle(node), { serialize: false, canvasOnly: true });
  button.serialize = false;
  const words = () => (node.showAdvanced ? say("hide_advanced", "Hide advanced inputs") : say("show_advanced", "Show advanced inputs"));
  Object.defineProperty(button, "label", { get: words, set: () => {}, enumerable: true, configurable: true });
  node.setSize([node.size[0], node.computeSize()[1]]);
}

/** Show the advanced inputs of a workflow in which one of them is connected: its wire would end nowhere. */
export function showConnected(node) {
  const isFolded = (slot) => node.widgets?.find((widget) => widget.name === slot.widget?.name)?.advanced;
  if (node.inputs?.some((slot) => slot.link != null && isFolded(slot))) node.showAdvanced = true;
}

/** What is below the inputs keeps its height. */
function toggle(node) {
  const [width, height] = node.size;
  const before = node.computeSize()[1];
  node.toggleAdvanced();
  const after = node.computeSize()[1];
  node.setSize([width, Math.max(after, height + after - before)]);
}
