// The dialog in which a face is picked, and what it writes: "x,y,frame" in the node's `face` widget, or for a face that
// cannot be found three points and the frame in its `points` widget.
import { api } from "../../../scripts/api.js";
import { choiceOf, inWords, pointsOf, pointText, read, rules, setFace, write } from "./choice.js";
import { keepFocus, keepKeys, make } from "./dom.js";
import { center, faceStage, pointStage } from "./faces.js";
import { findSource } from "./source.js";
import { say } from "./words.js";

const SETTLED = 250; // ms without another change of the frame before the server is asked

/** Open the dialog for a node; it closes by a choice, Escape, or its button. */
export function openPicker(node) {
  const picker = new Picker(node);
  picker.open();
  return picker;
}

class Picker {
  constructor(node) {
    this.node = node;
    this.choice = choiceOf(node);
    this.now = read(this.choice.text ?? "");
    this.points = pointsOf(node);
    this.source = findSource(node);
    this.asked = 0;
    this.stage = make("div");
    this.status = make("p", { class: "latentsync-status", role: "status" });
    this.dialog = this.makeDialog();
  }

  makeDialog() {
    const close = () => this.dialog.close();
    const title = make("h2", { id: "latentsync-picker-title" }, say("pick_title", "Pick a face"));
    const dialog = make(
      "dialog",
      { class: "latentsync-dialog", role: "dialog", "aria-modal": "true", "aria-labelledby": title.id },
      make("header", {}, title, make("button", { type: "button", onclick: close }, say("close", "Close"))),
      make("p", {}, this.hint()),
      ...(this.choice.text == null ? [] : [this.makeNow()]),
      this.stage,
      this.status,
      this.makeFrameRow(),
      this.makeRules(),
      ...(this.points?.widget ? [this.makePointRow()] : []),
    );
    keepKeys(dialog);
    keepFocus(dialog);
    dialog.addEventListener("close", () => dialog.remove());
    dialog.addEventListener("pointerdown", (event) => event.target === dialog && close());
    return dialog;
  }

  makeFrameRow() {
    const bounds = { min: 0, max: 0, step: 1, value: 0 };
    const label = say("frame", "Frame");
    this.slider = make("input", { type: "range", "aria-label": label, ...bounds });
    this.field = make("input", { type: "number", "aria-label": label, ...bounds });
    this.count = make("span", {});
    for (const input of [this.slider, this.field]) {
      input.addEventListener("input", () => this.goTo(Number(input.value)));
    }
    this.frameRow = make("div", { class: "latentsync-row" }, label, this.slider, this.field, this.count);
    this.frameRow.hidden = true;
    return this.frameRow;
  }

  hint() {
    const { wired } = this.choice;
    if (wired == null) return say("pick_hint", "Click the face that should speak. By keyboard: Tab, arrow keys, Enter.");
    return say(
      "wired",
      "The input “face” is connected to “{node}”. Change the face there, or remove the connection to pick one here.",
      { node: wired },
    );
  }

  makeNow() {
    const choice = make("strong", {}, inWords(this.choice.text));
    return make("p", { class: "latentsync-now" }, say("now", "Current choice:"), " ", choice);
  }

  /** The choices that need no picture. */
  makeRules() {
    const rule = ([value, name]) => {
      const state = { disabled: this.choice.wired != null, "aria-pressed": String(value === this.now.rule) };
      return make("button", { type: "button", onclick: () => this.write(value), ...state }, name);
    };
    return make("div", { class: "latentsync-row" }, say("or", "or always:"), ...Object.entries(rules()).map(rule));
  }

  /** For drawings and animals; only where there is a picture to click in. */
  makePointRow() {
    this.byHand = make(
      "button",
      { type: "button", "aria-pressed": "false", disabled: true, onclick: () => this.pointOut(!this.pointing) },
      say("by_hand", "Mark a face that is not found"),
    );
    const set = String(this.points.text ?? "").trim();
    const remove = { type: "button", onclick: () => this.writePoints("") };
    const now = set ? [say("points_now", "Marked points: {points}", { points: set }), make("button", remove, say("points_off", "Remove the points"))] : [];
    return make("div", { class: "latentsync-by-hand" }, this.byHand, ...now);
  }

  pointOut(pointing) {
    this.pointing = pointing;
    this.byHand.setAttribute("aria-pressed", String(pointing));
    this.showPicture(...this.shown);
  }

  writePoints(text) {
    write(this.points, text);
    this.dialog.close();
  }

  open() {
    document.body.append(this.dialog);
    this.dialog.showModal();
    if (this.source.file) return this.show(this.now.frame ?? 0);
    const seen = this.node.latentsyncFaces;
    if (seen) return this.showPicture(seen, seen.frame, (x, y) => [x, y]);
    this.status.textContent = this.advice();
  }

  advice() {
    const { obstacle } = this.source;
    if (obstacle == null) {
      return say("no_source", "Connect a video or an image to this node, then pick a face in it.");
    }
    return say(
      "no_file",
      "The images come from “{node}”, so their file is not known before the workflow runs: run “LatentSync: Find Faces” once and click a face on that node, or use one of the choices below.",
      { node: obstacle },
    );
  }

  /** After a moment without another change. */
  goTo(frame) {
    const wanted = Math.min(Math.max(0, Math.round(frame) || 0), Number(this.slider.max));
    this.slider.value = this.field.value = wanted;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.show(wanted), SETTLED);
  }

  async show(frame) {
    const turn = ++this.asked;
    this.status.textContent = say("looking", "Looking for faces…");
    this.dialog.setAttribute("aria-busy", "true");
    try {
      const found = await this.ask(frame);
      if (turn !== this.asked || !this.dialog.open) return;
      this.setFrames(found, frame);
      this.showPicture(found, frame, (x, y) => this.source.point(x, y, found));
    } catch (error) {
      if (turn === this.asked) this.status.textContent = error.message;
    } finally {
      if (turn === this.asked) this.dialog.removeAttribute("aria-busy");
    }
  }

  /** The faces in the node's frame; where the loader changes the rate, the file's own rate gives its number. */
  async ask(frame) {
    if (this.source.resamples) this.fps ??= (await this.request(0)).fps;
    const number = this.source.frame(frame, this.fps);
    const found = await this.request(number);
    return { ...found, src: api.apiURL(`/latentsync/frame?${this.query(number)}`) };
  }

  async request(number) {
    const response = await api.fetchApi(`/latentsync/faces?${this.query(number)}`);
    const answer = await response.json().catch(() => ({}));
    if (response.ok) return answer;
    throw new Error(answer.error ?? say("no_answer", "The server did not answer ({status}).", { status: response.status }));
  }

  query(number) {
    return new URLSearchParams({ file: this.source.file, frame: number });
  }

  setFrames({ frames, fps }, frame) {
    const last = this.source.last(frames, fps);
    for (const input of [this.slider, this.field]) Object.assign(input, { max: last, value: frame });
    this.count.textContent = say("of_frames", "of {last}", { last });
    this.frameRow.hidden = last < 1;
  }

  showPicture(picture, frame, point) {
    this.shown = [picture, frame, point];
    if (this.byHand) this.byHand.disabled = false;
    if (this.pointing) return this.showPoints(picture, frame, point);
    const chosen = this.current(picture, frame, point);
    const choose = this.choice.wired == null && ((face) => this.write(pointText(...point(...center(face)), frame)));
    const hadFocus = this.frameRow.contains(document.activeElement);
    const stage = faceStage({ ...picture, chosen }, choose);
    this.stage.replaceChildren(stage);
    this.status.textContent = howMany(picture.faces.length, frame);
    if (!hadFocus) (stage.querySelector("[aria-pressed=true]") ?? stage.querySelector("button:enabled"))?.focus();
  }

  showPoints(picture, frame, point) {
    const numbers = (points) => points.flatMap(([x, y]) => point(x, y).map(Math.round));
    this.stage.replaceChildren(pointStage(picture, (points) => this.writePoints([...numbers(points), frame].join(","))));
    this.status.textContent = say(
      "point_hint",
      "Click the left brow, the right brow and the tip of the nose, as you see them.",
    );
  }

  /** The face of the picture that is chosen now, as far as one picture can tell. */
  current(picture, frame, point) {
    const { x, y, frame: at, number, rule } = this.now;
    if (picture.asked != null && picture.asked === this.choice.text) return picture.chosen;
    if (rule) return picture.frames === 1 ? byRule(picture.faces, rule) : null;
    if (number != null) return frame === 0 ? number : null; // faces that come later have later numbers
    if (at !== frame) return null;
    const holds = ({ box }) => {
      const [x0, y0] = point(box[0], box[1]);
      const [x1, y1] = point(box[2], box[3]);
      return x >= x0 && x <= x1 && y >= y0 && y <= y1;
    };
    return picture.faces.find(holds)?.index ?? null;
  }

  write(text) {
    if (this.points?.text) write(this.points, ""); // they would be taken instead
    setFace(this.node, text);
    this.dialog.close();
  }
}

/** The engine's rules, for a still picture. */
function byRule(faces, rule) {
  const rank = {
    largest: ({ box }) => box[3] - box[1],
    left: ({ box }) => -(box[0] + box[2]),
    right: ({ box }) => box[0] + box[2],
  }[rule];
  return [...faces].sort((a, b) => rank(b) - rank(a))[0]?.index ?? null;
}

function howMany(count, frame) {
  if (count === 0) return say("none", "No face was found in frame {frame}; try another frame.", { frame });
  if (count === 1) return say("one", "One face in frame {frame}.", { frame });
  return say("several", "{count} faces in frame {frame}.", { count, frame });
}
