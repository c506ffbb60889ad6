// A tenant, a session, a server: where it is, its backup order, its history, and what can be done.

import { h } from "./dom.js";
import { segment } from "./api.js";
import { bytes, clock, count, list, span } from "./format.js";
import { badge, empty, eventList, facts, phases, section, serverLink, table, tenantLink, tile } from "./parts.js";
import { store } from "./store.js";
import { abort, drain, fail, migrate, restore, undo } from "./actions.js";

function button(text, onclick, kind = "quiet") {
  return h("button", { type: "button", class: kind, onclick }, text);
}

function head(kind, title, ...buttons) {
  return h("div", { class: "head", key: `head-${kind}-${title}` }, h("p", { class: "kind" }, kind), h("h1", null, title), h("div", { class: "buttons" }, buttons));
}

function step(one) {
  return h("span", { class: "name" }, `server ${one.from} → ${one.to}`);
}

function failure(entry) {
  return entry.error ? h("p", { class: "problem", role: "alert" }, entry.error) : empty("Looking …");
}

function mentions(test) {
  return store.events.filter(({ event }) => test(event)).slice(0, 60);
}

export function tenant(use, name) {
  const entry = use(`/api/tenants/${segment(name)}`, 2000);
  const found = entry.data;
  const known = store.state.status.migrations.find((one) => one.tenant === name);
  const move = known || (found && found.migration);
  const history = found ? [...found.history].reverse() : [];
  const last = history[0];
  return [
    head("Tenant", name,
      move ? (move.state === "releasing" ? null : button("Abort the move", () => abort(name), "danger")) : button("Move …", () => migrate(name, found ? found.home : null), "primary"),
      !move && last && !last.reason ? button("Take back the last move", () => undo(name)) : null),
    h("div", { class: "columns" },
      h("div", null,
        section("Where it is", found && found.state !== "settled" ? badge("move", found.state) : null,
          found ? facts([["Home", serverLink(found.home)], ["Host", found.host || "nobody"], ["Router", found.router], ["Epoch", `${found.epoch}, ${found.epoch === 1 ? "moved once" : found.epoch ? `moved ${found.epoch} times` : "never moved"}`]]) : failure(entry),
          move ? h("div", { class: "moving" }, h("p", { class: "route" }, `Moves from server ${move.from} to server ${move.to}`), phases(move.state), h("p", { class: "about" }, `${move.rows ? `${count(move.rows)} rows copied, ${bytes(move.bytes)} · ` : ""}${count(move.parked)} tasks parked · for ${span((store.stateAt - new Date(move.started).getTime()) / 1000)}`)) : null),
        section("Find one of its sessions", null, sessionForm(name)),
        section("History", null, table("History of moves",
          [{ title: "Move" }, { title: "At" }, { title: "Outcome" }, { title: "Epoch", number: true }],
          history.map((one) => ({ key: `${one.epoch}-${one.at}`, cells: [step(one), clock(one.at), one.reason ? badge("bad", one.reason) : badge("good", "moved"), one.epoch] })),
          "It was never moved."))),
      section("What happened to it", null, eventList(mentions((event) => event.tenant === name), "Nothing that is remembered."))),
  ];
}

function sessionForm(name) {
  function go(event) {
    event.preventDefault();
    const session = event.target.elements.session.value;
    if (session) location.hash = `#/session/${segment(name)}/${segment(session)}`;
  }
  return h("form", { class: "inline", onsubmit: go, autocomplete: "off" },
    h("label", { for: "session", class: "unseen" }, "Session"),
    h("input", { id: "session", name: "session", placeholder: "name of the session", maxlength: "200", spellcheck: "false", autocapitalize: "none" }),
    h("button", { type: "submit", class: "primary" }, "Find"));
}

export function session(use, name, id) {
  const entry = use(`/api/sessions/${segment(name)}/${segment(id)}`, 1000);
  const placed = use(`/api/tenants/${segment(name)}`, 4000);
  const found = entry.data;
  const history = placed.data ? [...placed.data.history].reverse().filter((one) => !one.reason) : [];
  const servers = store.state.status.servers;
  return [
    head("Session", id),
    h("p", { class: "of" }, "of tenant ", tenantLink(name)),
    h("div", { class: "columns" },
      h("div", null,
        section("Where it is", null, found
          ? facts([["Server", serverLink(found.server)], ["Worker", found.worker], ["Results so far", count(found.sequence)], ["Waiting tasks", count(found.waiting.length)]])
          : failure(entry)),
        found ? section("Backup order", null,
          h("p", { class: "about" }, "If its server is down, the first of these that is up has it."),
          h("ol", { class: "order" }, found.backup_order.map((number) => h("li", { key: `order-${number}`, class: number === found.server ? "here" : "" }, tile(servers[number] || { server: number, up: false, host: null }, number === found.server ? "here" : " "))))) : null,
        found && found.waiting.length ? section("What waits, and why", null, table("Waiting tasks",
          [{ title: "Task" }, { title: "Why" }, { title: "Attempt", number: true }, { title: "Due" }],
          found.waiting.map((one) => ({ key: `${one.source.partition}/${one.source.offset}`, cells: [`${one.source.partition}/${one.source.offset}`, one.phase, one.attempt, one.due_ms ? clock(one.due_ms) : "–"] })), "")) : null,
        section("Its moves", null, table("Moves of its tenant",
          [{ title: "Move" }, { title: "At" }, { title: "Epoch", number: true }],
          history.map((one) => ({ key: one.epoch, cells: [step(one), clock(one.at), one.epoch] })), "Its tenant was never moved."))),
      section("State", null, found ? h("pre", { class: "json", tabindex: "0" }, JSON.stringify(found.state, null, 2)) : empty("–"))),
  ];
}

export function server(use, text) {
  const number = Number(text);
  const found = store.state.status.servers.find((one) => one.server === number);
  const tenants = use("/api/tenants", 5000);
  if (!found) return [head("Server", text), empty("There is no such server.")];
  const homed = (tenants.data ? tenants.data.tenants : []).filter((one) => one.home === number);
  return [
    head("Server", number,
      found.up ? button("Declare it down …", () => fail(number), "danger") : button("Restore …", () => restore(number), "primary"),
      found.up ? button("Empty it …", () => drain(number)) : null),
    h("div", { class: "columns" },
      h("div", null,
        section("Where it is", found.up ? badge("good", "up") : badge("bad", "down"),
          facts([["Host", found.host || "nobody"], ["Standbys", list(found.standbys)], ["Behind", found.lag === null ? "not known" : `${count(found.lag)} tasks`], ["View", store.state.status.view]])),
        section("Tenants at home here", homed.length ? badge("outline", count(homed.length)) : null, table("Tenants at home here",
          [{ title: "Tenant" }, { title: "State" }, { title: "Epoch", number: true }],
          homed.slice(0, 500).map((one) => ({ key: one.tenant, cells: [tenantLink(one.tenant), one.state === "settled" ? "settled" : badge("move", one.state), one.epoch] })),
          tenants.data ? "None." : "Looking …"))),
      section("What happened here", null, eventList(mentions((event) => event.server === number || event.from === number || event.to === number), "Nothing that is remembered."))),
  ];
}
