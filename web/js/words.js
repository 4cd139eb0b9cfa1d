// The extension's own words. English stands where it is used; other languages come from locales/<lang>/main.json,
// which ComfyUI's server gathers.
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";

let messages = {};

/** Fetch the translations once; until then, and where one is missing, English is shown. */
export async function loadWords() {
  const response = await api.fetchApi("/i18n");
  messages = response.ok ? await response.json() : {};
}

function locale() {
  return app.extensionManager?.setting?.get("Comfy.Locale") ?? "en";
}

/** The words for a key, with {name} replaced by values.name. */
export function say(key, english, values = {}) {
  const lang = locale();
  const known = messages[lang]?.latentsync ?? messages[lang.split("-")[0]]?.latentsync ?? {};
  return (known[key] ?? english).replace(/\{(\w+)\}/g, (all, name) => values[name] ?? all);
}
