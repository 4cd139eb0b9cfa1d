// A node whose result is cached does not run, and older servers then say nothing of what it showed. It is looked up
// among the server's earlier runs: one in which this node and all before it had the same inputs.
import { api } from "../../../scripts/api.js";
import { isOurs, nodeOf } from "./nodes.js";

const RUNS = 32; // that are looked through

/** show(node, output): called for each of our nodes that is cached and shows nothing yet. */
export function watchCached(show) {
  let cached = [];
  api.addEventListener("execution_cached", ({ detail }) => {
    cached = detail.nodes.map(String);
  });
  api.addEventListener("execution_success", ({ detail }) => {
    const bare = cached.filter((id) => isOurs(nodeOf(id)) && Object.keys(nodeOf(id).latentsyncPanels ?? {}).length);
    const waiting = bare.filter((id) => !nodeOf(id).latentsyncShown);
    cached = [];
    if (waiting.length) lookUp(detail.prompt_id, waiting, show).catch(() => {}); // then the panel stays as it is
  });
}

async function lookUp(promptId, ids, show) {
  const response = await api.fetchApi(`/history?max_items=${RUNS}`);
  const runs = await response.json();
  const now = runs[promptId]?.prompt?.[2];
  const others = Object.values(runs).sort((a, b) => b.prompt[0] - a.prompt[0]);
  for (const id of now ? ids : []) {
    const output = others.filter((run) => same(id, now, run.prompt[2])).map((run) => outputOf(id, run)).find(Boolean);
    const node = nodeOf(id);
    if (output && node && !node.latentsyncShown) show(node, output);
  }
}

/** What a run showed on a node, or on one that it stands for. */
function outputOf(id, { outputs }) {
  const keys = Object.keys(outputs ?? {}).filter((key) => key === id || key.startsWith(`${id}.`));
  return keys.length ? Object.assign({}, ...keys.map((key) => outputs[key])) : null;
}

/** Whether a node of two prompts is fed the same, up to the loaders. */
function same(id, one, other) {
  const [a, b] = [one[id], other[id]];
  if (!a || a.class_type !== b?.class_type) return false;
  const names = Object.keys(a.inputs);
  if (names.length !== Object.keys(b.inputs).length) return false;
  return names.every((name) => {
    const [left, right] = [a.inputs[name], b.inputs[name]];
    if (JSON.stringify(left) !== JSON.stringify(right)) return false;
    return !isWire(left, one) || same(left[0], one, other);
  });
}

function isWire(value, prompt) {
  return Array.isArray(value) && value.length === 2 && value[0] in prompt && Number.isInteger(value[1]);
}
