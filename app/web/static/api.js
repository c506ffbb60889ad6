// Requests to the worker that served this page, with the token if there is one.

const TOKEN = "holdfast-token";

export class Refused extends Error {
  constructor(status, body) {
    super(body.message || `answer ${status}`);
    this.status = status;
    this.word = body.error || "error";
  }
}

export function token() {
  return sessionStorage.getItem(TOKEN) || "";
}

export function keepToken(text) {
  if (text) sessionStorage.setItem(TOKEN, text);
  else sessionStorage.removeItem(TOKEN);
}

export function headers(more = {}) {
  const own = token();
  return own ? { Authorization: `Bearer ${own}`, ...more } : more;
}

async function read(reply) {
  let body = {};
  try {
    body = await reply.json();
  } catch {
    body = { message: `the answer is no JSON (${reply.status})` };
  }
  if (!reply.ok) throw new Refused(reply.status, body);
  return body;
}

export async function get(path, signal) {
  return read(await fetch(path, { headers: headers(), signal, cache: "no-store" }));
}

export async function order(command) {
  return read(
    await fetch("/api/commands", {
      method: "POST",
      headers: headers({ "Content-Type": "application/json" }),
      body: JSON.stringify(command),
    }),
  );
}

// A dot segment is a step in the tree to whoever passes the request on.
export function segment(name) {
  return encodeURIComponent(name).replace(/\./g, "%2E");
}
