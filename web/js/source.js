// Which file a node's pictures come from, found by following its wires upstream.
import { inputLink, linkOf, originOf } from "./nodes.js";

const LOADERS = [
  { type: /^LoadVideo$/, widget: "file" },
  { type: /^LoadImage(Output)?$/, widget: "image" },
  { type: /^VHS_LoadVideo$/, widget: "video", reads: everyNth },
];

/** Nodes that hand the pictures on as they are, and the input that they come from. */
const PASSING = {
  Reroute: 0,
  GetVideoComponents: "video",
  CreateVideo: "images",
  PreviewImage: "images",
};

const BYPASSED = 4;

/**
 * The loader upstream of one of our nodes: {file, frame(n, fps): the file's own number of the node's frame n,
 * last(frames, fps): the node's last frame, point(x, y, size): a place in the file's pixels as the node sees it; resamples: fps is needed}.
 * Else {obstacle: title of the node where the way ends}, or {} where nothing is connected.
 */
export function findSource(node) {
  for (const name of ["images", "video"]) {
    const found = above(node, name);
    if (found) return fromNode(found.node, found.slot, 64);
  }
  return {};
}

function fromNode(node, slot, left) {
  const loader = LOADERS.find(({ type }) => type.test(node.comfyClass ?? node.type));
  if (loader) return fromLoader(node, loader);
  if (left === 0) return { obstacle: node.title };
  const next = node.subgraph ? insideOf(node, slot) : above(node, passes(node));
  return next ? fromNode(next.node, next.slot, left - 1) : { obstacle: node.title };
}

function passes(node) {
  const type = node.comfyClass ?? node.type;
  if (node.mode === BYPASSED) return node.inputs?.findIndex((input) => /IMAGE|VIDEO/.test(String(input.type)));
  return /reroute/i.test(type) ? 0 : PASSING[type];
}

/** The node and its output that feed an input, given by name or number. */
function above(node, which) {
  const slot = typeof which === "string" ? node.inputs?.findIndex((input) => input.name === which) : which;
  const link = inputLink(node, slot);
  if (!link) return null;
  const origin = originOf(node.graph, link);
  if (origin.outside) return above(origin.outside, origin.slot);
  return origin.node ? { node: origin.node, slot: origin.slot } : null;
}

/** From a subgraph's node to what feeds that output inside. */
function insideOf(node, slot) {
  const id = node.subgraph.outputs?.[slot]?.linkIds?.[0];
  const link = id == null ? null : linkOf(node.subgraph, id);
  const origin = link && node.subgraph.getNodeById(link.origin_id);
  return origin ? { node: origin, slot: link.origin_slot } : null;
}

function value(node, name) {
  return node.widgets?.find((widget) => widget.name === name)?.value;
}

function fromLoader(node, loader) {
  const file = value(node, loader.widget);
  if (typeof file !== "string" || !file) return { obstacle: node.title };
  const plain = { frame: (n) => n, last: (frames) => frames - 1, point: (x, y) => [x, y] };
  return { file, ...plain, ...loader.reads?.(node) };
}

/** Video Helper Suite: frames left out at the start and in between, another rate, another size. */
function everyNth(node) {
  const skip = Number(value(node, "skip_first_frames")) || 0;
  const nth = Number(value(node, "select_every_nth")) || 1;
  const rate = Number(value(node, "force_rate")) || 0;
  const most = Number(value(node, "frame_load_cap")) || Infinity;
  const pace = (fps) => (rate && fps ? fps / rate : 1);
  const [width, height] = [Number(value(node, "custom_width")) || 0, Number(value(node, "custom_height")) || 0];
  return {
    resamples: rate > 0,
    frame: (n, fps) => Math.round((skip + n * nth) * pace(fps)),
    last: (frames, fps) => Math.max(0, Math.min(most - 1, Math.floor(((frames - 1) / pace(fps) - skip) / nth))),
    point: (x, y, size) => scaled(x, y, size, width, height),
  };
}

/** The loader's custom size: with one side the picture is scaled, with both it is also cut to their shape. */
function scaled(x, y, size, width, height) {
  if (!width && !height) return [x, y];
  const factor = Math.max(width / size.width, height / size.height);
  const [cutX, cutY] = [
    width ? (size.width * factor - width) / 2 : 0,
    height ? (size.height * factor - height) / 2 : 0,
  ];
  return [x * factor - cutX, y * factor - cutY];
}
