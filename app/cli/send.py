"""`holdfast send`: one task, or a file of them."""

import json
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final

import click
from pydantic import ValidationError

from app.cli.shell import Shell, common, complain, example
from app.client import Client, Sent
from app.errors import HoldfastError
from app.records import Result, Task

_UNDER_WAY_MAX: Final = 10_000


@click.command(
    epilog=example(
        "holdfast send acme cart-7 cart.add '{\"count\": 2}' --wait",
        "holdfast send --file tasks.jsonl",
    )
)
@click.argument("tenant", required=False)
@click.argument("session", required=False)
@click.argument("type_", metavar="[TYPE]", required=False)
@click.argument("payload", metavar="[JSON]", required=False)
@click.option(
    "--file",
    "file",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    help="Tasks, one JSON object per line; - is standard input.",
)
@click.option("--id", "task_id", help="The task's id; default: partition/offset.")
@click.option("--server", type=int, help="The server that the session is believed to live on.")
@click.option("--wait", is_flag=True, help="Print results; exit code 1 if one is a failure.")
@click.option("--timeout", type=click.FloatRange(min=0), default=60.0, show_default=True, help="Seconds for --wait.")
@common
@click.pass_obj
def send(
    shell: Shell,
    tenant: str | None,
    session: str | None,
    type_: str | None,
    payload: str | None,
    file: Path | None,
    task_id: str | None,
    server: int | None,
    wait: bool,
    timeout: float,
) -> int:
    """Send a task to TENANT's SESSION, and print where it stands or, with --wait, its result.

    TYPE names the handler, JSON is the payload, {} by default.
    """
    if file is not None:
        if tenant is not None or task_id is not None or server is not None:
            raise click.UsageError("--file brings its own tasks: leave out the other arguments")
        return _send_file(shell, file, timeout if wait else None)
    if tenant is None or session is None or type_ is None:
        raise click.UsageError("name TENANT, SESSION and TYPE, or a --file of tasks")
    task = _task(
        {"tenant": tenant, "session": session, "type": type_, "payload": _payload(payload)}
        | ({} if task_id is None else {"id": task_id})
        | ({} if server is None else {"server": server}),
        "this is no task",
    )
    return _run(shell, iter([task]), timeout if wait else None, lambda _: None)


def _payload(text: str | None) -> Any:
    try:
        return {} if text is None else json.loads(text)
    except ValueError as error:
        raise click.UsageError(f"the payload is not JSON: {error}") from None


def _task(record: object, what: str) -> Task:
    try:
        return Task.model_validate(record)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in detail["loc"]) or "it"
        raise click.UsageError(f"{what}: {field}: {detail['msg'].removeprefix('Value error, ')}") from None


def _read(path: Path) -> Iterator[Task]:
    name = "standard input" if str(path) == "-" else str(path)
    try:
        with click.open_file(str(path), encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _parse(line, f"{name}, line {number}")
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{name} cannot be read: {error}") from None


def _parse(line: str, where: str) -> Task:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise click.UsageError(f"{where}: not JSON: {error}") from None
    return _task(record, where)


def _send_file(shell: Shell, path: Path, wait_s: float | None) -> int:
    # A file is read twice: nothing is sent unless all of it can be.
    total = None if str(path) == "-" else sum(1 for _ in _read(path))
    with shell.progress() as progress:
        bar = progress.add_task("results" if wait_s is not None else "sent", total=total)
        return _run(shell, _read(path), wait_s, lambda count: progress.update(bar, advance=count), summary=True)


def _run(
    shell: Shell,
    tasks: Iterator[Task],
    wait_s: float | None,
    advance: Callable[[int], None],
    *,
    summary: bool = False,
) -> int:
    """Send all; print a line for each, or for people with many only their number."""
    count = failed = 0
    with Client(settings=shell.settings(), read_results=wait_s is not None) as client:
        try:
            for outcome in _outcomes(client, tasks, wait_s):
                count += 1
                failed += isinstance(outcome, Result) and outcome.status == "failed"
                if shell.json or not summary:
                    _print(shell, outcome)
                advance(1)
        except ValueError as error:
            raise click.UsageError(str(error)) from None
        except TimeoutError as error:
            raise HoldfastError(str(error)) from None
    if summary and not shell.json:
        click.echo(f"{count} tasks sent" + (f", {failed} of them failed" if wait_s is not None else ""))
    if failed and not summary:
        complain("the task failed")
    return 1 if failed else 0


def _outcomes(client: Client, tasks: Iterator[Task], wait_s: float | None) -> Iterator[Sent | Result]:
    sent = client.send_many(tasks)
    if wait_s is None:
        yield from sent
        return
    waiting: deque[tuple[str, Future[Result]]] = deque()
    for task_id in (place.id for place in sent):
        waiting.append((task_id, client.expect(task_id)))
        while waiting and (waiting[0][1].done() or len(waiting) >= _UNDER_WAY_MAX):
            yield _result(*waiting.popleft(), wait_s)
    while waiting:
        yield _result(*waiting.popleft(), wait_s)


def _result(task_id: str, future: "Future[Result]", wait_s: float) -> Result:
    try:
        return future.result(wait_s)
    except TimeoutError:
        raise TimeoutError(
            f"no result of task {task_id} within {wait_s:g} s: is a worker running? The task is not lost"
        ) from None


def _print(shell: Shell, outcome: Sent | Result) -> None:
    if isinstance(outcome, Sent):
        shell.emit(outcome._asdict(), f"task {outcome.id}")
        return
    record = outcome.model_dump(mode="json")
    if outcome.error is not None:
        text = f"failed: {outcome.error.type}: {outcome.error.message}"
    else:
        text = json.dumps(outcome.result, ensure_ascii=False)
    shell.emit(record, f"{text} (task {outcome.task}, server {outcome.server}, sequence {outcome.sequence})")
