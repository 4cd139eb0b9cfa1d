// Before and after on one stage: two videos in step, with a divider that pointer and arrow keys move.
import { api } from "../../../scripts/api.js";
import { keepKeys, make } from "./dom.js";
import { say } from "./words.js";

const STILL = 0.02; // seconds that the two may differ while they stand …
const MOVING = 0.3; // … and while they run: less is caught up with by running faster or slower
const PICTURE = /\.(png|jpe?g|webp|bmp|gif|tiff?)$/i;

/** The address of a file that a node shows. */
export function fileUrl({ filename, subfolder, type }) {
  return api.apiURL(`/view?${new URLSearchParams({ filename, subfolder: subfolder ?? "", type })}`);
}

/** pair: {before, after}, each {filename, subfolder, type}, and the part of before in seconds {start, duration (0: all the rest)}; fit: how it was made as long as the result. */
export function showCompare(element, pair, fit) {
  element.latentsyncStop?.();
  element.classList.add("latentsync-compare");
  const after = video(pair.after, say("after", "After"));
  const before = beforeOf(pair.before);
  const stage = make("div", { class: "latentsync-stage" }, before, after);
  after.addEventListener("error", () => {
    const gone = say("gone", "This result is no longer there. Run the workflow again to see it.");
    element.replaceChildren(make("p", { class: "latentsync-later" }, gone));
  });
  after.addEventListener("loadedmetadata", () => {
    if (after.videoWidth) stage.style.setProperty("--shape", after.videoWidth / after.videoHeight);
  });
  stage.append(badge("before", say("before", "Before")), badge("after", say("after", "After")));
  const divider = divide(stage);
  element.replaceChildren(make("div", { class: "latentsync-place" }, stage), divider, controls(after));
  keepKeys(element);
  element.latentsyncStop = before.tagName === "VIDEO" ? inStep(after, before, fit, pair) : () => after.pause();
}

function beforeOf(file) {
  const label = say("before", "Before");
  if (!file?.filename) return make("p", { class: "latentsync-status" }, say("no_before", "The source cannot be shown here."));
  const still = PICTURE.test(file.filename);
  const before = still ? make("img", { src: fileUrl(file), alt: label, draggable: "false" }) : video(file, label);
  before.muted = true;
  const sorry = say("not_played", "This browser cannot show the source.");
  before.addEventListener("error", () => before.replaceWith(make("p", { class: "latentsync-status" }, sorry)));
  return before;
}

function video(file, label) {
  return make("video", { src: fileUrl(file), preload: "auto", playsinline: true, loop: true, "aria-label": label });
}

function badge(side, text) {
  return make("span", { class: `latentsync-badge latentsync-badge-${side}`, "aria-hidden": "true" }, text);
}

/** The range input below the stage, and dragging on the stage itself. */
function divide(stage) {
  const label = say("divider", "Divider between before and after");
  const range = make("input", { type: "range", min: 0, max: 100, step: 1, value: 50, "aria-label": label });
  const set = (percent) => {
    range.value = percent;
    stage.style.setProperty("--divide", `${range.value}%`);
  };
  const drag = (event) => {
    const { left, width } = stage.getBoundingClientRect();
    if (event.buttons & 1) set((100 * (event.clientX - left)) / width);
  };
  range.addEventListener("input", () => set(range.value));
  stage.addEventListener("pointermove", drag);
  stage.addEventListener("pointerdown", (event) => {
    stage.setPointerCapture(event.pointerId);
    drag(event);
  });
  set(50);
  return range;
}

function controls(after) {
  const play = make("button", { type: "button" });
  const mute = make("button", { type: "button" }, say("mute", "Mute"));
  const loop = make("button", { type: "button" }, say("loop", "Loop"));
  const time = make("input", { type: "range", min: 0, max: 1, step: 0.01, value: 0, "aria-label": say("position", "Position") });
  const refresh = () => {
    play.textContent = after.paused ? say("play", "Play") : say("pause", "Pause");
    mute.setAttribute("aria-pressed", String(after.muted));
    loop.setAttribute("aria-pressed", String(after.loop));
    time.max = after.duration || 1;
    time.value = after.currentTime;
    time.setAttribute("aria-valuetext", say("seconds", "{seconds} s", { seconds: after.currentTime.toFixed(1) }));
  };
  play.addEventListener("click", () => (after.paused ? after.play().catch(refresh) : after.pause()));
  mute.addEventListener("click", () => void (after.muted = !after.muted));
  loop.addEventListener("click", () => {
    after.loop = !after.loop;
    refresh();
  });
  time.addEventListener("input", () => void (after.currentTime = Number(time.value)));
  for (const event of ["play", "pause", "ended", "volumechange", "timeupdate", "loadedmetadata"]) {
    after.addEventListener(event, refresh);
  }
  refresh();
  return make("div", { class: "latentsync-row" }, play, time, mute, loop);
}

/** Keep "before" at the moment of the source that "after" was made from; returns how to stop. */
function inStep(after, before, fit, part) {
  let going = true;
  const follow = () => {
    if (!going) return;
    if (before.readyState > 0) align(after, before, fit, part);
    requestAnimationFrame(follow);
  };
  requestAnimationFrame(follow);
  return () => {
    going = false;
    after.pause();
    before.pause();
  };
}

function align(after, before, fit, part) {
  const start = part.start ?? 0;
  const length = Math.min(part.duration || Infinity, before.duration - start);
  const within = sourceTime(after.currentTime, length, fit);
  const time = start + within.time;
  const runs = within.forward && !after.paused && within.time < length;
  if (runs && before.paused) before.play().catch(() => {});
  if (!runs && !before.paused) before.pause();
  const late = time - before.currentTime;
  before.playbackRate = runs ? Math.min(1.5, Math.max(0.5, 1 + 2 * late)) : 1;
  if (!before.seeking && Math.abs(late) > (runs ? MOVING : STILL)) before.currentTime = time;
}

/** Where in the source a moment of the result lies, and whether it runs forward there. */
export function sourceTime(time, duration, fit) {
  if (!(duration > 0)) return { time: 0, forward: true };
  const lap = Math.floor(time / duration);
  if (fit === "loop") return { time: time % duration, forward: true };
  if (fit === "pingpong" && lap % 2) return { time: (lap + 1) * duration - time, forward: false };
  if (fit === "pingpong") return { time: time - lap * duration, forward: true };
  return { time: Math.min(time, duration), forward: true };
}
