// Orders: what each does in plain words, a confirmation, and what came of it.

import { h, patch } from "./dom.js";
import { keepToken, order } from "./api.js";
import { store } from "./store.js";

const box = document.getElementById("ask");
const toasts = document.getElementById("toasts");
const TOAST_MS = 9000;
const shown = [];

export function toast(kind, text) {
  shown.push({ key: `${Date.now()}-${Math.random()}`, kind, text });
  while (shown.length > 4) shown.shift();
  const mine = shown[shown.length - 1];
  drawToasts();
  setTimeout(() => {
    const at = shown.indexOf(mine);
    if (at >= 0) shown.splice(at, 1);
    drawToasts();
  }, TOAST_MS);
}

function drawToasts() {
  patch(toasts, shown.map((one) => h("p", { key: one.key, class: `toast ${one.kind}` }, one.text)));
}

const GOOD = new Set(["migration-succeeded", "migration-aborted", "server-closed", "server-restored", "server-drained", "migration-plan"]);

// A final event answers an order that was given here.
export function answered(event) {
  if (!event.final || !event.id || !store.ours.has(event.id)) return;
  const what = store.ours.get(event.id);
  store.ours.delete(event.id);
  const reason = event.reason ? `: ${event.reason}` : "";
  if (GOOD.has(event.event)) toast("good", `${what}: ${event.event.replace(/-/g, " ")}${event.pause_ms ? `, pause ${event.pause_ms} ms` : ""}`);
  else toast("bad", `${what}: ${event.event.replace(/-/g, " ")}${reason}`);
}

function freshId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (one) => one.toString(16).padStart(2, "0")).join("");
}

// Ask, then give the order. `fields` describes inputs; `order(values)` is the command.
export function confirm({ title, text, verb, danger = false, fields = [], command, what }) {
  const values = Object.fromEntries(fields.map((field) => [field.name, field.value ?? ""]));
  const id = freshId();
  let busy = false;
  let problem = "";

  async function send(event) {
    event.preventDefault();
    if (busy) return;
    busy = true;
    draw();
    try {
      // Known before it is sent: its end may be here before the answer to the order is.
      store.ours.set(id, what(values));
      await order({ ...command(values), id });
      if (store.ours.has(id)) toast("plain", `${what(values)}: ordered`);
      box.close();
    } catch (error) {
      store.ours.delete(id);
      problem = error.message || "the order was not taken";
      busy = false;
      draw();
    }
  }

  function input(field) {
    const change = (event) => {
      values[field.name] = event.target.value;
    };
    const label = h("label", { for: `ask-${field.name}` }, field.label);
    const control = field.options
      ? h("select", { id: `ask-${field.name}`, onchange: change }, field.options.map((one) => h("option", { value: one.value, selected: String(one.value) === String(values[field.name]) }, one.label)))
      : h("input", { id: `ask-${field.name}`, type: field.type || "text", min: field.min, step: field.step, placeholder: field.placeholder, oninput: change, autocomplete: "off" });
    return h("div", { class: "field" }, label, control);
  }

  function draw() {
    patch(box, [
      h("form", { method: "dialog", onsubmit: send },
        h("h2", { id: "ask-title" }, title),
        text.map((line) => h("p", null, line)),
        fields.map(input),
        problem ? h("p", { class: "problem", role: "alert" }, problem) : null,
        h("div", { class: "buttons" },
          h("button", { type: "button", class: "quiet", onclick: () => box.close() }, "Cancel"),
          h("button", { type: "submit", class: danger ? "danger" : "primary", disabled: busy }, busy ? "…" : verb))),
    ]);
  }

  box.oncancel = null;
  box.classList.add("asks");
  draw();
  box.showModal();
  const first = box.querySelector("select, input") || box.querySelector("button");
  if (first) first.focus();
}

export function askForToken(again, retry) {
  function send(event) {
    event.preventDefault();
    keepToken(box.querySelector("#ask-token").value);
    box.close();
    retry();
  }
  patch(box, [
    h("form", { method: "dialog", onsubmit: send },
      h("h2", { id: "ask-title" }, "This cluster asks for a token"),
      h("p", null, "HOLDFAST_TOKEN of its workers. It is kept in this tab until you close it."),
      again ? h("p", { class: "problem", role: "alert" }, "This token is not the right one.") : null,
      h("div", { class: "field" }, h("label", { for: "ask-token" }, "Token"), h("input", { id: "ask-token", type: "password", autocomplete: "off", required: true })),
      h("div", { class: "buttons" }, h("button", { type: "submit", class: "primary" }, "Go on"))),
  ]);
  // Without a token there is nothing to see behind it.
  box.classList.remove("asks");
  box.oncancel = (event) => event.preventDefault();
  if (!box.open) box.showModal();
  box.querySelector("#ask-token").focus();
}

function serverOptions(except) {
  return (store.state?.status.servers || [])
    .filter((one) => one.server !== except && one.up)
    .map((one) => ({ value: one.server, label: `server ${one.server}${one.host ? `, on ${one.host}` : ", without a host"}` }));
}

export function migrate(tenant, home) {
  const options = serverOptions(home);
  confirm({
    title: `Move ${tenant}`,
    text: ["Its sessions go to another server while it is served. If that fails, everything is as it was."],
    verb: "Move",
    fields: [
      { name: "to", label: "To", options, value: options[0]?.value },
      { name: "max_pause", label: "Give up rather than stand still for longer than (seconds, optional)", type: "number", min: "0", step: "any" },
    ],
    command: (v) => ({ command: "migrate", tenant, to: Number(v.to), ...(v.max_pause ? { max_pause: Number(v.max_pause) } : {}) }),
    what: (v) => `Move ${tenant} to server ${v.to}`,
  });
}

export function abort(tenant) {
  confirm({
    title: `Abort the move of ${tenant}`,
    text: ["It stays where it was, and its parked tasks go back there in their order."],
    verb: "Abort the move",
    danger: true,
    command: () => ({ command: "abort-migration", tenant }),
    what: () => `Abort the move of ${tenant}`,
  });
}

export function undo(tenant) {
  confirm({
    title: `Take back the last move of ${tenant}`,
    text: ["It moves to where it came from, while it is served."],
    verb: "Move back",
    command: () => ({ command: "undo-migration", tenant }),
    what: () => `Move ${tenant} back`,
  });
}

export function fail(server) {
  confirm({
    title: `Declare server ${server} down`,
    text: [`Each of its sessions goes to the next server in its backup order, exactly once and in order. It stays down until you restore it.`],
    verb: "Declare it down",
    danger: true,
    command: () => ({ command: "fail-server", server }),
    what: () => `Fail server ${server}`,
  });
}

export function restore(server) {
  confirm({
    title: `Restore server ${server}`,
    text: ["Its sessions come home from the servers that took them over."],
    verb: "Restore",
    command: () => ({ command: "restore-server", server }),
    what: () => `Restore server ${server}`,
  });
}

export function drain(server) {
  confirm({
    title: `Empty server ${server}`,
    text: ["All its tenants are moved to other servers, some at a time, while they are served."],
    verb: "Empty it",
    danger: true,
    command: () => ({ command: "drain-server", server }),
    what: () => `Drain server ${server}`,
  });
}
