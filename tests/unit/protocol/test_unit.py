"""The unit of work: its tag, what became of it when nobody said, whom to fence, who died at work."""

from dataclasses import dataclass, replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.protocol.unit import Outcome, Tag, died, outcome, to_fence

OURS = Tag("w1", 1_000, 7)
EARLIER = replace(OURS, unit=6)
LATER = replace(OURS, unit=8)
OTHER = Tag("w2", 900, 7)
FORMER = replace(OURS, incarnation=999, unit=7)
YOUNGER = replace(OURS, incarnation=1_001, unit=3)

workers = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=20)
standings = st.sampled_from([{}, {"released": True}, {"inherited": True}])
tags = st.builds(
    lambda worker, incarnation, unit, standing: Tag(worker, incarnation, unit, **standing),
    workers,
    st.integers(0, 2**53),
    st.integers(0, 2**40),
    standings,
)


# -- the tag ------------------------------------------------------------------------------------------------------


@given(tags)
def test_a_tag_comes_back(tag: Tag) -> None:
    assert Tag.parse(tag.encode()) == tag


def test_the_text_of_a_tag_is_what_released_workers_write() -> None:
    assert Tag("w1", 1764000000000, 12).encode() == "w1 1764000000000 12 c"
    assert Tag("w1", 1764000000000, 12, released=True).encode() == "w1 1764000000000 12 r"
    assert Tag("w1", 1764000000000, 12, inherited=True).encode() == "w1 1764000000000 12 i"


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        "",
        " ",
        "   ",
        "w1",
        "w1 1 2",
        "w1 1 2 x",
        "w1 1 2 c ",
        " w1 1 2 c",
        "w1 1 2 c more",
        "w1 -1 2 c",
        "w1 1.5 2 c",
        "w1 one 2 c",
        "w1 1 two c",
        "w1  2 c",
        " 1 2 c",
        "w1 \N{SUPERSCRIPT TWO} 2 c",
        "w1 " + "1" * 5_000 + " 2 c",
        '{"reset-by":"a tool"}',
    ],
)
def test_what_somebody_else_wrote_is_no_tag(metadata: str | None) -> None:
    assert Tag.parse(metadata) is None


@given(st.text())
def test_no_metadata_breaks_the_parser(metadata: str) -> None:
    tag = Tag.parse(metadata)
    assert tag is None or Tag.parse(tag.encode()) == tag


# -- the outcome --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([OURS], Outcome.COMMITTED),
        ([replace(OURS, released=True)], Outcome.COMMITTED),
        ([OURS, OURS], Outcome.COMMITTED),
        # A transaction commits all of its offsets or none; a successor may have claimed some since.
        ([OURS, OTHER], Outcome.COMMITTED),
        ([None, OURS], Outcome.COMMITTED),
        ([OURS, EARLIER], Outcome.COMMITTED),
        ([EARLIER], Outcome.ABORTED),
        ([EARLIER, replace(OURS, unit=1)], Outcome.ABORTED),
        ([replace(EARLIER, released=True)], Outcome.ABORTED),
        ([EARLIER, OTHER], Outcome.FOREIGN),
        ([OTHER], Outcome.FOREIGN),
        ([None], Outcome.FOREIGN),
        ([EARLIER, None], Outcome.FOREIGN),
        ([FORMER], Outcome.FOREIGN),
        ([replace(FORMER, unit=1)], Outcome.FOREIGN),
        ([YOUNGER], Outcome.FOREIGN),
        ([EARLIER, YOUNGER], Outcome.FOREIGN),
        ([LATER], Outcome.FOREIGN),
        # Without a partition nothing can be learned.
        ([], Outcome.FOREIGN),
    ],
)
def test_outcome(found: list[Tag | None], expected: Outcome) -> None:
    assert outcome(iter(found), OURS) is expected


@dataclass
class History:
    """The committed tags of three partitions, and whether our last unit is in the log."""

    tags: list[Tag | None]
    touched: list[int]
    ours: Tag
    landed: bool
    taken: bool


partitions = st.sets(st.sampled_from([0, 1, 2]), min_size=1)
after = st.sampled_from(["w2", "w3", "w1 again"])


@st.composite
def histories(draw: st.DrawFn) -> History:
    """One owner claims and commits units, some of which abort; the last answer is lost; successors may claim."""
    unit = draw(st.integers(1, 3))
    found: list[Tag | None] = [Tag("w1", 7, unit)] * 3
    for earlier in draw(st.lists(partitions, max_size=4)):
        unit += 1
        if draw(st.booleans()):
            for partition in earlier:
                found[partition] = Tag("w1", 7, unit)
    ours = Tag("w1", 7, unit + 1, draw(st.booleans()))
    touched, landed = sorted(draw(partitions)), draw(st.booleans())
    if landed:
        for partition in touched:
            found[partition] = ours
    taken = False
    for successor in draw(st.lists(after, max_size=2)):
        claimed = draw(partitions)
        taken = taken or not claimed.isdisjoint(touched)
        for partition in claimed:
            found[partition] = Tag("w1", 8, 1) if successor == "w1 again" else Tag(successor, 6, 1)
    return History([found[partition] for partition in touched], touched, ours, landed, taken)


@given(histories())
def test_an_outcome_is_never_wrong(history: History) -> None:
    said = outcome(history.tags, history.ours)
    if said is Outcome.COMMITTED:
        assert history.landed
    if said is Outcome.ABORTED:
        assert not history.landed


@given(histories())
def test_an_outcome_is_certain_while_nobody_has_taken_over(history: History) -> None:
    if not history.taken:
        expected = Outcome.COMMITTED if history.landed else Outcome.ABORTED
        assert outcome(history.tags, history.ours) is expected


# -- whom to fence ------------------------------------------------------------------------------------------------

CLAIMED, RELEASED = Tag("w1", 1, 5), Tag("w1", 1, 5, released=True)
INHERITED = Tag("w1", 1, 5, inherited=True)


@pytest.mark.parametrize(
    ("found", "departed", "present", "fenced"),
    [
        ([], [], ["w1"], set()),
        ([None], [], ["w1"], set()),
        ([CLAIMED], [], ["w2"], {"w1"}),
        ([CLAIMED], [], ["w1", "w2"], set()),
        ([RELEASED], [], ["w2"], set()),
        ([INHERITED], [], ["w2"], {"w1"}),
        ([INHERITED], [], ["w1"], set()),
        # It released one partition and died with another.
        ([RELEASED, CLAIMED], [], ["w2"], {"w1"}),
        # It left in good order: what it released tells.
        ([RELEASED], ["w1"], ["w2"], set()),
        # It died between its assignment and its first claim: no tag tells.
        ([None], ["w1", "w3"], ["w2", "w3"], {"w1"}),
        ([CLAIMED, OTHER], ["w3"], [], {"w1", "w2", "w3"}),
    ],
)
def test_to_fence(found: list[Tag | None], departed: list[str], present: list[str], fenced: set[str]) -> None:
    assert to_fence(iter(found), iter(departed), present) == fenced


@given(st.lists(st.none() | tags), st.frozensets(workers), st.frozensets(workers))
def test_nobody_present_is_fenced_and_nobody_who_may_have_work_open_is_left(
    found: list[Tag | None], departed: frozenset[str], present: frozenset[str]
) -> None:
    fenced = to_fence(found, departed, present)
    assert fenced.isdisjoint(present)
    for tag in found:
        if tag is not None and not tag.released and tag.worker not in present:
            assert tag.worker in fenced
    assert departed - present <= fenced


# -- who died at work ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tag", "members", "expected"),
    [
        (None, {"w1": 1}, False),
        (CLAIMED, {"w1": 1}, False),
        (CLAIMED, {"w2": 1}, True),
        (CLAIMED, {}, True),
        # Started again under its name: the process that had the work is dead.
        (CLAIMED, {"w1": 2}, True),
        (RELEASED, {"w2": 1}, False),
        (RELEASED, {"w1": 2}, False),
        # It lives, but took over from one that died, and has committed nothing of its own since.
        (INHERITED, {"w1": 1}, True),
        (INHERITED, {"w2": 1}, True),
    ],
)
def test_died(tag: Tag | None, members: dict[str, int], expected: bool) -> None:
    assert died(tag, members, members.items()) is expected


@given(tags, st.dictionaries(workers, st.integers(0, 3)))
@example(Tag("w1", 1, 1), {"w1": 1})
def test_a_member_that_lives_or_released_has_not_died_but_may_have_inherited(tag: Tag, members: dict[str, int]) -> None:
    lives = members.get(tag.worker) == tag.incarnation
    assert died(tag, members, members.items()) is (tag.inherited or not (tag.released or lives))
