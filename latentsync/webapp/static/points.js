// A frame to click three points in. Python gets all points so far, in percent of the frame; a fourth begins anew.
export default function ({ data, parentElement, setTriggerValue }) {
  const stage = parentElement.querySelector(".stage");
  const picture = document.createElement("img");
  picture.src = data.picture;
  picture.alt = data.alt;
  picture.draggable = false;
  const points = [...data.points];
  const draw = () => {
    const marks = points.map(([left, top], i) => {
      const mark = document.createElement("i");
      mark.textContent = i + 1;
      Object.assign(mark.style, { left: `${left}%`, top: `${top}%` });
      return mark;
    });
    stage.replaceChildren(picture, ...marks);
  };
  stage.classList.toggle("pointing", !data.disabled);
  stage.onclick = ({ clientX, clientY }) => {
    if (data.disabled) return;
    const { left, top, width, height } = picture.getBoundingClientRect();
    if (points.length >= 3) points.length = 0;
    points.push([(100 * (clientX - left)) / width, (100 * (clientY - top)) / height]);
    draw();
    setTriggerValue("pointed", points);
  };
  draw();
}
