// Tenants, transfers, exchanges, events.

import { h } from "./dom.js";
import { bytes, clock, count, list } from "./format.js";
import { badge, bar, eventList, fileName, section, serverLink, table, tenantLink } from "./parts.js";
import { store } from "./store.js";

const SHOWN_MAX = 300;
const filters = { tenants: "", transfers: "", exchanges: "", events: "" };
let held = null; // events as they were when the list was stopped

function filter(name, label, redraw, ...more) {
  function change(event) {
    filters[name] = event.target.value;
    redraw();
  }
  return h("div", { class: "inline tools" },
    h("label", { for: `filter-${name}`, class: "unseen" }, label),
    h("input", { id: `filter-${name}`, type: "search", placeholder: "Filter", oninput: change, value: filters[name], autocomplete: "off", spellcheck: "false", autocapitalize: "none" }),
    more);
}

function matching(name, rows, text) {
  const wanted = filters[name].toLowerCase();
  return wanted ? rows.filter((row) => text(row).toLowerCase().includes(wanted)) : rows;
}

function cut(rows, all) {
  return rows.length > SHOWN_MAX ? h("p", { class: "about" }, `The first ${SHOWN_MAX} of ${count(rows.length)}${rows.length < all ? " that match" : ""}; filter to see others.`) : null;
}

function title(text, amount) {
  return h("div", { class: "head", key: `head-${text}` }, h("h1", null, text, amount === null ? null : [" ", badge("outline", count(amount))]));
}

function problem(entry) {
  return entry.error ? h("p", { class: "problem", role: "alert" }, entry.error) : null;
}

export function tenants(use, redraw) {
  const entry = use("/api/tenants", 4000);
  const all = entry.data ? entry.data.tenants : [];
  const rows = matching("tenants", all, (one) => one.tenant);
  return [
    title("Tenants", entry.data ? all.length : null),
    filter("tenants", "Filter by name", redraw), problem(entry),
    h("section", { class: "card flush" }, table("Tenants",
      [{ title: "Tenant" }, { title: "Home" }, { title: "State" }, { title: "Moves", number: true }],
      rows.slice(0, SHOWN_MAX).map((one) => ({ key: one.tenant, cells: [tenantLink(one.tenant), serverLink(one.home), one.state === "settled" ? "settled" : badge("move", one.state), one.epoch] })),
      entry.data ? (all.length ? "None has such a name." : "No tenant has a session yet. Send a task: holdfast send acme cart-7 echo") : "Looking …")),
    cut(rows, all.length),
  ];
}

const TRANSFER_TONES = { done: "good", failed: "bad", conveying: "move", completing: "move", floating: "warn" };

export function transfers(use, redraw) {
  const entry = use("/api/transfers", 1500);
  const all = entry.data ? entry.data.transfers : [];
  const rows = matching("transfers", all, (one) => `${one.connection} ${one.state} ${one.worker || ""} ${one.tenant}`);
  return [
    title("Transfers", entry.data ? all.length : null),
    filter("transfers", "Filter by connection, state, worker or tenant", redraw), problem(entry),
    h("section", { class: "card flush" }, table("Transfers",
      [{ title: "Connection" }, { title: "State" }, { title: "Progress" }, { title: "Size", number: true }, { title: "Worker" }],
      rows.slice(0, SHOWN_MAX).map((one) => ({ key: one.connection, cells: [
        fileName(one.metadata) ? h("span", null, h("span", { class: "name" }, fileName(one.metadata)), h("span", { class: "id" }, one.connection)) : h("span", { class: "name" }, one.connection),
        badge(TRANSFER_TONES[one.state] || "outline", one.reason ? `${one.state}: ${one.reason}` : one.state),
        h("span", { class: "progress" }, bar(one.size ? one.offset / one.size : one.state === "done" ? 1 : 0, `progress of ${one.connection}`), h("small", null, one.size ? `${Math.floor((100 * one.offset) / one.size)} %` : bytes(one.offset))),
        bytes(one.size), one.worker || "–"] })),
      entry.data ? (all.length ? "None matches." : "There are no transfers. Begin one: holdfast transfer put FILE ID") : "Looking …")),
    cut(rows, all.length),
  ];
}

/** A name in a narrow column: in one line, and whole in its title. */
function word(text) {
  return h("span", { class: "word", title: text }, text);
}

export function exchanges(use, redraw) {
  const entry = use("/api/exchanges", 1500);
  const all = entry.data ? entry.data.exchanges : [];
  const rows = matching("exchanges", all, (one) => `${one.exchange} ${one.client} ${one.server || ""} ${one.state}`);
  const managers = entry.data ? entry.data.managers : [];
  return [
    title("Exchanges", entry.data ? all.length : null),
    filter("exchanges", "Filter by exchange, client, server or state", redraw), problem(entry),
    h("section", { class: "card flush", key: "exchanges" }, table("Exchanges",
      [{ title: "Exchange" }, { title: "State" }, { title: "Client" }, { title: "Server" }, { title: "Answered" }, { title: "Who waits for whom" }],
      rows.slice(0, SHOWN_MAX).map((one) => ({ key: one.exchange, cells: [
        h("span", { class: "name" }, one.exchange), badge(one.state === "open" ? "move" : one.state === "finished" ? "good" : "outline", one.state), word(one.client), word(one.server || "–"),
        h("span", { class: "progress" }, bar(one.submitted ? one.answered / one.submitted : 0, `answered of ${one.exchange}`), h("small", null, `${one.answered} of ${one.submitted}`)), one.waiting] })),
      entry.data ? (all.length ? "None matches." : "There are no exchanges.") : "Looking …")),
    cut(rows, all.length),
    section("Managers", null, table("Managers",
      [{ title: "Manager" }, { title: "Host" }, { title: "Backups" }, { title: "Backup behind", number: true }],
      managers.map((one) => ({ key: one.manager, cells: [`manager ${one.manager}`, one.worker || badge("bad", "nobody"), list(one.backups), one.backup_lag_ms === null ? "–" : `${count(one.backup_lag_ms)} ms`] })), "Looking …")),
  ];
}

export function events(_use, redraw) {
  const rows = matching("events", held || store.events, ({ event }) => JSON.stringify(event));
  function hold() {
    held = held ? null : [...store.events];
    redraw();
  }
  return [
    title("Events", null),
    filter("events", "Filter by any word", redraw, h("button", { type: "button", class: "quiet", onclick: hold, "aria-pressed": held ? "true" : "false" }, held ? "Go on" : "Hold still")),
    h("section", { class: "card" }, eventList(rows.slice(0, SHOWN_MAX), store.events.length ? "None matches." : "Nothing has happened yet.")),
    h("p", { class: "about" }, `The last ${count(store.events.length)} events since ${store.events.length ? clock(store.events[store.events.length - 1].event.at) : "now"}; all of them: holdfast events`),
  ];
}
