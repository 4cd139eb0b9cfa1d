// Names the two videos for screen readers, and brings a new result into view, once.
export default function ({ data }) {
  for (const [place, name] of Object.entries(data.names)) {
    document.querySelector(`.st-key-${place} video`)?.setAttribute("aria-label", name);
  }
  if (window.latentsyncShown === data.result) return;
  window.latentsyncShown = data.result;
  const heading = document.querySelector(".st-key-result h2");
  if (!heading) return;
  heading.tabIndex = -1;
  heading.focus({ preventScroll: true });
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const show = () =>
    document.querySelector(".st-key-result")?.scrollIntoView({ behavior: calm ? "instant" : "smooth", block: "start" });
  show();
  setTimeout(show, 600); // what was drawn above it meanwhile has moved it
}
