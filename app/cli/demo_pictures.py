"""The pictures of the demo's report, as SVG to stand in a page: colours are the page's, by class; pure."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Final

from app.cli.demo_story import Part, Spread, Step, Story, Stretch, latency, whereabouts

WIDTH: Final = 960
LEFT: Final = 76
RIGHT: Final = 14
TOP: Final = 30
_PLOT: Final = WIDTH - LEFT - RIGHT
_SLICE_S: Final = 0.25
_HEIGHT: Final = 250
_ROW: Final = 24
_GAP: Final = 7
_CHIP: Final = 9
_FLOOR_MS: Final = 10.0

_Scale = Callable[[float], float]
"""Where a value lies in the picture."""


def latency_picture(story: Story) -> str:
    """How long tasks took, by the time at which they were sent; the steps are shaded."""
    spreads = latency(story.tasks, story.seconds, _slice(story))
    ceiling = _ceiling(spreads)
    bottom = TOP + _HEIGHT

    def y(took_ms: float) -> float:
        share = math.log10(max(took_ms, _FLOOR_MS) / _FLOOR_MS) / math.log10(ceiling / _FLOOR_MS)
        return bottom - share * _HEIGHT

    def x(at_s: float) -> float:
        return LEFT + at_s / story.seconds * _PLOT

    middle = _slice(story) / 2
    area = [(x(s.from_s + middle), y(s.most_ms)) for s in spreads]
    lower = [(x(s.from_s + middle), y(s.median_ms)) for s in spreads]
    parts = [
        *_shades(story, x, bottom),
        *_decades(ceiling, y),
        f'<path class="area" d="{_line([*area, *reversed(lower)])}Z"/>',
        *(
            f'<circle class="longest" cx="{x(s.from_s + middle):.1f}" cy="{y(s.longest_ms):.1f}" r="1.6">'
            f"<title>sent at {s.from_s:.1f} s: longest {s.longest_ms:.0f} ms</title></circle>"
            for s in spreads
        ),
        f'<path class="median" d="{_line(lower)}"/>',
        *_seconds(story.seconds, x, bottom),
        *_chips(story, x),
    ]
    return _svg(bottom + 36, "Latency of the tasks over time, logarithmic, with the steps of the demo shaded", parts)


def places_picture(story: Story) -> str:
    """Where the sessions of each home server were: a row for each home, coloured by worker, hatched when away."""
    found = whereabouts(story.tasks, story.homes, story.seconds, _slice(story))
    colours = worker_colours(story)
    bottom = TOP + len(found) * (_ROW + _GAP)

    def x(at_s: float) -> float:
        return LEFT + at_s / story.seconds * _PLOT

    parts = [
        '<defs><pattern id="away" width="7" height="7" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        '<rect class="hatch" width="3" height="7"/></pattern></defs>',
        *_shades(story, x, bottom),
    ]
    for row, (home, stretches) in enumerate(found.items()):
        top = TOP + row * (_ROW + _GAP)
        parts.append(f'<text class="label" x="{LEFT - 10}" y="{top + _ROW / 2 + 4:.0f}">server {home}</text>')
        for stretch in stretches:
            parts += _stretch(stretch, top, x, colours)
    parts += [*_seconds(story.seconds, x, bottom), *_chips(story, x)]
    return _svg(bottom + 36, "Where the sessions of each server were over time, coloured by worker", parts)


def worker_colours(story: Story) -> Mapping[str, str]:
    """Return the class that colours each worker, in the order of their names."""
    return {name: f"w{number % 6}" for number, name in enumerate(sorted({task.worker for task in story.tasks}))}


def _slice(story: Story) -> float:
    # As fine as the picture can show; a long run needs no more points than a short one.
    return max(_SLICE_S, story.seconds / 240)


def _ceiling(spreads: Sequence[Spread]) -> float:
    longest = max((spread.longest_ms for spread in spreads), default=0.0)
    return max(1_000.0, 10.0 ** math.ceil(math.log10(max(longest, 1.0) * 1.05)))


def _stretch(stretch: Stretch, top: float, x: _Scale, colours: Mapping[str, str]) -> Iterable[str]:
    total = sum(part.sessions for part in stretch.parts)
    begin, end = x(stretch.from_s), x(stretch.to_s)
    bottom = top + _ROW
    for part in stretch.parts:
        height = _ROW * part.sessions / total
        bottom -= height
        box = f'x="{begin:.2f}" y="{bottom:.2f}" width="{end - begin + 0.3:.2f}" height="{height:.2f}"'
        said = f"<title>{escape(_words(stretch, part, total))}</title>"
        yield f'<rect class="{colours.get(part.worker, "nobody")}" {box}>{said}</rect>'
        if part.away and part.worker:
            yield f'<rect fill="url(#away)" {box}>{said}</rect>'


def _words(stretch: Stretch, part: Part, total: int) -> str:
    where = f"at worker {part.worker}" if part.worker else "without an answer"
    away = ", away from their server" if part.away else ""
    return f"{stretch.from_s:.1f} to {stretch.to_s:.1f} s: {part.sessions} of {total} sessions {where}{away}"


def _drawn(story: Story) -> list[tuple[int, Step]]:
    """The steps that have a place in the pictures, with their numbers in the list."""
    return [(number, step) for number, step in enumerate(story.steps, 1) if step.drawn and step.end_s > 0]


def _shades(story: Story, x: _Scale, bottom: float) -> Iterable[str]:
    for number, step in _drawn(story):
        begin, end = x(max(0.0, step.begin_s)), x(min(step.end_s, story.seconds))
        kind = "shade bad" if step.key == "kill" else "shade"
        yield (
            f'<rect class="{kind}" x="{begin:.1f}" y="{TOP - 6}" width="{max(2.0, end - begin):.1f}" '
            f'height="{bottom - TOP + 6:.1f}"><title>{number} {escape(step.title)}</title></rect>'
        )


def _chips(story: Story, x: _Scale) -> Iterable[str]:
    """The steps' numbers above the plot, moved apart where they would cover each other."""
    last = 0.0
    for number, step in _drawn(story):
        at = max(x(max(0.0, step.begin_s)) + _CHIP, last + 2 * _CHIP + 3)
        last = at
        yield (
            f'<g class="chip{" bad" if step.key == "kill" else ""}"><circle cx="{at:.1f}" cy="12" r="{_CHIP}"/>'
            f'<text x="{at:.1f}" y="16">{number}</text><title>{escape(step.title)}</title></g>'
        )


def _decades(ceiling: float, y: _Scale) -> Iterable[str]:
    value = _FLOOR_MS
    while value <= ceiling:
        label = f"{value:.0f} ms" if value < 1_000 else f"{value / 1000:.0f} s"
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
        yield f'<text class="label" x="{LEFT - 10}" y="{y(value) + 4:.1f}">{label}</text>'
        value *= 10


def _seconds(seconds: float, x: _Scale, bottom: float) -> Iterable[str]:
    step = next(step for step in (1, 2, 5, 10, 30, 60, 300, 600) if seconds / step <= 14 or step == 600)
    for at in range(0, int(seconds) + 1, step):
        yield f'<text class="tick" x="{x(at):.1f}" y="{bottom + 20:.0f}">{at} s</text>'


def _line(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) if points else "M0 0"


def _svg(height: float, name: str, parts: Iterable[str]) -> str:
    inside = "\n".join(parts)
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(name)}" '
        f'xmlns="http://www.w3.org/2000/svg">\n{inside}\n</svg>'
    )
