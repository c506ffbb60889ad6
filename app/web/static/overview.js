// The cluster at a glance: workers and the servers they host, what moves, what happened.

import { h } from "./dom.js";
import { count, list, rate, span } from "./format.js";
import { badge, empty, eventList, phases, section, sparkline, tenantLink, tile } from "./parts.js";
import { store, viewChange } from "./store.js";
import { abort } from "./actions.js";

// They are drawn above while they matter.
const STEPS = new Set(["migration-phase", "marker-published", "marker-reached", "stream-held", "server-normal"]);

function stat(name, value, { tone = "", note = "", wide = null, href = null } = {}) {
  return h("div", { class: `stat ${tone} ${wide ? "wide" : ""}`, key: `stat-${name}` },
    h("span", { class: "label" }, href ? h("a", { href }, name) : name), h("strong", null, value), note ? h("small", null, note) : null, wide);
}

function stats(status, figures) {
  const down = status.servers.filter((one) => !one.up).length;
  const hosted = status.servers.filter((one) => one.host).length;
  const behind = status.servers.reduce((sum, one) => sum + (one.lag || 0), 0);
  const silent = status.workers.length - figures.length;
  const now = store.rates.length ? store.rates[store.rates.length - 1] : 0;
  const failed = figures.reduce((sum, one) => sum + (one.failed || 0), 0);
  return h("div", { class: "stats" },
    stat("Results a second", rate(now), { wide: sparkline(store.rates), note: failed ? `${count(failed)} failed since the start` : "none failed" }),
    stat("Workers", count(status.workers.length), { tone: silent > 0 ? "warn" : "", note: silent > 0 ? `${silent} silent` : "all answer" }),
    stat("Servers up", `${status.servers.length - down}/${status.servers.length}`, { tone: down || hosted < status.servers.length ? "warn" : "", note: hosted < status.servers.length ? `${status.servers.length - hosted} without a host` : `view ${status.view}` }),
    stat("Behind", count(behind), { tone: behind > 10000 ? "warn" : "", note: "tasks to do" }),
    stat("Waiting", count(status.waiting), { note: "running or to retry" }),
    stat("Parked", count(status.parked), { tone: status.parked ? "move" : "", note: status.moving === 1 ? "1 tenant moves" : `${status.moving ? count(status.moving) : "no"} tenants move` }));
}

function workerCard(worker, status, figures) {
  const own = figures.find((one) => one.worker === worker.name);
  const servers = status.servers.filter((one) => one.host === worker.name);
  const ready = own && own.ready;
  const state = !own ? badge("bad", "silent") : ready ? badge("good", "serving") : badge("warn", "restoring");
  return h("article", { class: `worker ${own ? "" : "silent"}`, key: `worker-${worker.name}` },
    h("header", null, h("h3", null, worker.name), state),
    h("p", { class: "about" }, own ? `${rate(own.rate || 0)}/s · up ${span(own.uptime_s)}` : "does not answer", h("br"), `routers ${list(worker.routers)}`),
    servers.length ? h("div", { class: "tiles" }, servers.map((one) => tile(one))) : empty("Hosts no server."));
}

function workers(status, figures) {
  const lost = status.servers.filter((one) => !one.host || !status.workers.some((worker) => worker.name === one.host));
  return section("Workers and their servers", status.warming && status.warming.length ? badge("move", `${status.warming.length} places change hands`) : null,
    h("div", { class: "workers" },
      status.workers.map((worker) => workerCard(worker, status, figures)),
      lost.length ? h("article", { class: "worker silent", key: "worker-none" }, h("header", null, h("h3", null, "Without a host"), badge("bad", "waiting")), h("p", { class: "about" }, "Another worker takes them over."), h("div", { class: "tiles" }, lost.map((one) => tile(one)))) : null));
}

function migrationRow(move) {
  const elapsed = (store.stateAt - new Date(move.started).getTime()) / 1000;
  return h("li", { class: "move-row", key: `move-${move.tenant}` },
    h("div", { class: "who" }, tenantLink(move.tenant), h("span", { class: "route" }, ` ${move.from} → ${move.to}`)),
    phases(move.state),
    h("p", { class: "about" }, `${count(move.parked)} parked`, move.redelayed ? ` · delayed again ${count(move.redelayed)}×` : "", ` · ${span(elapsed)}`),
    move.state === "releasing" ? null : h("button", { type: "button", class: "quiet small", onclick: () => abort(move.tenant), "aria-label": `Abort the move of ${move.tenant}` }, "Abort"));
}

const WORDS = { before: "before the marker", reached: "markers read", holds: "waiting for hand-offs", closed: "done" };

function viewPanel(status) {
  const change = viewChange();
  if (!change) return null;
  const done = change.final !== null || change.closed.size >= status.servers.length;
  const what = change.failed.length ? `server ${list(change.failed)} fails` : change.restored.length ? `server ${list(change.restored)} returns` : "servers change";
  const age = (store.stateAt - new Date(change.at).getTime()) / 1000;
  if (done && age > 120) return null;
  const states = status.servers.map(({ server }) => [server, change.closed.has(server) ? "closed" : change.held.has(server) ? "holds" : change.reached.has(server) ? "reached" : "before"]);
  return h("div", { class: `view ${done ? "done" : ""}`, key: "view" },
    h("h3", null, `View ${change.view}: ${what} `, change.wrong ? badge("bad", change.wrong.event.replace(/-/g, " ")) : done ? badge("good", "closed") : badge("move", "in flight")),
    h("p", { class: "about" }, `${change.routers.size === 1 ? "1 router has" : `${change.routers.size} routers have`} sent markers into every stream`),
    h("ol", { class: "markers", "aria-label": "Servers in this view" }, states.map(([server, state]) => {
      const words = state === "holds" ? `holds for ${change.held.get(server)}` : WORDS[state];
      return h("li", { class: state, key: `marker-${server}`, title: `server ${server}: ${words}`, "aria-label": `server ${server}: ${words}` }, server);
    })),
    h("ul", { class: "legend" }, Object.entries(WORDS).map(([state, words]) => {
      const amount = states.filter(([, one]) => one === state).length;
      return amount ? h("li", { class: state, key: state }, `${count(amount)} ${words}`) : null;
    })));
}

function others(figures) {
  const sum = (name) => figures.reduce((all, one) => all + (one[name] || 0), 0);
  const card = (title, href, amount, what) => h(href ? "a" : "div", { class: "card other", href, key: `other-${title}` }, h("h2", null, title), h("p", null, h("strong", null, count(amount)), ` ${what}`));
  return h("div", { class: "others" },
    card("Transfers", "#/transfers", sum("transfers"), "not whole yet"),
    card("Exchanges", "#/exchanges", sum("exchanges"), "not over"),
    card("Dead letters", null, sum("dead_letters"), "since the start"));
}

function moves(status) {
  const view = viewPanel(status);
  const more = (status.moving ?? 0) - status.migrations.length;
  return section("On the move", null,
    view,
    status.migrations.length ? h("ol", { class: "moves" }, status.migrations.map(migrationRow)) : view ? null : empty("Nothing moves: every tenant is at home."),
    more > 0 ? h("p", { class: "about" }, `and ${count(more)} more`) : null);
}

export function draw() {
  const { status, figures } = store.state;
  return [
    stats(status, figures),
    h("div", { class: "columns" },
      h("div", null, workers(status, figures), others(figures)),
      h("div", { class: "aside" },
        moves(status),
        section("What happened", h("a", { href: "#/events" }, "all events"), eventList(store.events.filter(({ event }) => !STEPS.has(event.event)).slice(0, 12), "Nothing yet.")))),
  ];
}
