// A message on the page: its text, reasoning, facts and buttons.

import { AnswerText } from "./text.js";

const NAMES = { user: "You", assistant: "Model" };

function made(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

export class MessageView {
  constructor(message) {
    this.element = made("article", `message ${message.role}`);
    this.element.setAttribute("aria-label", NAMES[message.role]);
    this.element.append(made("h2", "", NAMES[message.role]));
    this.body = made("div", "text");
    this.element.append(this.body);
    this.facts = made("p", "facts");
    this.tools = made("div", "tools");
    this.element.append(this.facts, this.tools);
    this.thought = null;
    if (message.role === "user") {
      this.body.textContent = message.content;
    } else {
      this.text = new AnswerText(this.body);
      if (message.reasoning) this.addReasoning(message.reasoning);
      if (message.content) this.add(message.tokens ?? [{ text: message.content, origin: "verifier" }]);
    }
  }

  add(tokens) {
    this.text.add(tokens);
  }

  addReasoning(text) {
    if (!this.thought) {
      const details = made("details", "reasoning");
      details.append(made("summary", "", "Reasoning"));
      this.thought = made("div", "thought");
      details.append(this.thought);
      this.element.insertBefore(details, this.body);
    }
    this.thought.append(text);
  }

  finish(message) {
    this.text?.finish();
    if (message.facts) this.facts.textContent = message.facts;
    if (message.stopped) this.facts.prepend("Stopped. ");
  }

  button(label, action) {
    const button = made("button", "", label);
    button.type = "button";
    button.addEventListener("click", action);
    this.tools.append(button);
  }

  clearButtons() {
    this.tools.replaceChildren();
  }
}
