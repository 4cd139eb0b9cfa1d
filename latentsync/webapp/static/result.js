// Brings a new result into view, once.
export default function ({ data }) {
  if (window.latentsyncShown === data.result) return;
  window.latentsyncShown = data.result;
  nameToasts();
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

// Streamlit gives its notices no name, which screen readers want of a dialog
function nameToasts() {
  const name = () => {
    for (const toast of document.querySelectorAll("[data-testid=stToast]:not([aria-label])")) {
      toast.setAttribute("aria-label", "Notice");
    }
  };
  const observer = new MutationObserver(name);
  observer.observe(document.body, { childList: true, subtree: true });
  setTimeout(() => observer.disconnect(), 15000);
  name();
}
