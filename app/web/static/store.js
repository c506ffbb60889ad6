// What is known: the last state, the events that were seen, and what can be concluded from them.

const EVENTS_MAX = 1000;
const RATES_MAX = 90;

export const store = {
  link: "waiting",
  state: null,
  stateAt: 0,
  events: [], // newest first: { id, event }
  rates: [], // results a second, oldest first
  ours: new Map(), // commands that were given here: id -> what
};

let before = null;

export function takeState(state, now) {
  const counted = new Map(state.figures.map((one) => [one.worker, one]));
  if (before) {
    let results = 0;
    for (const [name, one] of counted) {
      const earlier = before.counted.get(name);
      // By the worker's own clock. One that was started again counts from 0.
      const seconds = earlier ? one.uptime_s - earlier.uptime_s : 0;
      one.rate = seconds > 0.2 ? Math.max(0, one.results - earlier.results) / seconds : earlier && seconds >= 0 ? earlier.rate || 0 : 0;
      results += one.rate;
    }
    store.rates.push(results);
    if (store.rates.length > RATES_MAX) store.rates.shift();
  }
  before = { counted };
  store.state = state;
  store.stateAt = now;
}

export function takeEvent(id, event) {
  store.events.unshift({ id, event });
  if (store.events.length > EVENTS_MAX) store.events.pop();
}

// The change of view that is under way, or the last one: which servers have come how far.
export function viewChange() {
  const found = [...store.events].reverse();
  const start = found.findLast(({ event }) => typeof event.view === "number" && (event.event === "server-failed" || event.event === "marker-published"));
  if (!start) return null;
  const view = start.event.view;
  const change = { view, failed: [], restored: [], routers: new Set(), reached: new Set(), held: new Map(), closed: new Set(), at: null, final: null, wrong: null };
  for (const { event } of found) {
    if (event.view !== view) continue;
    change.at ??= event.at;
    if (event.event === "server-failed") change.failed.push(event.server);
    else if (event.event === "marker-published") change.routers.add(event.router);
    else if (event.event === "marker-reached") change.reached.add(event.server);
    else if (event.event === "stream-held") change.held.set(event.server, event.source);
    else if (["server-closed", "server-normal", "server-restored"].includes(event.event)) {
      if (event.final) change.final = event;
      else change.closed.add(event.server);
      if (event.event === "server-restored" && !change.restored.includes(event.server)) change.restored.push(event.server);
    } else if (event.event === "view-stuck" || event.event === "hand-off-wrong") change.wrong = event;
  }
  return change;
}
