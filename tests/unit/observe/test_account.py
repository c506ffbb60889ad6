"""The verifier itself: a clean history has no fault, and every planted fault is found."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.observe.account import EXAMPLES_MAX, Account, Audit
from app.protocol.murmur2 import partition_of


@dataclass(frozen=True)
class Sent:
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()


@dataclass(frozen=True)
class Letter:
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]


@dataclass
class History:
    tasks: list[Sent] = field(default_factory=list)
    # Results are dicts here, so that a test can change one field; the partition is that of the first source.
    results: list[dict[str, Any]] = field(default_factory=list)
    letters: list[Letter] = field(default_factory=list)

    def account(self, **options: Any) -> Account:
        audit = Audit("n.tasks", **options)
        for sent in self.tasks:
            audit.add_task(sent.partition, sent.offset, sent.key, sent.value, sent.headers)
        for number, result in enumerate(self.results):
            audit.add_result(0, number, json.dumps(result).encode())
        for number, letter in enumerate(self.letters):
            audit.add_dead_letter(0, number, letter.value, letter.headers)
        return audit.verdict()


def letter_of(sent: Sent) -> Letter:
    return Letter(
        sent.value,
        (
            ("error", b"ValueError"),
            ("source-topic", b"n.tasks"),
            ("source-partition", str(sent.partition).encode()),
            ("source-offset", str(sent.offset).encode()),
        ),
    )


def clean(seed: int, size: int = 60) -> History:
    """Make a history without a fault: two partitions with holes, a few sessions, failures and bad records."""
    rng = random.Random(seed)
    history = History()
    offsets = [rng.randrange(3), rng.randrange(1000)]
    sequences: dict[tuple[str, str], int] = {}
    # Some of each: a fault can be planted anywhere.
    kinds = [
        "done",
        "done",
        "failed",
        "bad",
        "bad",
        "copy",
        *rng.choices(["done", "failed", "bad"], [8, 1, 1], k=size),
    ]
    rng.shuffle(kinds)
    for number, kind in enumerate(kinds):
        tenant, session = f"t{rng.randrange(4)}", f"s{rng.randrange(2)}"
        partition = int(tenant[1:]) % 2
        offset = offsets[partition]
        offsets[partition] += rng.choice([1, 1, 1, 2, 5])
        task: dict[str, Any] = {"tenant": tenant, "session": session, "type": "x", "payload": {"n": number}}
        if rng.random() < 0.5:
            task["id"] = f"id-{number}"
        key, value = tenant.encode(), json.dumps(task).encode()
        if kind == "copy":
            origin = ((("origin-partition", b"7"), ("origin-offset", b"1")),)
            history.tasks.append(Sent(partition, offset, key, value, *origin))
        elif kind == "bad":
            history.tasks.append(Sent(partition, offset, key, rng.choice([None, b"", b"{", value[:-1]])))
            history.letters.append(letter_of(history.tasks[-1]))
        else:
            history.tasks.append(Sent(partition, offset, key, value))
            sequences[tenant, session] = sequences.get((tenant, session), 0) + 1
            history.results.append(
                {
                    "task": task.get("id", f"{partition}/{offset}"),
                    **{name: task[name] for name in ("tenant", "session", "type")},
                    "status": kind,
                    "sequence": sequences[tenant, session],
                    "source": {"partition": partition, "offset": offset},
                }
            )
            if kind == "failed":
                history.letters.append(letter_of(history.tasks[-1]))
    return history


def one_of(rng: random.Random, results: list[dict[str, Any]], **wanted: object) -> int:
    return rng.choice([i for i, r in enumerate(results) if all(r[name] == v for name, v in wanted.items())])


def neighbours(rng: random.Random, results: list[dict[str, Any]]) -> tuple[int, int]:
    """Two results of one session, one right behind the other in its order."""
    last: dict[tuple[str, str], int] = {}
    pairs = []
    for index, result in enumerate(results):
        who = (result["tenant"], result["session"])
        if who in last:
            pairs.append((last[who], index))
        last[who] = index
    return rng.choice(pairs)


def lose_result(history: History, rng: random.Random) -> None:
    del history.results[rng.randrange(len(history.results))]


def lose_last_result(history: History, rng: random.Random) -> None:
    # Behind it is no other sequence that would show the hole.
    who = rng.choice(history.results)
    same = [i for i, r in enumerate(history.results) if all(r[n] == who[n] for n in ("tenant", "session"))]
    del history.results[same[-1]]


def lose_letter(history: History, rng: random.Random) -> None:
    del history.letters[rng.randrange(len(history.letters))]


def double_result(history: History, rng: random.Random) -> None:
    index = rng.randrange(len(history.results))
    history.results.insert(rng.randrange(index, len(history.results)) + 1, dict(history.results[index]))


def perform_twice(history: History, rng: random.Random) -> None:
    """The worse kind: the state changed twice, so all later sequences of the session are one higher."""
    index = rng.randrange(len(history.results))
    again = dict(history.results[index])
    history.results.insert(index + 1, again)
    for result in history.results[index + 1 :]:
        if (result["tenant"], result["session"]) == (again["tenant"], again["session"]):
            result["sequence"] += 1


def double_letter(history: History, rng: random.Random) -> None:
    history.letters.append(rng.choice(history.letters))


def swap_whole_results(history: History, rng: random.Random) -> None:
    one, two = neighbours(rng, history.results)
    results = history.results
    results[one], results[two] = results[two], results[one]


def swap_sources(history: History, rng: random.Random) -> None:
    """The tasks took effect in the wrong order; the sequences are in order."""
    one, two = neighbours(rng, history.results)
    a, b = history.results[one], history.results[two]
    a["sequence"], b["sequence"] = b["sequence"], a["sequence"]
    history.results[one], history.results[two] = b, a


def skip_a_number(history: History, rng: random.Random) -> None:
    index = rng.randrange(len(history.results))
    who = (history.results[index]["tenant"], history.results[index]["session"])
    for result in history.results[index:]:
        if (result["tenant"], result["session"]) == who:
            result["sequence"] += 1


def foreign_result(history: History, rng: random.Random) -> None:
    stranger = dict(rng.choice(history.results), source={"partition": rng.choice([0, 1, 9]), "offset": 999_999})
    history.results.insert(rng.randrange(len(history.results)), stranger)


def result_of_a_bad_record(history: History, rng: random.Random) -> None:
    bad = rng.choice([s for s in history.tasks if s.value in (None, b"", b"{")] or history.tasks[:0])
    history.results.append(dict(rng.choice(history.results), source={"partition": bad.partition, "offset": bad.offset}))


def letter_of_a_done_task(history: History, rng: random.Random) -> None:
    source = history.results[one_of(rng, history.results, status="done")]["source"]
    sent = next(s for s in history.tasks if (s.partition, s.offset) == (source["partition"], source["offset"]))
    history.letters.append(letter_of(sent))


def other_bytes(history: History, rng: random.Random) -> None:
    index = rng.randrange(len(history.letters))
    letter = history.letters[index]
    changed = rng.choice([None if letter.value is not None else b"", (letter.value or b"") + b" "])
    history.letters[index] = replace(letter, value=changed)


def other_session(history: History, rng: random.Random) -> None:
    rng.choice(history.results)["session"] = "another"


def other_task(history: History, rng: random.Random) -> None:
    rng.choice(history.results)["task"] = "another"


def no_result(history: History, rng: random.Random) -> None:
    del rng.choice(history.results)["source"]


def nameless_letter(history: History, rng: random.Random) -> None:
    index = rng.randrange(len(history.letters))
    kept = tuple(h for h in history.letters[index].headers if h[0] != "source-offset")
    history.letters[index] = replace(history.letters[index], headers=kept)


Fault = Callable[[History, random.Random], None]

FAULTS: dict[Fault, set[str]] = {
    # The kinds of fault that must be counted; others may be, as a lost result leaves a gap as well.
    lose_result: {"lost"},
    lose_last_result: {"lost"},
    lose_letter: {"lost"},
    double_result: {"doubled"},
    perform_twice: {"doubled"},
    double_letter: {"doubled"},
    swap_whole_results: {"out_of_order"},
    swap_sources: {"out_of_order"},
    skip_a_number: {"gaps"},
    foreign_result: {"foreign"},
    result_of_a_bad_record: {"foreign"},
    letter_of_a_done_task: {"foreign"},
    other_bytes: {"altered"},
    other_session: {"altered"},
    other_task: {"altered"},
    no_result: {"foreign", "lost"},
    nameless_letter: {"foreign", "lost"},
}


@given(seed=st.integers(0, 2**32))
def test_a_clean_history_has_no_fault(seed: int) -> None:
    history = clean(seed)
    account = history.account()
    assert account.ok, str(account)
    assert account.examples == ()
    assert account.sent == len(history.results) == account.performed + account.failed
    assert account.dead_lettered == len(history.letters) == account.failed + account.bad
    copies = sum(1 for sent in history.tasks if sent.headers)
    assert account.sent + account.bad == len(history.tasks) - copies


@given(seed=st.integers(0, 2**32), fault=st.sampled_from(list(FAULTS)))
@settings(max_examples=400)
def test_any_single_fault_is_found(seed: int, fault: Fault) -> None:
    """I1, I2, I3: one fault anywhere in a history is counted under its name and described."""
    history = clean(seed)
    fault(history, random.Random(seed))
    account = history.account()
    assert not account.ok
    for kind in FAULTS[fault]:
        assert getattr(account, kind) >= 1, str(account)
        assert any(example.startswith(kind.replace("_", " ")) for example in account.examples)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_each_fault_alone(fault: Fault) -> None:
    history = clean(1)
    fault(history, random.Random(1))
    account = history.account()
    assert {name for name in FAULTS[fault] if getattr(account, name)} == FAULTS[fault], str(account)


def test_a_lost_result_and_a_doubled_one_are_counted_once() -> None:
    history = clean(3)
    lose_last_result(history, random.Random(3))
    assert history.account().lost == 1
    history = clean(3)
    perform_twice(history, random.Random(3))
    account = history.account()
    assert (account.doubled, account.gaps, account.out_of_order, account.lost) == (1, 0, 0, 0)


def test_examples_are_few_and_say_where() -> None:
    history = clean(4)
    lost = history.results[-1]["source"]
    history.results.clear()
    account = history.account()
    assert account.lost == account.sent
    assert len(account.examples) == EXAMPLES_MAX
    history = clean(4)
    history.results.pop()
    (example,) = history.account().examples
    assert example.startswith(f"lost: tasks {lost['partition']}/{lost['offset']} of t")
    assert example.endswith("has no result")


def ended() -> History:
    """A session that was ended after two tasks and began again."""
    history = History()
    for offset, sequence in enumerate([1, 2, 1, 2, 3]):
        value = json.dumps({"tenant": "t", "session": "s", "type": "x", "payload": {}}).encode()
        history.tasks.append(Sent(0, offset, b"t", value))
        history.results.append(
            {
                "task": f"0/{offset}",
                "tenant": "t",
                "session": "s",
                "type": "x",
                "status": "done",
                "sequence": sequence,
                "source": {"partition": 0, "offset": offset},
            }
        )
    return history


def test_a_sequence_starts_again_only_when_told_so() -> None:
    assert ended().account().out_of_order > 0
    assert ended().account(restarts=True).ok


def test_a_restart_does_not_excuse_a_doubled_first_task() -> None:
    history = ended()
    history.results.insert(1, dict(history.results[0]))
    account = history.account(restarts=True)
    assert (account.doubled, account.lost) == (1, 0)


def test_a_reading_from_midway_accepts_any_first_number() -> None:
    history = ended()
    del history.tasks[0], history.results[0]
    del history.tasks[1:], history.results[1:]
    assert history.account().gaps == 1
    assert history.account(midway=True).ok


def test_dead_letters_of_other_topics_are_not_counted() -> None:
    history = clean(5)
    history.letters.append(Letter(b"x", (("source-topic", b"n.commands"), ("source-partition", b"0"))))
    account = history.account()
    assert account.ok
    assert account.dead_lettered == len(history.letters) - 1


def too_large(sent: Sent, value: bytes | None = None) -> Letter:
    return Letter(value, (("error", b"TooLarge"), *letter_of(sent).headers[1:]))


def alone(tenant: str, partition: int) -> Sent:
    value = json.dumps({"tenant": tenant, "session": "s", "type": "echo", "payload": {}}).encode()
    return Sent(partition, 0, tenant.encode(), value)


def test_a_task_that_is_too_large_to_be_carried_is_no_task() -> None:
    sent = alone("acme", 0)
    account = History([sent], letters=[too_large(sent)]).account()
    assert account.ok, str(account)
    assert (account.sent, account.bad, account.dead_lettered, account.performed) == (0, 1, 1, 0)


def test_a_record_that_is_too_large_and_no_task_has_a_letter_without_bytes() -> None:
    sent = Sent(0, 0, b"acme", b"no task")
    assert History([sent], letters=[too_large(sent)]).account().ok
    without_reason = Letter(None, letter_of(sent).headers)
    assert History([sent], letters=[without_reason]).account().altered == 1


def test_a_task_that_is_too_large_to_be_sent_on_is_excused_only_in_a_wrong_partition() -> None:
    right = partition_of(b"acme", 4)
    for partition in range(4):
        sent = alone("acme", partition)
        account = History([sent], letters=[too_large(sent, sent.value)]).account(routers=4)
        assert account.ok == (partition != right), str(account)
        assert account.lost == (partition == right)


def answer(sent: Sent, status: str) -> dict[str, Any]:
    source = {"partition": sent.partition, "offset": sent.offset}
    who = {"tenant": "acme", "session": "s", "type": "echo", "task": f"{sent.partition}/{sent.offset}"}
    return {**who, "source": source, "sequence": 1, "status": status}


def test_a_failed_task_whose_letter_lacks_its_bytes_is_altered() -> None:
    sent = alone("acme", 0)
    account = History([sent], [answer(sent, "failed")], [too_large(sent)]).account()
    assert (account.altered, account.lost, account.sent, account.failed) == (1, 0, 1, 1)


def test_a_task_that_was_refused_and_done_is_foreign() -> None:
    sent = alone("acme", 0)
    account = History([sent], [answer(sent, "done")], [too_large(sent)]).account()
    assert (account.foreign, account.altered, account.sent) == (1, 1, 1)


def test_a_million_tasks_take_less_than_40_bytes_each() -> None:
    audit = Audit("n.tasks")
    count = 20_000
    value = b'{"tenant":"t","session":"s","type":"x","payload":{}}'
    for offset in range(count):
        audit.add_task(0, offset, b"t", value)
    column = audit._columns[0]
    held = len(column.flags) + sum(
        len(values) * values.itemsize for values in (column.session, column.identity, column.content)
    )
    assert held / count < 40


def test_feeding_an_earlier_offset_is_refused() -> None:
    audit = Audit()
    audit.add_task(0, 5, b"t", b"x")
    with pytest.raises(ValueError, match="comes after"):
        audit.add_task(0, 4, b"t", b"x")
