// What the page asks of the server: its models, and streaming chat completions.

import { events } from "./events.js";

const KEY = "specdec.key";

// A refusal or failure that the server reported, or a failure of the network.
export class ServerError extends Error {
  constructor(message, status = 0, code = "") {
    super(message);
    this.status = status;
    this.code = code;
  }
}

export function useKey(key) {
  sessionStorage.setItem(KEY, key);
}

function headers() {
  const key = sessionStorage.getItem(KEY);
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: headers() });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server does not answer. Is it still running?");
  }
  if (response.ok) return response;
  const told = await response.json().catch(() => null);
  const retry = response.headers.get("Retry-After");
  const message = told?.error?.message ?? `The server answered with status ${response.status}.`;
  throw new ServerError(retry ? `${message} Try again in ${retry} s.` : message, response.status, told?.error?.code ?? "");
}

// The first model that the server has: its name, context, and the verify efforts that it allows.
export async function firstModel() {
  const list = await (await ask("/v1/models")).json();
  return list.data[0];
}

// Chunks of a chat completion, parsed.
export async function* complete(request, signal) {
  const body = JSON.stringify({ ...request, stream: true, stream_options: { include_usage: true }, token_origins: true });
  const response = await ask("/v1/chat/completions", { method: "POST", body, signal });
  for await (const data of events(response)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ServerError(chunk.error.message, 0, chunk.error.code ?? "");
    yield chunk;
  }
  throw new ServerError("The connection ended before the answer did.");
}
