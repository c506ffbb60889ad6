"""A manager of exchanges, record by record: what it stores, and what it writes with it."""

import time
from typing import Any

import pytest

from app.protocol import exchange_model as model
from app.protocol.exchange_model import Effect
from tests.unit.agents.exchange_bench import LIMIT, ManagerBench


def types(records: list[dict[str, Any]]) -> list[str]:
    return [record["type"] for record in records]


@pytest.fixture
def bench() -> ManagerBench:
    return ManagerBench()


def begun(bench: ManagerBench, requests: int = 0) -> int:
    """A client and a server session are there, and so many requests."""
    bench.open_server()
    client = bench.open_client()
    for number in range(1, requests + 1):
        bench.submit(client, number, number, {"n": number}, restart={"step": number})
    bench.commit()
    return client


def test_a_request_and_its_restart_data_are_stored_with_what_follows(bench: ManagerBench) -> None:
    client = begun(bench)
    bench.submit(client, 1, 1, {"seed": 1}, restart={"step": 1})
    assert bench.rows["exchanges"].peek(b"sim") is not None
    assert bench.row()["submitted"] == 0
    written = bench.commit()
    row = bench.row()
    assert (row["submitted"], row["client_restart"], row["client_op"]) == (1, {"step": 1}, 1)
    assert bench.messages() == {"000000000001": {"body": {"seed": 1}}}
    [assignment] = written["assignments"]
    assert assignment == {
        "type": "request",
        "server": "hpc-1",
        "assignment": 1,
        "number": 1,
        "body": {"seed": 1},
        "key": "sim",
    }
    [positions] = written["replies"]
    assert (positions["type"], positions["op"], positions["submitted"]) == ("positions", 1, 1)


def test_a_response_takes_the_place_of_its_request(bench: ManagerBench) -> None:
    begun(bench, requests=2)
    bench.respond(1, 1, 1, {"x": 1}, restart={"done": 1})
    written = bench.commit()
    assert bench.messages() == {"000000000002": {"body": {"n": 2}}, "000000000001": {"body": {"x": 1}}}
    assert (bench.row()["answered"], bench.row()["server_restart"]) == (1, {"done": 1})
    [response] = written["replies"]
    assert (response["type"], response["number"], response["body"]) == ("response", 1, {"x": 1})


def test_an_acknowledgement_drops_responses_and_replaces_the_restart_data(bench: ManagerBench) -> None:
    client = begun(bench, requests=2)
    bench.respond(1, 1, 1)
    bench.respond(1, 2, 2)
    bench.commit()
    bench.request("sim", {"type": "acknowledge", "incarnation": client, "op": 3, "number": 2, "restart": "done"})
    bench.commit()
    assert bench.messages() == {}
    assert bench.row()["client_restart"] == "done"


def test_news_are_told_once_a_unit(bench: ManagerBench) -> None:
    client = begun(bench)
    for number in range(1, 6):
        bench.submit(client, number, number)
    written = bench.commit()
    assert types(written["replies"]) == ["positions"]
    assert types(written["assignments"]) == ["request"] * 5


def test_another_host_restarts_both_sides_from_the_rows(bench: ManagerBench) -> None:
    client = begun(bench, requests=3)
    bench.respond(1, 1, 1, {"x": 1}, restart={"done": 1})
    bench.commit()
    bench.submit(client, 4, 4)  # never committed
    bench.take_over()
    assert bench.engine.unit.offsets == {("ns.requests", 0): bench.offsets["ns.requests"]}
    written = bench.commit()
    assert [(record["type"], record.get("number")) for record in written["replies"]] == [
        ("roll-call", None),
        ("restart", None),
        ("response", 1),
        ("request", 2),
        ("request", 3),
    ]
    restart = written["replies"][1]
    assert restart["restart"] == {"step": 3}
    assert (restart["cause"], restart["submitted"], restart["answered"]) == ("manager", 3, 1)
    to_server = written["assignments"][1:]
    assert [(record["type"], record.get("number")) for record in to_server] == [
        ("restart", None),
        ("response", 1),
        ("request", 2),
        ("request", 3),
    ]
    assert (to_server[0]["restart"], to_server[0]["assignment"]) == ({"done": 1}, 1)
    [event] = written["events"]
    assert (event["event"], event["exchanges"]) == ("exchanges-restarted", 1)


def test_the_same_host_goes_on_without_a_restart(bench: ManagerBench) -> None:
    begun(bench, requests=1)
    bench.open()
    assert types(bench.commit()["replies"]) == ["roll-call"]


def test_a_restart_larger_than_a_slice_is_sent_in_several(bench: ManagerBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.exchange_desk.SLICE_RECORDS", 3)
    client = begun(bench, requests=8)
    bench.take_over()
    assert types(bench.commit()["replies"]) == ["roll-call", "restart", "request", "request"]
    bench.request("sim", {"type": "alive", "incarnation": client})
    told = 2
    while bench.manager.due() == 0.0:  # what is due is past: the loop asks before it looks at its clock
        bench.manager.on_time(time.time())
        written = bench.commit()
        told += types(written.get("replies", [])).count("request")
    assert told == 8


def test_a_lost_server_session_is_replaced_by_the_next_of_the_order(bench: ManagerBench) -> None:
    begun(bench, requests=1)
    second = bench.open_server("hpc-2")
    bench.commit()
    bench.response("hpc-1", {"type": "bye", "server": "hpc-1", "incarnation": 0})
    written = bench.commit()
    assert [(record["type"], record["server"]) for record in written["assignments"]] == [
        ("restart", "hpc-2"),
        ("request", "hpc-2"),
    ]
    assert (bench.row()["server"], bench.row()["server_incarnation"], bench.row()["careful"]) == (
        "hpc-2",
        second,
        False,
    )


def test_a_younger_process_of_a_server_session_takes_over(bench: ManagerBench) -> None:
    begun(bench, requests=1)
    bench.open_server()
    written = bench.commit()["assignments"]
    assert types(written) == ["fenced", "restart", "request"]
    assert written[1]["careful"]
    # What the older one still says changes nothing.
    bench.respond(1, 1, 1)
    assert types(bench.commit()["assignments"]) == ["release"]
    assert bench.row()["answered"] == 0


def test_two_server_sessions_that_perform_one_request_store_one_response(bench: ManagerBench) -> None:
    begun(bench, requests=1)
    bench.open_server("hpc-2")
    bench.response("hpc-1", {"type": "bye", "server": "hpc-1", "incarnation": 0})
    bench.respond(1, 1, 1, "older", restart="older")
    bench.respond(2, 1, 1, "younger", server="hpc-2", restart="younger")
    bench.commit()
    assert bench.messages() == {"000000000001": {"body": "younger"}}
    assert bench.row()["server_restart"] == "younger"


def test_an_older_client_is_fenced(bench: ManagerBench) -> None:
    older = begun(bench, requests=1)
    younger = bench.open_client()
    bench.submit(older, 2, 2)
    written = bench.commit()["replies"]
    fenced = [record for record in written if record["type"] == "fenced"]
    assert [(record["incarnation"], record["current"]) for record in fenced] == [(older, younger)] * 2
    assert bench.row()["submitted"] == 1


def silence(bench: ManagerBench, monkeypatch: pytest.MonkeyPatch, seconds: float) -> list[dict[str, Any]]:
    """Let time pass in small steps; return what was written to ``assignments``."""
    now = time.monotonic()
    found = []
    for step in range(round(seconds * 4)):
        monkeypatch.setattr(time, "monotonic", lambda at=now + step / 4: at)
        asked_at = time.time()
        due = bench.manager.due()
        if due is not None and due <= asked_at:  # as the engine's loop does
            bench.manager.on_time(asked_at)
        found += bench.commit().get("assignments", [])
    return found


def test_nobody_is_taken_for_dead_before_he_was_asked(bench: ManagerBench, monkeypatch: pytest.MonkeyPatch) -> None:
    begun(bench, requests=1)
    told: list[str] = []
    # The lease is looked at every quarter of it: the call comes after one lease, or a quarter later.
    for _ in range(60):
        told += types(silence(bench, monkeypatch, 0.5))
        if told:
            break
    assert told == ["roll-call"]
    bench.response("hpc-1", {"type": "alive", "server": "hpc-1", "incarnation": 0})
    assert types(silence(bench, monkeypatch, 9)) == []
    assert bench.row()["server"] == "hpc-1"


def test_a_silent_server_session_loses_its_exchanges(bench: ManagerBench, monkeypatch: pytest.MonkeyPatch) -> None:
    begun(bench, requests=1)
    written = silence(bench, monkeypatch, 30)
    assert types(written) == ["roll-call", "start"]
    assert bench.row()["server"] == ""
    assert bench.row()["careful"]
    bench.open_server()
    assert types(bench.commit()["assignments"]) == ["restart", "request"]


def test_a_worker_that_stood_still_takes_nobody_for_dead(bench: ManagerBench, monkeypatch: pytest.MonkeyPatch) -> None:
    begun(bench, requests=1)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 3_600)
    bench.manager.on_time(0)
    assert bench.commit() == {}
    assert bench.row()["server"] == "hpc-1"


def test_a_request_that_kills_server_sessions_is_answered(bench: ManagerBench) -> None:
    begun(bench, requests=2)
    for assignment in (2, 3):
        bench.open_server()
        bench.response("sim", {"type": "begin", "server": "hpc-1", "assignment": assignment, "op": 1, "number": 1})
    bench.open_server()
    written = bench.commit()
    responses = [record for record in written["replies"] if record["type"] == "response"]
    assert [(record["number"], record["error"]["type"]) for record in responses] == [(1, "ServerDied")]
    assert bench.row()["answered"] == 1


def test_wrong_records_become_dead_letters(bench: ManagerBench) -> None:
    client = begun(bench)
    for record in (None, b"", b"\xff", b"[]", b"{", {"type": "nothing"}, {"type": "submit"}, {"v": 9, "type": "open"}):
        bench.request("sim", record)
        bench.response("sim", record)
    bench.request(None, {"type": "open", "client": "laptop"})
    bench.request("sim", {"type": "open", "client": ""})
    bench.request("sim", {"type": "open", "client": "x", "window": 0})
    bench.submit(client, 1, 1, restart="x" * (LIMIT // 4))
    written = bench.commit()
    letters = written.pop("dead-letters")
    assert len(letters) == 20
    assert {letter["headers"]["error"] for letter in letters} == {b"RecordError", b"TooLarge"}
    assert types(written.pop("replies")) == ["refused"]
    assert written == {}
    assert bench.row()["submitted"] == 0


def test_a_response_over_the_limit_answers_its_request_as_failed(bench: ManagerBench) -> None:
    begun(bench, requests=1)
    bench.respond(1, 1, 1, restart="x" * LIMIT)
    [response] = bench.commit()["replies"]
    assert response["error"]["type"] == "TooLarge"
    assert bench.row()["server_restart"] is None


def test_an_exchange_ends_and_is_forgotten() -> None:
    bench = ManagerBench(retention=0.0)
    client = begun(bench, requests=2)
    bench.request("sim", {"type": "finish", "incarnation": client, "op": 3})
    written = bench.commit()
    assert types(written["replies"]) == ["closed"]
    assert types(written["assignments"]) == ["release"]
    assert bench.messages() == {}
    assert bench.row()["state"] == "finished"
    bench.manager.on_time(0)
    bench.commit()
    assert bench.rows["exchanges"].peek(b"sim") is None


def test_an_exchange_expires_at_its_deadline(bench: ManagerBench) -> None:
    bench.open_client(deadline=0.001)
    bench.commit()
    while bench.row()["state"] == "open":
        bench.manager.on_time(0)
        bench.commit()
    assert (bench.row()["state"], bench.row()["reason"]) == ("expired", "deadline")


def test_a_wall_clock_that_jumps_ends_nothing(bench: ManagerBench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.open_client(deadline=3_600)
    bench.commit()
    now = time.time()
    for jump in (-1e6, 1e6):
        monkeypatch.setattr(time, "time", lambda at=now + jump: at)
        bench.manager.on_time(time.time())
        bench.commit()
        assert bench.row()["state"] == "open"


def test_a_client_that_is_away_for_too_long_lets_its_exchange_expire() -> None:
    bench = ManagerBench(timeout=0.0)
    client = begun(bench)
    bench.manager.on_time(0)
    bench.commit()
    assert bench.row()["state"] == "open"  # it is there
    bench.request("sim", {"type": "bye", "incarnation": client})
    while bench.row()["state"] == "open":
        bench.manager.on_time(0)
        bench.commit()
    assert bench.row()["reason"] == "timeout"


def test_an_operator_cancels(bench: ManagerBench) -> None:
    begun(bench, requests=1)
    bench.request("sim", {"type": "cancel", "id": "c1", "reason": "not needed"})
    written = bench.commit()
    assert [event["id"] for event in written["events"] if event["final"]] == ["c1"]
    assert written["replies"][0]["outcome"] == "cancelled"
    bench.request("sim", {"type": "cancel", "id": "c2"})
    [event] = bench.commit()["events"]
    assert (event["event"], event["reason"], event["id"]) == ("command-rejected", "cancelled", "c2")


def test_an_operator_restarts_both_sides_and_their_programs(bench: ManagerBench) -> None:
    client = begun(bench, requests=1)
    bench.request("sim", {"type": "restart", "id": "r1", "programs": True})
    written = bench.commit()
    assert types(written["replies"]) == ["start", "restart", "request"]
    assert types(written["assignments"]) == ["start", "restart", "request"]
    assert written["replies"][0]["incarnation"] == client
    assert written["replies"][0]["ordered"]
    assert written["assignments"][0]["ordered"]


def test_whoever_looks_sees_everything_and_changes_nothing(bench: ManagerBench) -> None:
    begun(bench, requests=2)
    bench.respond(1, 1, 1, {"x": 1}, restart={"done": 1})
    bench.commit()
    bench.request("sim", {"type": "look", "asker": "me"})
    look, first, second, end = bench.commit()["replies"]
    assert (look["client_restart"], look["server_restart"], look["outcome"]) == ({"step": 2}, {"done": 1}, None)
    assert (first["queue"], first["number"], first["body"]) == ("responses", 1, {"x": 1})
    assert (second["queue"], second["number"], second["body"]) == ("requests", 2, {"n": 2})
    assert end["type"] == "look-end"
    bench.response("hpc-1", {"type": "look", "server": "hpc-1", "asker": "me"})
    assert types(bench.commit()["assignments"]) == ["look", "look-message", "look-message", "look-end"]
    bench.request("unknown", {"type": "look", "asker": "me"})
    assert bench.commit()["replies"][0]["outcome"] == "unknown"


def test_nothing_is_acknowledged_while_the_backup_is_behind() -> None:
    lag: list[float | None] = [None]
    bench = ManagerBench(lag_max=0.5, lag=lambda number: lag[0])
    client = begun(bench)
    bench.submit(client, 1, 1)
    for behind in (None, 2.0):
        lag[0] = behind
        assert "replies" not in bench.commit()
        assert bench.row()["submitted"] == 1
        bench.manager.on_time(0)
    lag[0] = 0.1
    bench.manager.on_time(0)
    assert types(bench.commit()["replies"]) == ["positions"]


def test_a_unit_that_a_timer_fills_commits_an_offset(bench: ManagerBench) -> None:
    begun(bench, requests=1)
    bench.take_over()
    bench.commit()
    bench.request("sim", {"type": "restart", "id": "r1"})
    bench.commit()
    bench.manager.apply(b"sim", model.RestartOrdered())
    bench.manager.on_time(0)
    assert bench.engine.unit.offsets


def test_every_effect_of_the_core_is_performed(bench: ManagerBench) -> None:
    from typing import get_args

    assert set(bench.manager._desk._effects) == set(get_args(Effect))
