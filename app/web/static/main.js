// The console: the stream, the address, and which view draws.

import { h, patch } from "./dom.js";
import { Refused, get, keepToken, segment, token } from "./api.js";
import { answered, askForToken } from "./actions.js";
import { store, takeEvent, takeState } from "./store.js";
import { Stream } from "./stream.js";
import * as overview from "./overview.js";
import * as pages from "./pages.js";
import * as lists from "./lists.js";

const main = document.getElementById("main");
const link = document.getElementById("link");
const tabs = document.getElementById("tabs");

const TABS = [["", "Overview"], ["tenants", "Tenants"], ["transfers", "Transfers"], ["exchanges", "Exchanges"], ["events", "Events"]];

// -- what views ask for besides the stream ------------------------------------------------------------------------------

const HOT_MS = 600;
const asked = new Map();

function use(path, everyMs) {
  let entry = asked.get(path);
  if (!entry) {
    entry = { data: null, error: "", at: 0, busy: false, tookMs: 0, hotUntil: 0 };
    asked.set(path, entry);
    if (asked.size > 50) asked.delete(asked.keys().next().value);
  }
  // What takes long to answer is asked for less often: the worker has other things to do. But for what was in an event a
  // moment ago: the first answer may be from before it.
  const begun = Date.now();
  const pauseMs = entry.hotUntil > begun ? HOT_MS : Math.max(everyMs, 20 * entry.tookMs);
  if (!entry.busy && begun - entry.at > pauseMs) {
    entry.busy = true;
    get(path)
      .then((data) => {
        entry.data = data;
        entry.error = "";
      })
      .catch((error) => {
        entry.error = error instanceof Refused ? error.message : "The worker does not answer; trying again.";
        if (error instanceof Refused && error.status === 404) entry.data = null;
      })
      .finally(() => {
        entry.busy = false;
        entry.at = Date.now();
        entry.tookMs = entry.at - begun;
        draw();
      });
  }
  return entry;
}

// -- the address --------------------------------------------------------------------------------------------------------

function place() {
  const parts = location.hash.replace(/^#\/?/, "").split("/");
  try {
    return parts.map(decodeURIComponent);
  } catch {
    return [""];
  }
}

function view([name, ...rest]) {
  switch (name) {
    case "": return ["Overview", overview.draw()];
    case "tenants": return ["Tenants", lists.tenants(use, draw)];
    case "tenant": return [rest[0], pages.tenant(use, rest[0] || "")];
    case "session": return [rest[1], pages.session(use, rest[0] || "", rest[1] || "")];
    case "server": return [`Server ${rest[0]}`, pages.server(use, rest[0] || "")];
    case "transfers": return ["Transfers", lists.transfers(use, draw)];
    case "exchanges": return ["Exchanges", lists.exchanges(use, draw)];
    case "events": return ["Events", lists.events(use, draw)];
    default: return ["Nothing", [h("p", { class: "empty" }, "There is no such page. ", h("a", { href: "#/" }, "Overview"))]];
  }
}

const BELONGS = { tenant: "tenants", session: "tenants", server: "" };

function drawFrame(current) {
  const at = BELONGS[current] ?? current;
  patch(tabs, TABS.map(([name, title]) => h("a", { key: name || "overview", href: `#/${name}`, "aria-current": name === at ? "page" : null }, title)));
  const words = { live: "live", lost: "reconnecting …", waiting: "connecting …", refused: "token needed" }[store.link];
  const told = store.state ? `${store.state.status.namespace} · told by ${store.state.told_by}` : "";
  patch(link, [h("span", { class: `dot ${store.link}` }), h("span", { class: "words" }, words), h("span", { class: "told" }, told)]);
  document.body.classList.toggle("stale", store.link !== "live" && store.state !== null);
}

let drawing = false;

function draw() {
  // Many events may come at once: one picture shows them all.
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    drawNow();
  });
}

function drawNow() {
  const where = place();
  drawFrame(where[0]);
  if (!store.state) return;
  const [title, nodes] = view(where);
  document.title = where[0] ? `${title} · Holdfast` : `Holdfast · ${store.state.status.namespace}`;
  patch(main, nodes);
}

window.addEventListener("hashchange", () => {
  // An order is about what its view shows: the way back closes it as well. The token is asked for wherever one is.
  document.querySelector("dialog.asks[open]")?.close();
  main.replaceChildren();
  drawNow();
  window.scrollTo(0, 0);
  main.focus({ preventScroll: true });
});

// -- search -------------------------------------------------------------------------------------------------------------

const query = document.getElementById("query");
const known = document.getElementById("known");

// A name may have spaces: the longest known tenant that the text begins with is the tenant.
function meant(text) {
  const entry = asked.get("/api/tenants");
  const names = entry && entry.data ? entry.data.tenants.map((one) => one.tenant) : [];
  if (names.includes(text)) return [text, ""];
  const begins = names.filter((name) => text.startsWith(`${name} `) || text.startsWith(`${name}/`)).sort((a, b) => b.length - a.length);
  if (begins.length) return [begins[0], text.slice(begins[0].length + 1).trim()];
  const cut = text.search(/[\s/]/);
  return cut > 0 ? [text.slice(0, cut), text.slice(cut + 1).trim()] : [text, ""];
}

document.getElementById("search").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = query.value.trim();
  if (!text) return;
  const [tenant, session] = meant(text);
  query.value = "";
  query.blur();
  location.hash = session ? `#/session/${segment(tenant)}/${segment(session)}` : `#/tenant/${segment(tenant)}`;
});

query.addEventListener("focus", () => {
  const entry = use("/api/tenants", 3000);
  const names = entry.data ? entry.data.tenants.slice(0, 200) : [];
  patch(known, names.map((one) => h("option", { key: one.tenant, value: one.tenant })));
});

document.addEventListener("keydown", (event) => {
  const typing = event.target instanceof HTMLElement && event.target.closest("input, select, textarea, dialog");
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    query.focus();
  } else if (event.key === "Escape" && event.target === query) {
    query.blur();
  }
});

// -- light and dark -----------------------------------------------------------------------------------------------------

const theme = document.getElementById("theme");
const THEMES = ["auto", "light", "dark"];

function drawTheme(name) {
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  theme.setAttribute("aria-label", `Colours: ${name}`);
  theme.title = `Colours: ${name}`;
  const shape = { auto: "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18Z", light: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8Z M12 2v2 M12 20v2 M2 12h2 M20 12h2 M5 5l1.4 1.4 M17.6 17.6 19 19 M5 19l1.4-1.4 M17.6 6.4 19 5", dark: "M20 14.5A8.5 8.5 0 0 1 9.5 4a8.5 8.5 0 1 0 10.5 10.5Z" }[name];
  patch(theme, [h("svg", { viewBox: "0 0 24 24", "aria-hidden": "true", class: name }, h("path", { d: shape }), name === "auto" ? h("path", { class: "half", d: "M12 3a9 9 0 0 1 0 18Z" }) : null)]);
}

theme.addEventListener("click", () => {
  const next = THEMES[(THEMES.indexOf(localStorage.getItem("holdfast-theme") || "auto") + 1) % THEMES.length];
  localStorage.setItem("holdfast-theme", next);
  drawTheme(next);
});

// -- the stream ---------------------------------------------------------------------------------------------------------

const stream = new Stream({
  onState(state) {
    takeState(state, Date.now());
    draw();
  },
  onEvent(id, event) {
    takeEvent(id, event);
    answered(event);
    if (event.tenant) {
      const entry = asked.get(`/api/tenants/${segment(event.tenant)}`);
      if (entry) {
        entry.at = 0;
        entry.hotUntil = Date.now() + 8 * HOT_MS;
      }
    }
    draw();
  },
  onLink(word) {
    store.link = word;
    if (word === "refused") {
      const again = token() !== "";
      keepToken("");
      askForToken(again, () => stream.run());
    }
    draw();
  },
});

drawTheme(localStorage.getItem("holdfast-theme") || "auto");
drawNow();
stream.run();
