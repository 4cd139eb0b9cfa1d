// Our nodes, wherever they are in the graph, and the wires into them.
import { app } from "../../../scripts/app.js";

const OURS = /^LatentSync[A-Z]/;
const SUBGRAPH_INPUT = -10; // stands for the subgraph's own inputs in a wire's origin_id, which may be a string

export function isOurs(node) {
  return OURS.test(node?.comfyClass ?? "");
}

export function rootGraph() {
  return app.rootGraph ?? app.graph;
}

/**
 * The nodes that an id of the server or of the front end leads to, outermost first; the last one is meant, the others
 * are the subgraphs around it. "3"; "16:5", node 5 in subgraph node 16; "<a subgraph's uuid>:5"; and "3.0.0.2", a node
 * that node 3 stands for, is shown on node 3. [] where there is no such node.
 */
export function nodesOf(id) {
  let graph = rootGraph();
  const found = [];
  for (const part of String(id ?? "").split(":")) {
    const known = graph?.subgraphs?.get?.(part);
    const node = known ? null : graph?.getNodeById?.(part.split(".")[0]);
    if (!known && !node) return [];
    if (node) found.push(node);
    graph = known ?? node.subgraph;
  }
  return found;
}

export function nodeOf(id) {
  return nodesOf(id).at(-1) ?? null;
}

/** The wire into an input, or null. */
export function inputLink(node, slot) {
  if (!node.graph || !node.inputs?.[slot]) return null;
  const { getInputLink } = LiteGraph.LGraphNode.prototype; // a subgraph's node has its own, about the wires inside
  if (getInputLink) return getInputLink.call(node, slot) ?? null;
  const id = node.inputs[slot].link; // deprecated since front end 1.58
  return id == null ? null : linkOf(node.graph, id);
}

export function linkOf(graph, id) {
  return graph.getLink?.(id) ?? graph.links?.get?.(id) ?? graph.links?.[id];
}

/** {node, slot} that a wire starts from; {outside: the node of the subgraph, slot} where that is an input of it. */
export function originOf(graph, link) {
  const slot = link.origin_slot;
  if (Number(link.origin_id) === SUBGRAPH_INPUT) return { outside: ownerOf(graph), slot };
  return { node: graph.getNodeById(link.origin_id), slot };
}

/** The node that stands for a subgraph; null where there is none, or several. */
function ownerOf(graph) {
  const root = graph.rootGraph ?? graph;
  const graphs = [root, ...(root.subgraphs?.values?.() ?? [])];
  const owners = graphs.flatMap((one) => one.nodes ?? []).filter((one) => one.subgraph === graph);
  return owners.length === 1 ? owners[0] : null;
}
