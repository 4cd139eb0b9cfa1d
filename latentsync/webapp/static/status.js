// Tells screen readers what the progress says, when it has changed.
export default function ({ data, parentElement }) {
  const status = parentElement.querySelector("[role=status]");
  if (status.textContent !== data.text) status.textContent = data.text;
}
