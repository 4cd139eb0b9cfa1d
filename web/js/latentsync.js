// The extension of ComfyUI's front end: a face picker, a score panel and a comparison on our nodes.
import { app } from "../../../scripts/app.js";
import { foldAdvanced, showConnected } from "./advanced.js";
import { watchCached } from "./cached.js";
import { choiceOf, faceWidget, pointText, setFace } from "./choice.js";
import { fileUrl, showCompare } from "./compare.js";
import { addPanel, addWidget, keepKeys, loadStyle, make, panel } from "./dom.js";
import { center, faceStage } from "./faces.js";
import { isOurs, nodeOf } from "./nodes.js";
import { openPicker } from "./picker.js";
import { dropLatePreview, watchRuns } from "./running.js";
import { showScore } from "./score.js";
import { loadWords, say } from "./words.js";

const BUTTON_HEIGHT = 44;

/** What a node shows after it ran, by the key of its output. */
const SHOWN = {
  latentsync_faces: showFaces,
  latentsync_score: (node, score) => showScore(panel(node, "score"), score),
  latentsync_compare: (node, pair) => showCompare(panel(node, "compare"), pair, fitOf(node)),
};

/** The panels that nodes have, in px. */
const PANELS = {
  LatentSyncFindFaces: (node) =>
    addPanel(node, "faces", 200, 340, say("faces_later", "The faces found appear here after a run. Click one to choose it.")),
  LatentSyncVideo: addCompare,
  LatentSyncSpeakers: addCompare,
  LatentSyncScore: (node) => addPanel(node, "score", 380, 420, say("score_later", "The score appears here after a run.")),
};

function addCompare(node) {
  addPanel(node, "compare", 320, 360, say("compare_later", "Source and result appear here after a run."));
}

function fitOf(node) {
  return node.widgets?.find((widget) => widget.name === "fit")?.value;
}

function showFaces(node, found) {
  const picture = { ...found, src: fileUrl(found.image), asked: choiceOf(node).text };
  node.latentsyncFaces = picture;
  const choose = (face) => setFace(node, pointText(...center(face), found.frame)) || void openPicker(node); // says why
  panel(node, "faces")?.replaceChildren(faceStage(picture, choose));
}

/** The button under the `face` widget. A real button, which the keyboard reaches; it opens the dialog. */
function addPickButton(node) {
  const press = () => openPicker(node);
  const button = make("button", { class: "latentsync-pick", type: "button", onclick: press }, say("pick", "Pick a face…"));
  keepKeys(button);
  const added = addWidget(node, "pick_face", button, BUTTON_HEIGHT, true);
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
    if (!output?.[key]?.[0]) continue;
    shown(node, output[key][0]);
    node.latentsyncShown = true;
  }
}

app.registerExtension({
  name: "LatentSync",

  async init() {
    loadStyle();
    watchRuns();
    watchCached(show);
    await loadWords().catch(() => {}); // then in English
  },

  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!isOurs({ comfyClass: nodeData.name })) return;
    after(nodeType.prototype, "onExecuted", function (output) {
      show(this, output);
    });
    after(nodeType.prototype, "onSerialize", function (saved) {
      closeGaps(this, saved);
    });
    after(nodeType.prototype, "onDrawBackground", function () {
      dropLatePreview(this);
    });
    after(nodeType.prototype, "onConfigure", function () {
      showConnected(this);
    });
    after(nodeType.prototype, "onRemoved", function () {
      panel(this, "compare")?.latentsyncStop?.();
    });
  },

  nodeCreated(node) {
    if (!isOurs(node)) return;
    foldAdvanced(node);
    if (faceWidget(node)) addPickButton(node);
    PANELS[node.comfyClass]?.(node);
  },

  /** Results of a workflow that is opened again. */
  onNodeOutputsUpdated(outputs) {
    for (const [id, output] of Object.entries(outputs ?? {})) {
      const node = nodeOf(id);
      if (isOurs(node)) show(node, output);
    }
  },

  commands: [
    {
      id: "LatentSync.PickFace",
      label: "LatentSync: Pick a face",
      icon: "pi pi-user",
      function: () => {
        const node = Object.values(app.canvas.selected_nodes ?? {}).find((one) => isOurs(one) && faceWidget(one));
        if (node) openPicker(node);
      },
    },
  ],
});
