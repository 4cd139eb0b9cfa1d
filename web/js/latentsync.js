// The extension of ComfyUI's front end: a face picker, a score panel and a comparison on our nodes.
import { app } from "../../../scripts/app.js";
import { fileUrl, showCompare } from "./compare.js";
import { addWidget, keepKeys, loadStyle, make, panel } from "./dom.js";
import { centre, faceStage } from "./faces.js";
import { faceWidget, openPicker, pointText, setFace } from "./picker.js";
import { showScore } from "./score.js";
import { loadWords, say } from "./words.js";

const OURS = /^LatentSync[A-Z]/;
const BUTTON_HEIGHT = 42;

/** What a node shows after it ran, by the key of its output. */
const SHOWN = {
  latentsync_faces: showFaces,
  latentsync_score: (node, score) => showScore(panel(node, "score", 380, 420), score),
  latentsync_compare: (node, pair) => showCompare(panel(node, "compare", 320, 360), pair, fitOf(node)),
};

function fitOf(node) {
  return node.widgets?.find((widget) => widget.name === "fit")?.value;
}

function showFaces(node, found) {
  const picture = { ...found, src: fileUrl(found.image) };
  node.latentsyncFaces = picture;
  if (node.comfyClass !== "LatentSyncFindFaces") return;
  const choose = (face) => setFace(node, pointText(...centre(face), found.frame));
  panel(node, "faces", 200, 340).replaceChildren(faceStage(picture, choose));
}

/** The button under the `face` widget. A real button, which the keyboard reaches; it opens the dialog. */
function addPickButton(node) {
  const press = () => openPicker(node);
  const button = make("button", { class: "latentsync-pick", type: "button", onclick: press }, say("pick", "Pick a face…"));
  keepKeys(button);
  const added = addWidget(node, "pick_face", button, BUTTON_HEIGHT, BUTTON_HEIGHT);
  const others = node.widgets.filter((widget) => widget !== added);
  others.splice(others.indexOf(faceWidget(node)) + 1, 0, added);
  node.widgets.splice(0, node.widgets.length, ...others);
}

/** Only values of inputs, without gaps: widgets that are not saved would leave some, which shift all that follow. */
function closeGaps(node, saved) {
  if (!Array.isArray(saved.widgets_values)) return;
  saved.widgets_values = node.widgets.filter((widget) => widget.serialize !== false).map((widget) => widget.value);
}

function after(prototype, name, added) {
  const before = prototype[name];
  prototype[name] = function (...args) {
    const result = before?.apply(this, args);
    added.call(this, ...args);
    return result;
  };
}

function show(node, output) {
  for (const [key, shown] of Object.entries(SHOWN)) {
    if (output?.[key]?.[0]) shown(node, output[key][0]);
  }
}

app.registerExtension({
  name: "LatentSync",

  async init() {
    loadStyle();
    await loadWords().catch(() => {}); // then in English
  },

  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!OURS.test(nodeData.name)) return;
    after(nodeType.prototype, "onExecuted", function (output) {
      show(this, output);
    });
    after(nodeType.prototype, "onSerialize", function (saved) {
      closeGaps(this, saved);
    });
    after(nodeType.prototype, "onRemoved", function () {
      this.latentsyncPanels?.compare?.latentsyncStop?.();
    });
  },

  nodeCreated(node) {
    if (OURS.test(node.comfyClass ?? "") && faceWidget(node)) addPickButton(node);
  },

  /** Results of a workflow that is opened again. */
  onNodeOutputsUpdated(outputs) {
    for (const [id, output] of Object.entries(outputs)) {
      const node = app.graph?.getNodeById(id);
      if (OURS.test(node?.comfyClass ?? "")) show(node, output);
    }
  },

  commands: [
    {
      id: "LatentSync.PickFace",
      label: "LatentSync: Pick a face",
      icon: "pi pi-user",
      function: () => {
        const node = Object.values(app.canvas.selected_nodes ?? {}).find(faceWidget);
        if (node && OURS.test(node.comfyClass ?? "")) openPicker(node);
      },
    },
  ],
});
