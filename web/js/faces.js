// A picture with its faces: a button over every face, by mouse, Tab, arrow keys and Enter.
import { make } from "./dom.js";
import { say } from "./words.js";

/**
 * picture: {src, width, height, faces: [{index, box: [x0, y0, x1, y1]}], chosen: index or null}, boxes in pixels of
 * width x height. choose(face) is called for the face that is clicked; true: it is the chosen one now. Without choose
 * the faces are only shown.
 */
export function faceStage(picture, choose) {
  const stage = make("div", { class: "latentsync-stage", role: "group", "aria-label": say("faces", "Faces") });
  stage.style.setProperty("--shape", picture.width / picture.height);
  stage.append(make("img", { src: picture.src, alt: say("frame_alt", "Frame of the source"), draggable: "false" }));
  for (const face of picture.faces) stage.append(faceButton(face, picture, choose));
  stage.addEventListener("keydown", moveFocus);
  return make("div", { class: "latentsync-place" }, stage);
}

/** A picture to click three points in; choose([[x, y], …]) is called after the third, in pixels of width x height. */
export function pointStage(picture, choose) {
  const stage = make("div", { class: "latentsync-stage latentsync-pointing" });
  stage.style.setProperty("--shape", picture.width / picture.height);
  stage.append(make("img", { src: picture.src, alt: say("frame_alt", "Frame of the source"), draggable: "false" }));
  const points = [];
  stage.addEventListener("click", ({ clientX, clientY }) => {
    const { left, top, width, height } = stage.getBoundingClientRect();
    const [x, y] = [(clientX - left) / width, (clientY - top) / height];
    points.push([x * picture.width, y * picture.height]);
    const mark = make("span", { class: "latentsync-point" }, String(points.length));
    Object.assign(mark.style, { left: `${100 * x}%`, top: `${100 * y}%` });
    stage.append(mark);
    if (points.length === 3) choose(points);
  });
  return make("div", { class: "latentsync-place" }, stage);
}

/** Where the `face` widget points when this face is picked: the middle of its box. */
export function center({ box }) {
  return [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2];
}

function faceButton(face, picture, choose) {
  const { index, box } = face;
  const name = say("face_number", "Face {n}", { n: index });
  const button = make(
    "button",
    {
      class: "latentsync-face",
      type: "button",
      title: name,
      "aria-label": name,
      "aria-pressed": String(index === picture.chosen),
      disabled: !choose,
      onclick: ({ currentTarget }) => choose(face) && press(currentTarget),
    },
    make("span", { "aria-hidden": "true" }, String(index)),
  );
  const share = (pixels, whole) => `${(100 * pixels) / whole}%`;
  Object.assign(button.style, {
    left: share(box[0], picture.width),
    top: share(box[1], picture.height),
    width: share(box[2] - box[0], picture.width),
    height: share(box[3] - box[1], picture.height),
  });
  return button;
}

function press(chosen) {
  for (const button of chosen.parentElement.querySelectorAll(".latentsync-face")) {
    button.setAttribute("aria-pressed", String(button === chosen));
  }
}

function moveFocus(event) {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (!step) return;
  const buttons = [...event.currentTarget.querySelectorAll("button")];
  if (!buttons.length) return;
  const at = buttons.indexOf(document.activeElement);
  buttons[(at + step + buttons.length) % buttons.length].focus();
  event.preventDefault();
}
