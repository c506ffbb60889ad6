"""`holdfast dead-letters`: look at what could not be performed, and send it once more."""

import base64
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import click
from confluent_kafka import KafkaException, Message, Producer

from app.cli.reading import Moment, read
from app.cli.shell import Shell, common, complain, example
from app.client.kafka import options, partitions_of, say, translate
from app.errors import ConfigurationError, HoldfastError
from app.settings import INTERNAL_SLACK_BYTES, Settings
from app.topics import Names

_FLUSH_S = 30.0


class _Letter(NamedTuple):
    offset: int
    at: datetime
    key: bytes | None
    value: bytes | None
    headers: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        record: dict[str, Any] = {
            "offset": self.offset,
            "at": self.at.isoformat(timespec="milliseconds"),
            "key": None if self.key is None else self.key.decode(errors="replace"),
            "error": self.headers.get("error"),
            "message": self.headers.get("message"),
            "source": {
                "topic": self.headers.get("source-topic"),
                "partition": _number(self.headers.get("source-partition")),
                "offset": _number(self.headers.get("source-offset")),
            },
        }
        try:
            return record | {"value": None if self.value is None else self.value.decode()}
        except UnicodeDecodeError:
            return record | {"value_base64": base64.b64encode(self.value or b"").decode()}


class _Filter(NamedTuple):
    errors: Sequence[str]
    since: datetime | None
    offsets: Sequence[int]

    def matches(self, letter: _Letter) -> bool:
        right_error = not self.errors or letter.headers.get("error") in self.errors
        return right_error and (not self.offsets or letter.offset in self.offsets)


@click.group("dead-letters", epilog=example("holdfast dead-letters list --error TaskTimeout"))
@common
def dead_letters() -> None:
    """Look at tasks that could not be performed, and send them once more."""


@dead_letters.command("list", epilog=example("holdfast dead-letters list --since 2h"))
@click.option("--error", "errors", multiple=True, metavar="NAME", help="Only this error; may be repeated.")
@click.option("--since", type=Moment(), help="Only from this time on: 15m, 2h, or 2026-11-21T10:00:00.")
@click.option("--offset", "offsets", multiple=True, type=int, help="Only this letter; may be repeated.")
@common
@click.pass_obj
def list_(shell: Shell, errors: Sequence[str], since: datetime | None, offsets: Sequence[int]) -> None:
    """List dead letters, oldest first."""
    letters = _letters(shell.settings(), _Filter(errors, since, offsets))
    if shell.json:
        for letter in letters:
            shell.emit(letter.as_json(), "")
        return
    shell.table(("offset", "at", "key", "error", "message"), (letter.as_json() for letter in letters))


@dead_letters.command(
    epilog=example("holdfast dead-letters replay --error TaskTimeout --since 2h", "holdfast dead-letters replay --all")
)
@click.option("--error", "errors", multiple=True, metavar="NAME", help="Only this error; may be repeated.")
@click.option("--since", type=Moment(), help="Only from this time on: 15m, 2h, or 2026-11-21T10:00:00.")
@click.option("--offset", "offsets", multiple=True, type=int, help="Only this letter; may be repeated.")
@click.option("--all", "every", is_flag=True, help="Every dead letter there is.")
@common
@click.pass_obj
def replay(shell: Shell, errors: Sequence[str], since: datetime | None, offsets: Sequence[int], every: bool) -> None:
    """Send the original bytes with the original key to `tasks`; each is a new task.

    Letters stay where they are: a second replay sends them a second time.
    """
    if not (errors or since or offsets or every):
        raise click.UsageError("say which: --error, --since, --offset, or --all")
    settings = shell.settings()
    chosen = list(_letters(settings, _Filter(errors, since, offsets)))
    missing = set(offsets) - {letter.offset for letter in chosen}
    for offset in sorted(missing):
        complain(f"there is no such dead letter at offset {offset}")
    count = _replay(shell, settings, chosen)
    shell.emit({"replayed": count}, f"{count} tasks sent once more")
    if missing:
        raise HoldfastError(f"{len(missing)} of {len(offsets)} letters were not found")


def _letters(settings: Settings, wanted: _Filter) -> Iterator[_Letter]:
    messages = read(settings, Names(settings.namespace).dead_letters, since=wanted.since)
    return (letter for letter in map(_letter, messages) if wanted.matches(letter))


def _letter(message: Message) -> _Letter:
    headers: Any = message.headers() or ()
    _, milliseconds = message.timestamp()
    return _Letter(
        message.offset() or 0,
        datetime.fromtimestamp(max(0, milliseconds) / 1000, UTC),
        _bytes(message.key()),
        _bytes(message.value()),
        {name: (value or b"").decode(errors="replace") for name, value in headers},
    )


def _bytes(value: object) -> bytes | None:
    return value if isinstance(value, bytes) else None


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None


def _replay(shell: Shell, settings: Settings, letters: Sequence[_Letter]) -> int:
    tasks = Names(settings.namespace).tasks
    producer = _producer(settings)
    partitions_of(producer, tasks, settings)
    failures: list[HoldfastError] = []
    with shell.progress() as progress:
        bar = progress.add_task("replayed", total=len(letters))

        def delivered(error: Any, _message: Message) -> None:
            if error is not None:
                failures.append(translate(error, settings, "take the task"))
            progress.update(bar, advance=1)

        for letter in letters:
            while True:
                try:
                    producer.produce(tasks, letter.value, letter.key, on_delivery=delivered)
                    break
                except BufferError:
                    producer.poll(0.1)
            producer.poll(0)
        left = producer.flush(_FLUSH_S)
    if failures:
        raise failures[0]
    if left:
        raise HoldfastError(f"{left} of {len(letters)} tasks are not confirmed after {_FLUSH_S:g} s")
    return len(letters)


def _producer(settings: Settings) -> Producer:
    try:
        return Producer(
            options(
                settings,
                enable_idempotence=True,
                partitioner="murmur2_random",
                message_max_bytes=settings.max_record_bytes + INTERNAL_SLACK_BYTES,
                message_timeout_ms=round(_FLUSH_S * 1000),
            )
        )
    except KafkaException as error:
        raise ConfigurationError(f"the Kafka client refuses its settings: {say(error)}") from error
