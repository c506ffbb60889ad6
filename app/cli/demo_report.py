"""The demo's report: one page, self-contained, light or dark as its reader's screen is; pure."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

from app.cli.demo_pictures import latency_picture, places_picture, worker_colours
from app.cli.demo_story import Step, Story

_MEANING: Final = {
    "sent": "tasks that Kafka has confirmed",
    "performed": "answered with a result; the change of the session's state and the result are one transaction",
    "failed": "answered as failed, with a dead letter",
    "lost": "without a result",
    "doubled": "with two results",
    "out_of_order": "answered after a later one of the same session",
    "gaps": "numbers missing among the results of a session",
    "foreign": "results that answer nothing that was sent",
    "altered": "results that do not fit their task",
}
_FAULTS: Final = ("lost", "doubled", "out_of_order", "gaps", "foreign", "altered")

_STYLE: Final = """
:root { color-scheme: light dark;
  --page: #fbfaf8; --card: #ffffff; --ink: #1c2024; --soft: #60666d; --rule: #e3e0da; --shade: #2463c214;
  --bad: #c62f2f; --badshade: #c62f2f1c; --good: #187a4c; --line: #2463c2; --area: #2463c22e; --hatch: #ffffffa6;
  --w0: #3b76d6; --w1: #e2932a; --w2: #2a9d82; --w3: #a25ac4; --w4: #cf4f6f; --w5: #7d8a2b; --nobody: #c9c5bd; }
@media (prefers-color-scheme: dark) { :root {
  --page: #14171a; --card: #1b1f24; --ink: #e7e5e1; --soft: #9aa2ab; --rule: #30363d; --shade: #6ea8ff1c;
  --bad: #ff7b72; --badshade: #ff7b7226; --good: #56c48a; --line: #79aefc; --area: #79aefc33; --hatch: #10131699;
  --w0: #5b93ea; --w1: #e8a549; --w2: #3fb598; --w3: #b97fd8; --w4: #e0718d; --w5: #a3b04a; --nobody: #454c54; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 56px 24px 72px; }
.kicker { margin: 0 0 10px; color: var(--soft); font-size: 14px; letter-spacing: .04em; }
h1 { margin: 0 0 12px; font-size: clamp(28px, 4.6vw, 42px); line-height: 1.12; letter-spacing: -.02em;
  font-weight: 680; text-wrap: balance; }
h1 b { color: var(--good); font-weight: inherit; } h1.bad b { color: var(--bad); }
.lead { margin: 0; max-width: 46em; color: var(--soft); font-size: 17px; }
h2 { margin: 52px 0 6px; font-size: 21px; letter-spacing: -.01em; }
p { margin: 0 0 14px; max-width: 52em; } .note { color: var(--soft); font-size: 15px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(148px, 1fr)); gap: 1px; margin: 36px 0 0;
  background: var(--rule); border: 1px solid var(--rule); border-radius: 10px; overflow: hidden; }
.tile { background: var(--card); padding: 16px 18px 14px; }
.tile b { display: block; font-size: 27px; line-height: 1.2; font-weight: 640; font-variant-numeric: tabular-nums;
  letter-spacing: -.02em; }
.tile.bad b { color: var(--bad); } .tile span { color: var(--soft); font-size: 13.5px; line-height: 1.35;
  display: block; margin-top: 2px; }
.picture { margin: 16px 0 0; background: var(--card); border: 1px solid var(--rule); border-radius: 10px;
  padding: 16px 14px 8px; overflow-x: auto; }
svg { display: block; width: 100%; min-width: 640px; height: auto; font: 12px system-ui, sans-serif; }
.grid { stroke: var(--rule); } .label, .tick { fill: var(--soft); } .label { text-anchor: end; }
.tick, .chip text { text-anchor: middle; }
.shade { fill: var(--shade); } .shade.bad { fill: var(--badshade); }
.area { fill: var(--area); } .median { fill: none; stroke: var(--line); stroke-width: 1.8; stroke-linejoin: round; }
.longest { fill: var(--line); opacity: .55; }
.chip circle { fill: var(--line); } .chip.bad circle { fill: var(--bad); }
.chip text { fill: var(--card); font-weight: 700; font-size: 11px; }
.w0 { fill: var(--w0); } .w1 { fill: var(--w1); } .w2 { fill: var(--w2); } .w3 { fill: var(--w3); }
.w4 { fill: var(--w4); } .w5 { fill: var(--w5); } .nobody { fill: var(--nobody); } .hatch { fill: var(--hatch); }
.legend { display: flex; flex-wrap: wrap; gap: 6px 20px; margin: 10px 0 0; padding: 0; list-style: none;
  color: var(--soft); font-size: 14px; }
.legend b { color: var(--ink); margin-right: 3px; }
.legend svg { display: inline-block; width: 22px; min-width: 0; height: 12px; margin-right: 7px; border-radius: 2px; }
ol.steps { list-style: none; margin: 18px 0 0; padding: 0; border-top: 1px solid var(--rule); }
ol.steps li { display: grid; grid-template-columns: 30px minmax(0, 1fr) auto; gap: 2px 12px; padding: 13px 0;
  border-bottom: 1px solid var(--rule); }
ol.steps .number { width: 24px; height: 24px; border-radius: 50%; background: var(--line); color: var(--card);
  font-size: 13px; font-weight: 700; display: grid; place-items: center; }
ol.steps .kill .number, ol.steps .failed .number { background: var(--bad); }
ol.steps .title { font-weight: 620; } ol.steps .when { color: var(--soft); font-size: 14px; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
ol.steps .about, ol.steps .outcome { grid-column: 2 / -1; }
ol.steps .about { color: var(--soft); font-size: 15px; } ol.steps .failed .outcome { color: var(--bad); }
table { border-collapse: collapse; margin: 16px 0 0; width: 100%; }
td { padding: 7px 14px 7px 0; border-bottom: 1px solid var(--rule); vertical-align: baseline; }
td.n { text-align: right; font-variant-numeric: tabular-nums; font-weight: 620; width: 5.5em; }
td.what { width: 8.5em; } td.means { color: var(--soft); font-size: 15px; } tr.bad td { color: var(--bad); }
ul.problems { margin: 20px 0 0; padding: 14px 18px 14px 36px; border: 1px solid var(--bad); border-radius: 10px; }
footer { margin-top: 56px; padding-top: 16px; border-top: 1px solid var(--rule); color: var(--soft); font-size: 14px; }
footer dl { display: grid; grid-template-columns: max-content 1fr; gap: 3px 18px; margin: 0; }
footer dt { color: var(--soft); } footer dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 640px) { main { padding: 32px 16px 48px; } td.means { display: none; }
  ol.steps li { grid-template-columns: 30px minmax(0, 1fr); } ol.steps .when { grid-column: 2; grid-row: 2; } }
@media print { .picture, .tiles { break-inside: avoid; } }
"""


_LATENCY: Final = (
    "By the time at which they were sent, on a logarithmic scale: the line is the median, the area reaches up to the "
    "95th percentile, each dot is the slowest of its moment. What happened meanwhile is shaded."
)
_PLACES: Final = (
    "A row for each server, with the sessions that are at home there. The colour is the worker that serves them. The "
    "servers of a killed worker go to the others whole; a server that is declared down hands its sessions out, each to "
    "the server that its own key names."
)
_LEAD: Final = (
    "Three workers on a real Kafka, with traffic all the time. Meanwhile a tenant was moved, an exchange and an upload "
    "were interrupted, a worker was killed with <code>kill -9</code>, and a server taken out of service and back. "
    "Every task was then compared with what came of it, record by record."
)


def page(story: Story) -> str:
    """Return the report as HTML."""
    steps = "".join(_step(number, step) for number, step in enumerate(story.steps, 1))
    parts = [
        *_head(story),
        *_figure("How long the tasks took", _LATENCY, latency_picture(story) + _key(story)),
        *_figure("Where the sessions were", _PLACES, places_picture(story) + _legend(story)),
        f"<h2>What happened</h2>\n<ol class='steps'>{steps}</ol>",
        *_account(story),
        *_facts(story),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Holdfast demo: {'all is right' if story.ok else 'something is wrong'}</title>\n"
        f"<style>{_STYLE}</style>\n</head>\n<body><main>\n" + "\n".join(parts) + "\n</main></body>\n</html>\n"
    )


def _figure(title: str, note: str, picture: str) -> Iterable[str]:
    yield f"<h2>{title}</h2>\n<p class='note'>{note}</p>\n<div class='picture'>{picture}</div>"


def _head(story: Story) -> Iterable[str]:
    account = story.account
    yield "<p class='kicker'>Holdfast, the demo</p>"
    if account.ok:
        yield f"<h1>{account.sent:,} tasks. <b>None lost, none doubled, none out of order.</b></h1>"
    else:
        faults = ", ".join(f"{getattr(account, name):,} {name.replace('_', ' ')}" for name in _FAULTS)
        yield f"<h1 class='bad'>{account.sent:,} tasks. <b>{faults}.</b></h1>"
    yield f"<p class='lead'>{_LEAD}</p>"
    yield from _list(story.problems)
    tiles = [
        (f"{account.performed:,}", "tasks performed, each once", False),
        *(
            (f"{getattr(account, name):,}", name.replace("_", " "), bool(getattr(account, name)))
            for name in _FAULTS[:3]
        ),
        (_duration(story.takeover_ms), "after kill -9 the dead worker&rsquo;s sessions went on", False),
        (_duration(story.pause_ms), "the moved tenant had to wait", False),
    ]
    yield "<div class='tiles'>"
    for value, what, bad in tiles:
        yield f'<div class="tile{" bad" if bad else ""}"><b>{value}</b><span>{what}</span></div>'
    yield "</div>"


def _duration(milliseconds: int | None) -> str:
    if milliseconds is None:
        return "&ndash;"
    return f"{milliseconds} ms" if milliseconds < 1_000 else f"{milliseconds / 1000:.1f} s"


def _key(story: Story) -> str:
    """What the numbers above the picture stand for."""
    found = [(number, step) for number, step in enumerate(story.steps, 1) if step.drawn]
    return '<ul class="legend">' + "".join(f"<li><b>{n}</b> {escape(step.drawn)}</li>" for n, step in found) + "</ul>"


def _legend(story: Story) -> str:
    entries = [(_swatch(colour), f"worker {escape(name)}") for name, colour in worker_colours(story).items()]
    entries.append((_swatch("w0", '<rect width="22" height="12" fill="url(#away)"/>'), "away from their home server"))
    entries.append((_swatch("nobody"), "no answer for a moment"))
    return '<ul class="legend">' + "".join(f"<li>{swatch}{name}</li>" for swatch, name in entries) + "</ul>"


def _swatch(colour: str, over: str = "") -> str:
    return f'<svg viewBox="0 0 22 12"><rect width="22" height="12" class="{colour}"/>{over}</svg>'


def _step(number: int, step: Step) -> str:
    kinds = [kind for kind, holds in (("kill", step.key == "kill"), ("failed", step.state == "failed")) if holds]
    when = f"{max(0.0, step.begin_s):.1f} to {step.end_s:.1f} s" if step.end_s > 0 else ""
    if step.state == "to come":
        when = "not reached"
    outcome = step.outcome[:1].upper() + step.outcome[1:]
    fields = {"number": str(number), "title": step.title, "when": when, "about": step.about, "outcome": outcome}
    spans = "".join(f'<span class="{name}">{escape(text)}</span>' for name, text in fields.items())
    return f'<li class="{" ".join(kinds)}">{spans}</li>'


def _account(story: Story) -> Iterable[str]:
    yield "<h2>The account</h2>"
    yield '<p class="note">Read from Kafka after the run, as any program would: tasks, results and dead letters.</p>'
    yield "<table>"
    for name, means in _MEANING.items():
        count = getattr(story.account, name)
        bad = ' class="bad"' if name in _FAULTS and count else ""
        words = name.replace("_", " ")
        yield f'<tr{bad}><td class="n">{count:,}</td><td class="what">{words}</td><td class="means">{means}</td></tr>'
    yield "</table>"
    yield from _list(story.account.examples)


def _list(problems: Sequence[str]) -> Iterable[str]:
    if problems:
        yield '<ul class="problems">' + "".join(f"<li>{escape(problem)}</li>" for problem in problems) + "</ul>"


def _facts(story: Story) -> Iterable[str]:
    yield "<footer><dl>"
    for name, value in story.facts.items():
        yield f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>"
    yield "</dl></footer>"
