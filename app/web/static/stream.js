// The stream of states and events. Read with fetch, because EventSource cannot send a token. It comes back by itself, to
// whichever worker answers then, and goes on behind the last event that was seen.

import { Refused, headers } from "./api.js";

const QUIET_MS = 6000; // The worker sends a state every second.
const AGAIN_MS = [250, 500, 1000, 2000, 3000];

export class Stream {
  constructor({ onState, onEvent, onLink }) {
    this.onState = onState;
    this.onEvent = onEvent;
    this.onLink = onLink;
    this.seen = null;
    this.failures = 0;
    this.stopped = false;
  }

  async run() {
    while (!this.stopped) {
      try {
        await this.read();
        this.failures = 0;
      } catch (error) {
        if (error instanceof Refused && error.status === 401) {
          this.onLink("refused");
          return;
        }
      }
      if (this.stopped) return;
      this.onLink("lost");
      await new Promise((done) => setTimeout(done, AGAIN_MS[Math.min(this.failures++, AGAIN_MS.length - 1)]));
    }
  }

  stop() {
    this.stopped = true;
    if (this.abort) this.abort.abort();
  }

  async read() {
    this.abort = new AbortController();
    const given = headers(this.seen === null ? {} : { "Last-Event-ID": String(this.seen) });
    this.watch();
    try {
      const reply = await fetch("/api/live?last=300", { headers: given, signal: this.abort.signal, cache: "no-store" });
      if (!reply.ok) throw new Refused(reply.status, {});
      const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return;
        this.watch();
        const parts = (rest + value).split("\n\n");
        rest = parts.pop();
        for (const part of parts) this.take(part);
      }
    } finally {
      clearTimeout(this.timer);
    }
  }

  watch() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.abort.abort(), QUIET_MS);
  }

  take(text) {
    let kind = "message";
    let id = null;
    let data = "";
    for (const line of text.split("\n")) {
      if (line.startsWith("event: ")) kind = line.slice(7);
      else if (line.startsWith("id: ")) id = Number(line.slice(4));
      else if (line.startsWith("data: ")) data += line.slice(6);
    }
    if (!data) return;
    let found;
    try {
      found = JSON.parse(data);
    } catch {
      return;
    }
    if (kind === "state") {
      this.failures = 0;
      this.onLink("live");
      this.onState(found);
    } else if (kind === "event" && id !== null && (this.seen === null || id > this.seen)) {
      this.seen = id;
      this.onEvent(id, found);
    }
  }
}
