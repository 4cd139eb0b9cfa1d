// A frame with a button on every face. Python gets the number of the face that was clicked.
export default function ({ data, parentElement, setTriggerValue }) {
  const stage = parentElement.querySelector(".stage");
  const focused = stage.querySelector("button:focus")?.dataset.face;
  const picture = document.createElement("img");
  picture.src = data.picture;
  picture.alt = data.alt;
  const buttons = data.boxes.map(([left, top, width, height], i) => {
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.face = i;
    button.disabled = data.disabled;
    button.title = data.labels[i];
    button.setAttribute("aria-label", data.labels[i]);
    button.setAttribute("aria-pressed", i === data.chosen);
    const number = document.createElement("span");
    number.textContent = i; // as in ComfyUI and on the command line
    button.append(number);
    Object.assign(button.style, { left: `${left}%`, top: `${top}%`, width: `${width}%`, height: `${height}%` });
    button.onclick = () => setTriggerValue("picked", i);
    return button;
  });
  stage.replaceChildren(picture, ...buttons);
  if (focused !== undefined) buttons[focused]?.focus();
}
