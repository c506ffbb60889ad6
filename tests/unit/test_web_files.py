"""Pulls with ranges and their confirmation, lists, and the client that goes from worker to worker."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from tusclient.client import TusClient

from app.client.transfers import Transfers
from app.errors import ConfigurationError, HoldfastError
from app.protocol.conveyance import Done
from tests.support.transfers import Site, ask, create, patch

DATA = os.urandom(3_000_000)
SUM = f"sha256:{hashlib.sha256(DATA).hexdigest()}"


@pytest.fixture
def path(site: Site) -> str:
    made = create(site.urls["w1"], len(DATA), Holdfast_Connection="report")
    assert patch(site.urls["w1"], made, 0, DATA).status == 204
    return made


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "report.bin"
    made.write_bytes(DATA)
    return made


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [("0-", 0, len(DATA)), ("5-9", 5, 10), ("2999990-", 2_999_990, len(DATA)), ("-7", len(DATA) - 7, len(DATA))],
)
def test_ranges(site: Site, path: str, asked: str, start: int, stop: int) -> None:
    reply = ask(site.urls["w2"], "GET", path, Range=f"bytes={asked}")
    assert reply.status == 206
    assert reply.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(DATA)}"
    assert reply.body == DATA[start:stop]


def test_ranges_that_are_none(site: Site, path: str) -> None:
    for asked in (f"bytes={len(DATA)}-", "bytes=a-b", "bytes=9-5"):
        assert ask(site.urls["w2"], "GET", path, Range=asked).status == 416, asked


def test_the_next_range_confirms_the_one_before(site: Site, path: str) -> None:
    for start in (0, 1000, 500):
        ask(site.urls["w1"], "GET", path, Range=f"bytes={start}-{start + 99}")
    state = site.bench.state("report")
    assert isinstance(state, Done)
    assert state.confirmed == 1000


def test_an_acknowledgement_counts_once(site: Site, path: str) -> None:
    def ack(url: str, **fields: object) -> int:
        return ask(url, "POST", f"{path}/ack", json.dumps(fields).encode()).status

    w1, w2 = site.urls["w1"], site.urls["w2"]
    assert ack(w1, offset=1000) == 200
    assert ack(w1, offset=len(DATA) + 1) == 409
    assert ack(w1, offset=len(DATA), checksum="sha256:" + "0" * 64) == 460
    assert ack(w1, offset=len(DATA), checksum="crc:1") == 400
    assert ack(w1, offset="all") == 400
    for url in (w1, w2, w1):
        assert ack(url, offset=len(DATA), checksum=SUM) == 200
    assert [e["event"] for e in site.bench.events("report")] == ["transfer-completed", "transfer-acknowledged"]


def test_what_is_not_whole_is_not_given_out(site: Site) -> None:
    path = create(site.urls["w1"], 10)
    assert patch(site.urls["w1"], path, 0, b"hello").status == 204
    assert ask(site.urls["w1"], "GET", path).status == 409
    assert ask(site.urls["w1"], "POST", f"{path}/ack", b'{"offset": 5}').status == 409


def test_lists(site: Site, path: str) -> None:
    create(site.urls["w1"], 10, Holdfast_Connection="other")
    found = ask(site.urls["w2"], "GET", "/api/transfers").json()["transfers"]
    ours = [row for row in found if row["connection"] == "report"]
    assert {row["connection"] for row in found} == {"report", "other"}
    assert (ours[0]["state"], ours[0]["offset"], ours[0]["size"]) == ("done", len(DATA), len(DATA))
    assert ask(site.urls["w2"], "GET", "/api/transfers/report").json() == ours[0]
    assert ask(site.urls["w2"], "GET", "/api/transfers/nobody").status == 404


# -- the client ---------------------------------------------------------------------------------------------------


def client(site: Site, **settings: Any) -> Transfers:
    return Transfers(urls=("http://127.0.0.1:9", *site.urls.values()), **settings)


def test_the_client_pushes_and_pulls(site: Site, file: Path, tmp_path: Path) -> None:
    told: list[int] = []
    with client(site) as transfers:
        done = transfers.push(file, "weekly report/7", metadata={"tenant": "acme"}, advance=told.append)
        assert (done["state"], done["checksum"], done["tenant"]) == ("done", SUM, "acme")
        assert told[-1] == len(DATA)
        assert transfers.sent == len(DATA)
        # The same again sends nothing.
        transfers.push(file, "weekly report/7", metadata={"tenant": "acme"})
        assert transfers.sent == len(DATA)
        copy = tmp_path / "copy"
        assert transfers.pull("weekly report/7", copy)["checksum"] == SUM
    assert copy.read_bytes() == DATA
    assert not copy.with_name("copy.part").exists()
    assert len(site.bench.events("weekly report/7")) == 2


def test_the_client_goes_on_where_it_stopped(site: Site, file: Path, tmp_path: Path) -> None:
    path = create(site.urls["w1"], len(DATA), Holdfast_Connection="half")
    assert patch(site.urls["w1"], path, 0, DATA[:2_000_000]).status == 204
    with client(site) as transfers:
        transfers.push(file, "half", begun=True)
        assert transfers.sent == 1_000_000
        (tmp_path / "copy.part").write_bytes(DATA[:2_999_000])
        transfers.pull("half", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == DATA


def test_the_client_says_what_is_wrong(site: Site, file: Path, tmp_path: Path) -> None:
    with client(site) as transfers:
        with pytest.raises(HoldfastError, match="no such upload"):
            transfers.pull("nobody", tmp_path / "x")
        with pytest.raises(HoldfastError, match="no such upload"):
            transfers.push(file, "nobody", begun=True)
        create(site.urls["w1"], 5, Holdfast_Connection="mine")
        with pytest.raises(HoldfastError, match="another message is under way"):
            transfers.push(file, "mine")
        transfers.cancel("mine")
        assert (transfers.show("mine") or {})["state"] == "failed"
        assert transfers.show("nobody") is None
        transfers.push(file, "mine")
        (tmp_path / "bad.part").write_bytes(b"x" * len(DATA))
        with pytest.raises(HoldfastError, match="is not what was stored"):
            transfers.pull("mine", tmp_path / "bad")


@pytest.mark.settings(token="secret")
def test_the_client_sends_the_token(site: Site, file: Path) -> None:
    with client(site) as transfers, pytest.raises(ConfigurationError, match="HOLDFAST_TOKEN"):
        transfers.push(file, "x")
    with client(site, token="secret") as transfers:
        assert transfers.push(file, "x")["state"] == "done"


@pytest.mark.parametrize("checked", [False, True])
def test_a_client_that_others_use(site: Site, file: Path, checked: bool) -> None:
    with file.open("rb") as stream:
        given: dict[str, Any] = {"file_stream": stream, "chunk_size": 700_000, "upload_checksum": checked}
        uploader = TusClient(f"{site.urls['w1']}/files/").uploader(**given, metadata={"filename": "report.bin"})
        uploader.upload_chunk()  # type: ignore[no-untyped-call]
        url = str(uploader.url).replace(site.urls["w1"], site.urls["w2"])
        TusClient(f"{site.urls['w2']}/files/").uploader(**given, url=url).upload()
    assert site.objects() == [DATA]
