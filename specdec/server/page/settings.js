// The settings panel: what is kept in the browser, and what of it goes into a request.

import { loadSettings, saveSettings } from "./store.js";

const find = (id) => document.getElementById(id);

export class Settings {
  constructor() {
    this.values = loadSettings();
    this.efforts = [1];
    this.#bind("system", "system", "value");
    this.#bind("temperature", "temperature", "valueAsNumber", (value) => value.toFixed(2));
    this.#bind("draft-effort", "draftEffort", "valueAsNumber", (value) => (value ? value.toFixed(2) : "the policy's"));
    this.#bind("max-tokens", "maxTokens", "value");
    this.#bind("seed", "seed", "value");
    this.#bind("speculate", "speculate", "checked");
    this.#bind("theme", "theme", "value", undefined, () => this.#theme());
    this.#theme();
    find("verify-effort").addEventListener("input", () => this.set("verifyEffort", this.efforts[find("verify-effort").valueAsNumber]));
  }

  set(name, value) {
    this.values[name] = value;
    saveSettings(this.values);
    this.#effort();
  }

  // The verify efforts that the server allows, which the slider steps through.
  allow(efforts) {
    this.efforts = [...efforts].sort((a, b) => a - b);
    if (!this.efforts.includes(this.values.verifyEffort)) this.values.verifyEffort = this.efforts.at(-1);
    const slider = find("verify-effort");
    slider.max = this.efforts.length - 1;
    slider.disabled = this.efforts.length < 2;
    this.#effort();
  }

  // Fields of a request.
  request() {
    const { temperature, verifyEffort, draftEffort, maxTokens, seed, speculate } = this.values;
    const fields = { temperature, speculate };
    if (verifyEffort !== null) fields.verify_effort = verifyEffort;
    if (speculate && draftEffort > 0) fields.draft_effort = draftEffort;
    if (maxTokens !== "") fields.max_tokens = Number(maxTokens);
    if (seed !== "") fields.seed = Number(seed);
    return fields;
  }

  #bind(id, name, property, shown, changed) {
    const field = find(id);
    if (property === "valueAsNumber") field.value = this.values[name];
    else field[property] = this.values[name];
    const show = () => {
      if (shown) {
        const output = find(`${id}-value`);
        if (output) output.value = shown(this.values[name]);
        field.setAttribute("aria-valuetext", shown(this.values[name]));
      }
    };
    field.addEventListener("input", () => {
      this.set(name, field[property]);
      show();
      changed?.();
    });
    show();
  }

  #effort() {
    const slider = find("verify-effort");
    slider.value = this.efforts.indexOf(this.values.verifyEffort);
    const text = String(this.values.verifyEffort ?? "");
    find("verify-effort-value").value = text;
    slider.setAttribute("aria-valuetext", text);
  }

  #theme() {
    if (this.values.theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = this.values.theme;
  }
}
