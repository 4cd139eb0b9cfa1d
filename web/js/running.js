// While a node runs, the front end adds a line of text and a preview to it, and leaves them there. Here the preview
// takes the place of the node's panels, and both go when the node has finished.
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { hidePanels } from "./dom.js";
import { isOurs, nodesOf } from "./nodes.js";

const TEXT = "$$node-text-preview";
const PICTURES = ["$$canvas-image-preview", "$$comfy_animation_preview"];
const ENDS = ["execution_success", "execution_error", "execution_interrupted"];

const running = new Map(); // id: {sizes: its nodes' sizes before they ran, changed: whether anything was added}

export function watchRuns() {
  api.addEventListener("executing", ({ detail }) => {
    for (const id of [...running.keys()]) if (id !== String(detail)) finish(id);
    if (detail != null) start(String(detail));
  });
  api.addEventListener("progress_text", ({ detail }) => change(String(detail.nodeId)));
  api.addEventListener("b_preview_with_metadata", ({ detail }) => {
    const id = String(detail.displayNodeId);
    if (change(id)) hidePanels(nodesOf(id).at(-1), true);
  });
  for (const end of ENDS) api.addEventListener(end, () => [...running.keys()].forEach(finish));
}

/** A preview whose picture was still being loaded when the node had finished. */
export function dropLatePreview(node) {
  if (node.imgs?.length && ![...running.values()].some(({ sizes }) => sizes.has(node))) clear(node);
}

function start(id) {
  const nodes = nodesOf(id);
  if (running.has(id) || !isOurs(nodes.at(-1))) return;
  running.set(id, { sizes: new Map(nodes.map((node) => [node, [...node.size]])), changed: false });
}

/** False for a node that is not ours. */
function change(id) {
  start(id); // unless the page was loaded in the middle of a run, it is known already
  const run = running.get(id);
  if (run) run.changed = true;
  return run != null;
}

function finish(id) {
  const { sizes, changed } = running.get(id);
  running.delete(id);
  if (!changed) return;
  const outputs = app.extensionManager?._p?._s?.get("nodeOutput"); // the front end gives no other way to its previews
  const parts = id.split(":");
  parts.forEach((_, i) => outputs?.revokePreviewsByExecutionId?.(parts.slice(0, i + 1).join(":")));
  for (const [node, [, height]] of sizes) {
    clear(node);
    if (isOurs(node)) hidePanels(node, false);
    const least = Math.max(height, node.computeSize()[1]);
    if (node.size[1] > least) node.setSize([node.size[0], least]);
  }
}

function clear(node) {
  const added = (node.widgets ?? []).filter(({ name }) => PICTURES.includes(name) || (name === TEXT && isOurs(node)));
  added.forEach((widget) => node.removeWidget(widget));
  node.imgs = undefined;
  node.graph?.setDirtyCanvas(true, true);
}
