// What survives a reload: the conversation and the settings, in this browser only.

const CHAT = "specdec.chat";
const SETTINGS = "specdec.settings";
const MOST_CHARACTERS = 1_500_000; // browsers keep about five million in all

export const DEFAULTS = {
  system: "", temperature: 0.7, verifyEffort: null, draftEffort: 0, maxTokens: "", seed: "", speculate: true, theme: "auto",
  origins: false,
};

function read(name, fallback) {
  try {
    return JSON.parse(localStorage.getItem(name)) ?? fallback;
  } catch {
    return fallback;
  }
}

export function loadSettings() {
  const kept = read(SETTINGS, {});
  return { ...DEFAULTS, ...Object.fromEntries(Object.entries(kept).filter(([name]) => name in DEFAULTS)) };
}

export function saveSettings(settings) {
  localStorage.setItem(SETTINGS, JSON.stringify(settings));
}

// Messages with a role and text; an answer that was cut off by a reload is marked as stopped.
export function loadChat() {
  const kept = read(CHAT, []);
  if (!Array.isArray(kept)) return [];
  return kept.filter((one) => ["user", "assistant"].includes(one?.role) && typeof one.content === "string");
}

// Without the colours of tokens; the oldest messages go when there is too much.
export function saveChat(messages) {
  const kept = messages.map(({ role, content, reasoning, facts, stopped }) => ({ role, content, reasoning, facts, stopped }));
  while (kept.length && JSON.stringify(kept).length > MOST_CHARACTERS) kept.shift();
  try {
    localStorage.setItem(CHAT, JSON.stringify(kept));
  } catch {
    localStorage.removeItem(CHAT); // the browser allows less: the chat goes on, and a reload begins a new one
  }
}
