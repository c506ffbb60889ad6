"""What a benchmark says in the end: figures, ratios, goals, and whether they were met.

A benchmark first collects *samples*, dicts of JSON, one for each run or event, and keeps them as they are. Figures
are computed from samples alone, so that runs can be added to and looked at again without measuring anew.
"""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Sample = dict[str, Any]
"""Raw numbers of one run or event. ``series`` names what they are of; the rest is up to the benchmark."""

Statistic = Callable[[Sequence[float]], float]


@dataclass(frozen=True, slots=True)
class Goal:
    """A limit that the value (or the ratio, if ``of_ratio``) is to keep; ``of_peer``: below or above the peer's."""

    sign: Literal["≥", "≤"]
    limit: float
    of_ratio: bool = False

    def met(self, figure: float) -> bool:
        return figure >= self.limit if self.sign == "≥" else figure <= self.limit

    def __str__(self) -> str:
        return f"{self.sign} {number(self.limit)}{' x' if self.of_ratio else ''}"


@dataclass(frozen=True, slots=True)
class Measurement:
    """One line of the table.

    ``runs``: our single values, ``value``: what stands for them, in ``unit``. ``peer_runs``, ``peer_value``: the same
    of ``peer``. ``ratios``: ours to the peer's, pair by pair; ``ratio``: their median. ``absent``: why there is no
    figure. ``note``: what a reader has to know.
    """

    name: str
    unit: str
    value: float | None = None
    runs: tuple[float, ...] = ()
    peer: str = ""
    peer_value: float | None = None
    peer_runs: tuple[float, ...] = ()
    ratio: float | None = None
    ratios: tuple[float, ...] = ()
    goal: Goal | None = None
    absent: str = ""
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None without a goal or without a figure."""
        figure = self.ratio if self.goal is not None and self.goal.of_ratio else self.value
        return None if self.goal is None or figure is None else self.goal.met(figure)

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "goal": str(self.goal) if self.goal else None, "met": self.met}


def figure(
    name: str,
    unit: str,
    runs: Iterable[float],
    *,
    statistic: Statistic = statistics.median,
    goal: Goal | None = None,
    note: str = "",
) -> Measurement:
    """Describe a value without a peer: ``statistic`` over all runs."""
    values = tuple(runs)
    if not values:
        return Measurement(name, unit, goal=goal, absent="nothing was measured", note=note)
    return Measurement(name, unit, value=statistic(values), runs=values, goal=goal, note=note)


def compared(
    name: str,
    unit: str,
    pairs: Iterable[tuple[float, float]],
    peer: str,
    *,
    goal: Goal | None = None,
    note: str = "",
) -> Measurement:
    """Describe pairs (ours, the peer's) of runs that followed each other: the median of their ratios."""
    both = tuple(pairs)
    if not both:
        return Measurement(name, unit, peer=peer, goal=goal, absent="nothing was measured", note=note)
    ours, theirs = tuple(one for one, _ in both), tuple(other for _, other in both)
    ratios = tuple(one / other for one, other in both)
    return Measurement(
        name,
        unit,
        value=statistics.median(ours),
        runs=ours,
        peer=peer,
        peer_value=statistics.median(theirs),
        peer_runs=theirs,
        ratio=statistics.median(ratios),
        ratios=ratios,
        goal=goal,
        note=note,
    )


def percentile(share: float) -> Statistic:
    """Return the statistic below which ``share`` (0 to 1) of the values lie: the nearest one that was measured."""

    def at(values: Sequence[float]) -> float:
        ordered = sorted(values)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    return at


def of(samples: Iterable[Sample], series: str, **wanted: Any) -> list[Sample]:
    """Return the samples of a series whose fields are those wanted, in their order."""
    return [
        sample
        for sample in samples
        if sample["series"] == series and all(sample.get(name) == value for name, value in wanted.items())
    ]


def number(value: float) -> str:
    """Write a figure with three digits that say something."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1_000:
        return f"{value:,.0f}"
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 0.1 else 4
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
