// One button for the two videos of a comparison: both play from the same moment, heard is the new one.
export default function ({ data, parentElement }) {
  const button = parentElement.querySelector("button");
  const video = (place) => document.querySelector(`.st-key-${place} video`);
  const show = () => {
    button.textContent = video("after")?.paused === false ? data.pause : data.play;
  };
  button.onclick = async () => {
    const [before, after] = [video("before"), video("after")];
    if (!before || !after) return;
    if (!after.paused) {
      before.pause();
      after.pause();
      return;
    }
    if (after.ended) after.currentTime = 0;
    before.muted = true;
    before.currentTime = Math.min(after.currentTime, before.duration || 0);
    for (const event of ["play", "pause", "ended"]) after[`on${event}`] = show;
    await Promise.allSettled([before.play(), after.play()]);
    show();
  };
  show();
}
