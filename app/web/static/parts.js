// Pieces that several views are made of.

import { h } from "./dom.js";
import { bytes, clock, count } from "./format.js";
import { segment } from "./api.js";

export function tenantLink(tenant) {
  return h("a", { href: `#/tenant/${segment(tenant)}`, class: "name" }, tenant);
}

export function serverLink(number) {
  return h("a", { href: `#/server/${number}`, class: "name" }, `server ${number}`);
}

export function section(title, more, ...content) {
  return h("section", { class: "card", key: `section-${title}` }, h("header", null, h("h2", null, title), more || null), content);
}

export function empty(text) {
  return h("p", { class: "empty" }, text);
}

export function badge(kind, text) {
  return h("span", { class: `badge ${kind}` }, text);
}

export function facts(pairs) {
  return h("dl", { class: "facts" }, pairs.filter((pair) => pair !== null).map(([name, value]) => h("div", null, h("dt", null, name), h("dd", null, value))));
}

export function table(label, columns, rows, none) {
  if (!rows.length) return empty(none);
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label },
    h("table", null,
      h("thead", null, h("tr", null, columns.map((column) => h("th", { scope: "col", class: column.number ? "number" : null }, column.title)))),
      h("tbody", null, rows.map((row) => h("tr", { key: row.key }, row.cells.map((cell, at) => h("td", { class: columns[at].number ? "number" : null, "data-title": columns[at].title }, cell)))))));
}

export function bar(part, label) {
  const percent = Math.max(0, Math.min(100, Math.round(part * 100)));
  return h("span", { class: "bar", role: "progressbar", "aria-valuenow": percent, "aria-valuemin": "0", "aria-valuemax": "100", "aria-label": label, vars: { "--part": `${percent}%` } }, h("span", null));
}

const PHASES = [["copying", "Copy"], ["cutting", "Cut"], ["releasing", "Release"]];

// The phases of a move: what is behind it, where it is, what is ahead.
export function phases(state) {
  const at = PHASES.findIndex(([name]) => name === state);
  return h("ol", { class: "phases", "aria-label": `phase: ${state}` }, PHASES.map(([, title], index) =>
    h("li", { class: index < at ? "done" : index === at ? "now" : "", "aria-current": index === at ? "step" : null }, title)));
}

// A server as a tile: its number, and how far it is behind.
export function tile(server, mark) {
  const about = [`server ${server.server}`, server.up ? "up" : "down", server.host ? `on ${server.host}` : "without a host"];
  about.push(server.lag === null || server.lag === undefined ? "lag not known" : `${count(server.lag)} behind`);
  if (server.standbys && server.standbys.length) about.push(`standby ${server.standbys.join(", ")}`);
  const kind = !server.host ? "lost" : server.up ? "up" : "down";
  const level = server.lag ? Math.min(100, Math.round(Math.log10(server.lag + 1) * 20)) : 0;
  const below = !server.host ? "no host" : !server.up ? "down" : mark || (server.lag ? `+${server.lag < 10000 ? count(server.lag) : `${Math.round(server.lag / 1000)}k`}` : "");
  return h("a", { key: `tile-${server.server}`, href: `#/server/${server.server}`, class: `tile ${kind}`, title: about.join(", "), "aria-label": about.join(", "), vars: { "--level": `${level}%` } },
    h("strong", null, server.server), h("small", null, below));
}

const BAD = /failed|rejected|lost|stuck|wrong|misplaced/;
const GOOD = /succeeded|restored|completed|normal|drained|acknowledged/;
const MOVE = /migration|marker|stream|view|server|hand-off/;

export function toneOf(event) {
  if (BAD.test(event.event)) return "bad";
  if (GOOD.test(event.event)) return "good";
  return MOVE.test(event.event) ? "move" : "plain";
}

const HIDDEN = new Set(["event", "at", "id", "final", "v", "tenant", "server", "certificate", "managers"]);

export function details(event) {
  if (event.event.startsWith("migration-") && typeof event.from === "number") {
    const said = [`${event.from} → ${event.to}`];
    if (event.reason) said.push(event.reason);
    if (event.rows) said.push(`${count(event.rows)} rows, ${bytes(event.bytes)}`);
    if (event.pause_ms) said.push(`pause ${count(event.pause_ms)} ms`);
    if (event.parked) said.push(`${count(event.parked)} parked`);
    return said.join(" · ");
  }
  if (event.event.startsWith("transfer-")) {
    return [fileName(event.metadata) || event.connection, event.size ? bytes(event.size) : "", event.reason || ""].filter(Boolean).join(" · ");
  }
  return Object.entries(event)
    .filter(([name, value]) => !HIDDEN.has(name) && value !== null && value !== undefined && value !== "")
    .map(([name, value]) => `${name.replace(/_/g, " ")} ${typeof value === "object" ? JSON.stringify(value) : value}`)
    .join(" · ");
}

// The header Upload-Metadata of tus: pairs of a key and a text in base64.
export function fileName(metadata) {
  const found = String(metadata || "").split(",").map((pair) => pair.trim().split(" ")).find(([key]) => key === "filename" || key === "name");
  if (!found || !found[1]) return "";
  try {
    return new TextDecoder().decode(Uint8Array.from(atob(found[1]), (one) => one.charCodeAt(0)));
  } catch {
    return "";
  }
}

export function eventRow({ id, event }) {
  const tone = toneOf(event);
  return h("li", { key: `event-${id}`, class: `event ${tone}` },
    h("time", { datetime: event.at, title: event.at }, clock(event.at)),
    h("div", null,
      h("span", { class: "what" }, String(event.event).replace(/-/g, " ")),
      event.tenant ? [" ", tenantLink(event.tenant)] : null,
      typeof event.server === "number" ? [" ", serverLink(event.server)] : null,
      event.final ? [" ", badge("outline", "final")] : null,
      h("p", null, details(event))));
}

export function eventList(entries, none) {
  return entries.length ? h("ol", { class: "events" }, entries.map(eventRow)) : empty(none);
}

export function sparkline(values) {
  // A line of one point would say that nothing happens.
  if (values.length < 2) return h("svg", { class: "spark", "aria-hidden": "true" });
  const most = Math.max(1, ...values);
  const line = values.map((value, at) => `${((at / (values.length - 1)) * 120).toFixed(1)},${(27 - (value / most) * 24).toFixed(1)}`).join(" ");
  return h("svg", { class: "spark", viewBox: "0 0 120 28", preserveAspectRatio: "none", "aria-hidden": "true" },
    h("path", { d: `M0,28 L${line.replace(/ /g, " L")} L120,28 Z`, class: "area" }), h("polyline", { points: line }));
}
