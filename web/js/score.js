// What LatentSync: Score found, drawn on the node: the mouth against the sound over time, and how well they agree
// when one is shifted against the other.
import { draw, keepKeys, make } from "./dom.js";
import { say } from "./words.js";

const WIDE = 1000; // units of a drawing, which is then stretched to the node
const HIGH = 200;

/**
 * score: {fps, step, offset, confidence, correlation, significance_threshold, significant, opening, loudness, lags,
 * correlation_by_lag}; offset and lags in frames, one value of opening and loudness for every step-th frame,
 * significance_threshold: correlation that unrelated curves reach; with a SyncNet also syncnet: {name, lse_c, lse_d,
 * offset}.
 */
export function showScore(element, score) {
  element.classList.add("latentsync-score");
  element.replaceChildren(summary(score), overTime(score), byLag(score));
}

/** In plain words; also what a screen reader hears. */
function summary(score) {
  const numbers = say("numbers", "confidence {confidence} · correlation {correlation} · offset {offset} frames", {
    confidence: plain(score.confidence),
    correlation: plain(score.correlation),
    offset: score.offset,
  });
  const lines = [numbers, ...(score.syncnet ? [bySyncNet(score.syncnet)] : [])];
  return make("header", {}, make("strong", {}, verdict(score)), ...lines.map((line) => make("span", {}, line)));
}

function bySyncNet({ name, lse_c, lse_d, offset }) {
  return say("syncnet", "LSE-C {confidence} · LSE-D {distance} · offset {offset} frames by {name}", {
    confidence: plain(lse_c),
    distance: plain(lse_d),
    offset,
    name,
  });
}

export function verdict({ offset, significant }) {
  if (significant === false) return say("unsure", "No clear match of mouth and audio");
  const frames = Math.abs(offset);
  if (frames <= 1) return say("in_sync", "In sync");
  if (offset > 0) return say("late", "The audio is {frames} frames late", { frames });
  return say("early", "The audio is {frames} frames early", { frames });
}

function overTime({ fps, step = 1, opening, loudness }) {
  const count = Math.min(opening.length, loudness.length);
  const mouth = share(opening);
  const sound = share(loudness);
  const chart = canvas(say("over_time", "Mouth opening and loudness over time"));
  chart.append(
    draw("path", { class: "latentsync-sound", d: area(sound) }),
    draw("path", { class: "latentsync-mouth", d: line(mouth) }),
  );
  const tell = (i) =>
    say("at_time", "{seconds} s, frame {frame}: mouth {mouth} %, loudness {sound} % of maximum", {
      seconds: ((i * step) / fps).toFixed(2),
      frame: i * step,
      mouth: percent(mouth[i]),
      sound: percent(sound[i]),
    });
  const ends = [0, ((count * step) / fps).toFixed(1)].map((seconds) => say("seconds", "{seconds} s", { seconds }));
  const names = [legend("mouth", say("mouth", "mouth opening")), legend("sound", say("sound", "loudness"))];
  return explorable(chart, names, ends, count, 0, tell);
}

function byLag({ lags, correlation_by_lag: values, offset, significance_threshold: threshold }) {
  const [low, high] = [Math.min(0, ...values), Math.max(0.1, threshold ?? 0, ...values)];
  const place = (value) => (value == null ? null : (value - low) / (high - low));
  const chart = canvas(say("by_lag", "Agreement of mouth and audio for every shift of the audio"));
  const level = (value) => `M0 ${height(place(value))} H${WIDE}`;
  const best = Math.max(0, lags.indexOf(offset));
  chart.append(
    draw("path", { class: "latentsync-ground", d: level(0) }),
    draw("path", { class: "latentsync-chance", d: threshold == null ? "" : level(threshold) }),
    draw("path", { class: "latentsync-best", d: `M${across(best, lags.length)} 0 V${HIGH}` }),
    draw("path", { class: "latentsync-mouth", d: line(values.map(place)) }),
  );
  const tell = (i) =>
    say("at_lag", "audio shifted by {lag} frames: correlation {value}", { lag: lags[i], value: plain(values[i]) });
  const ends = [0, lags.length - 1].map((i) => say("frames", "{count} frames", { count: lags[i] }));
  const names = [
    legend("mouth", say("agreement", "correlation by shift")),
    legend("best", say("best", "best")),
    legend("chance", say("chance", "chance level")),
  ];
  return explorable(chart, names, ends, lags.length, best, tell);
}

function canvas(title) {
  const box = { viewBox: `0 0 ${WIDE} ${HIGH}`, preserveAspectRatio: "none", "aria-hidden": "true" };
  const chart = draw("svg", box, draw("title", {}, title));
  chart.latentsyncTitle = title;
  return chart;
}

/** A chart under its legend, with a mark that the pointer and the arrow keys move and a line that tells the values. */
function explorable(chart, names, ends, count, start, tell) {
  const mark = draw("path", { class: "latentsync-mark", visibility: "hidden" });
  chart.append(mark);
  const told = make("output", {}, "");
  const slider = {
    class: "latentsync-chart",
    role: "slider",
    tabindex: 0,
    "aria-label": chart.latentsyncTitle,
    "aria-valuemin": 0,
    "aria-valuemax": count - 1,
  };
  const plot = make("div", slider, chart);
  let at = start;
  const show = (i, visible = true) => {
    at = Math.min(Math.max(0, i), count - 1);
    mark.setAttribute("d", `M${across(at, count)} 0 V${HIGH}`);
    mark.setAttribute("visibility", visible ? "visible" : "hidden");
    plot.setAttribute("aria-valuenow", at);
    plot.setAttribute("aria-valuetext", tell(at));
    told.textContent = visible ? tell(at) : "";
  };
  show(start, false);
  followPointer(plot, count, show, () => show(at, document.activeElement === plot));
  followKeys(plot, count, () => at, show);
  return make("figure", {}, make("figcaption", {}, ...names), plot, make("div", { class: "latentsync-axis" }, ends[0], told, ends[1]));
}

function followPointer(plot, count, show, leave) {
  plot.addEventListener("pointermove", (event) => {
    const { left, width } = plot.getBoundingClientRect();
    show(Math.round(((event.clientX - left) / width) * (count - 1)));
  });
  plot.addEventListener("pointerleave", leave);
}

function followKeys(plot, count, at, show) {
  keepKeys(plot);
  plot.addEventListener("focus", () => show(at()));
  plot.addEventListener("blur", () => show(at(), false));
  plot.addEventListener("keydown", (event) => {
    const far = Math.max(2, Math.round(count / 10));
    const steps = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: far, PageDown: -far };
    const goal = { Home: 0, End: count - 1 }[event.key] ?? (event.key in steps ? at() + steps[event.key] : null);
    if (goal === null) return;
    show(goal);
    event.preventDefault();
  });
}

function legend(kind, name) {
  return make("span", { class: "latentsync-legend" }, make("i", { class: `latentsync-key-${kind}`, "aria-hidden": "true" }), name);
}

/** Values from 0 to 1 of the largest; null stays a gap. */
function share(values) {
  const most = values.reduce((high, value) => Math.max(high, value ?? 0), 1e-9);
  return values.map((value) => (value == null ? null : Math.max(0, value) / most));
}

function across(i, count) {
  return count > 1 ? (WIDE * i) / (count - 1) : WIDE / 2;
}

/** A path through values from 0 (bottom) to 1 (top), broken where one is missing. */
function line(values) {
  let pen = "M";
  const parts = values.map((value, i) => {
    if (value == null) {
      pen = "M";
      return "";
    }
    const step = `${pen}${across(i, values.length).toFixed(1)} ${height(value)}`;
    pen = "L";
    return step;
  });
  return parts.join("") || "M0 0";
}

/** The same down to the ground; what is missing counts as 0. */
function area(values) {
  const top = line(values.map((value) => value ?? 0)).slice(1);
  return `M0 ${HIGH} L${top} L${WIDE} ${HIGH} Z`;
}

/** From 0 (bottom) to 1 (almost the top: the line keeps its width). */
function height(value) {
  return (HIGH * (1 - 0.96 * value)).toFixed(1);
}

function percent(value) {
  return value == null ? "–" : Math.round(100 * value);
}

function plain(value) {
  return value == null ? "–" : Number(value).toFixed(2);
}
