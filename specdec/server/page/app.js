// The page: a conversation with the model of this server.

import { complete, firstModel, useKey } from "./api.js";
import { MessageView } from "./message.js";
import { Meter } from "./meter.js";
import { Settings } from "./settings.js";
import { loadChat, saveChat } from "./store.js";

const find = (id) => document.getElementById(id);
const chat = find("chat");
const prompt = find("prompt");
const settings = new Settings();

let messages = loadChat();
let views = [];
let model = null;
let running = null; // AbortController of the answer that grows

function announce(text) {
  find("status").textContent = text;
}

function showError(error) {
  find("error").hidden = !error;
  find("error").textContent = error ? error.message : "";
  const needsKey = error?.status === 401;
  find("key-form").hidden = !needsKey;
  if (needsKey) find("key").focus();
}

// Follow the answer while the reader is at its end; measuring once a frame keeps long answers smooth.
let isAtEnd = true;
let isScheduled = false;

function following(change) {
  change();
  if (isScheduled) return;
  isScheduled = true;
  requestAnimationFrame(() => {
    isScheduled = false;
    if (isAtEnd) chat.scrollTop = chat.scrollHeight;
  });
}

chat.addEventListener("scroll", () => {
  isAtEnd = chat.scrollHeight - chat.scrollTop - chat.clientHeight < 60;
});

function show(message) {
  const view = new MessageView(message);
  find("empty")?.remove();
  chat.append(view.element);
  views.push(view);
  return view;
}

function buttons() {
  for (const [index, view] of views.entries()) {
    view.clearButtons();
    const message = messages[index];
    if (message.role !== "assistant" || (running && index === views.length - 1)) continue;
    view.button("Copy", () => copy(message.content));
    if (index === views.length - 1) view.button("Answer again", regenerate);
  }
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    announce("Copied");
  } catch {
    announce("The browser does not allow copying here");
  }
}

function setRunning(controller) {
  running = controller;
  find("send").hidden = Boolean(controller);
  find("stop").hidden = !controller;
  chat.setAttribute("aria-busy", String(Boolean(controller)));
  buttons();
}

function request() {
  const system = settings.values.system.trim();
  const spoken = messages.slice(0, -1).map(({ role, content }) => ({ role, content }));
  return { model: model.id, messages: [...(system ? [{ role: "system", content: system }] : []), ...spoken], ...settings.request() };
}

// Streams an answer to the conversation so far into a new message.
async function answer() {
  const message = { role: "assistant", content: "", reasoning: "", stopped: true };
  messages.push(message);
  const view = show(message);
  const controller = new AbortController();
  const meter = new Meter();
  const seen = {};
  setRunning(controller);
  showError(null);
  announce("The model answers");
  isAtEnd = true;
  let lastSaved = performance.now();
  try {
    if (!model) await meet();
    for await (const chunk of complete(request(), controller.signal)) {
      following(() => take(chunk, { message, view, meter, seen }));
      find("speed").textContent = meter.live();
      if (performance.now() - lastSaved > 1000) {
        saveChat(messages);
        lastSaved = performance.now();
      }
    }
    message.stopped = false;
    announce(`The answer is complete: ${message.content.slice(0, 2000)}`);
  } catch (error) {
    if (error.name === "AbortError") announce("Stopped");
    else showError(error);
  }
  end(message, view, meter, seen);
}

function take(chunk, { message, view, meter, seen }) {
  for (const name of ["timings", "metrics", "usage"]) if (chunk[name]) seen[name] = chunk[name];
  const choice = chunk.choices[0];
  if (!choice) return;
  if (choice.finish_reason) seen.reason = choice.finish_reason;
  const { content, reasoning_content: reasoning } = choice.delta;
  const tokens = choice.specdec?.tokens ?? [];
  meter.add(tokens);
  if (reasoning) {
    message.reasoning += reasoning;
    view.addReasoning(reasoning);
  }
  if (content) {
    message.content += content;
    const told = tokens.map(({ text }) => text).join("");
    view.add(told === content ? tokens : [{ text: content, origin: "verifier" }]);
  }
}

function end(message, view, meter, seen) {
  message.facts = Meter.facts(seen) || (meter.tokens ? meter.live() : "");
  if (seen.reason === "length") message.facts += " · the answer reached its limit of tokens";
  find("speed").textContent = "";
  following(() => {
    if (!message.content && !message.reasoning) {
      messages.pop();
      views.pop().element.remove();
    } else {
      view.finish(message);
    }
    setRunning(null);
  });
  saveChat(messages);
}

function send() {
  const text = prompt.value.trim();
  if (!text || running) return;
  prompt.value = "";
  resize();
  const last = messages.at(-1);
  if (last?.role === "user") { // its answer failed: the new words go with it
    messages.pop();
    views.pop().element.remove();
  }
  const message = { role: "user", content: last?.role === "user" ? `${last.content}\n\n${text}` : text };
  messages.push(message);
  show(message);
  saveChat(messages);
  answer();
}

function regenerate() {
  if (running || messages.at(-1)?.role !== "assistant") return;
  messages.pop();
  views.pop().element.remove();
  answer();
}

function newChat() {
  running?.abort();
  messages = [];
  views = [];
  const empty = document.createElement("p");
  empty.id = "empty";
  empty.className = "empty";
  empty.textContent = "Ask something. Answers come from a model on this server.";
  chat.replaceChildren(empty);
  saveChat(messages);
  showError(null);
  prompt.focus();
}

async function meet() {
  model = await firstModel();
  const name = model.id.split("/").at(-1);
  find("model").textContent = name;
  document.title = `${name} – specdec chat`;
  settings.allow(model.specdec?.verify_efforts ?? [1]);
}

function resize() {
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight + 2}px`;
}

function origins(isShown) {
  find("show-origins").setAttribute("aria-pressed", String(isShown));
  find("legend").hidden = !isShown;
  chat.classList.toggle("origins", isShown);
}

find("form").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
prompt.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
prompt.addEventListener("input", resize);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});
find("stop").addEventListener("click", () => {
  running?.abort();
  prompt.focus();
});
find("new-chat").addEventListener("click", newChat);
find("show-origins").addEventListener("click", () => {
  settings.set("origins", !settings.values.origins);
  origins(settings.values.origins);
});
find("open-settings").addEventListener("click", () => {
  const isOpen = find("settings").hidden;
  find("settings").hidden = !isOpen;
  find("open-settings").setAttribute("aria-expanded", String(isOpen));
});
find("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(find("key").value.trim());
  find("key").value = "";
  showError(null);
  meet().then(() => {
    if (messages.at(-1)?.role === "user") answer();
    else prompt.focus();
  }, showError);
});

for (const message of messages) show(message).finish(message);
buttons();
origins(settings.values.origins);
chat.scrollTop = chat.scrollHeight;
resize();
prompt.focus();
meet().catch(showError);
