"""Servers with storages of their own: a file is found wherever it is, and moves with its tenant."""

import os
import random
import uuid
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from app.errors import ConfigurationError, StorageError
from app.movers import Share
from app.protocol.conveyance import Message, Segment
from app.settings import Settings
from app.storage import Shelf, Storage, open_storage, tenant_files
from app.storage.conclude import put_at, shelf_for
from app.storage.copying import copy
from app.storage.layout import at_server, is_name
from app.storage.servers import ServerStorages, url_of
from app.storage.tenant_files import TenantFiles
from app.worker.transfers import files_of_tenants, storage_of
from tests.support.directories import Directories
from tests.support.s3 import BUCKET, s3

SERVERS = 4
TENANT = "acme"
DATA = os.urandom(3 << 20)
"""More than is read at once."""


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch, s3(patch):
        yield f"s3://{BUCKET}"


@pytest.fixture(params=["file", "s3"])
def storages(request: pytest.FixtureRequest, tmp_path: Path) -> ServerStorages:
    base = f"file://{tmp_path}"
    if request.param == "s3":
        base = f"{request.getfixturevalue('bucket')}/{uuid.uuid4().hex}"
    settings = Settings(storage=f"{base}/all", server_storage=f"{base}/{{server}}", servers=SERVERS)
    made = storage_of(settings)
    assert isinstance(made, ServerStorages)
    return made


@pytest.fixture
def local(tmp_path: Path) -> ServerStorages:
    return ServerStorages(
        open_storage(f"file://{tmp_path}/all"), [open_storage(f"file://{tmp_path}/{n}") for n in range(SERVERS)]
    )


def stored(storage: Storage, shelf: Shelf, data: bytes = DATA) -> Shelf:
    """A message that came in two requests, whole."""
    segments: list[Segment] = []
    for instance, piece in ((1, data[:10]), (2, data[10:])):
        writer = storage.writer(shelf.prefix(instance))
        writer.write([piece])
        segments += writer.sync(final=True)
        writer.close()
    assert all(is_name(segment.name) for segment in segments)
    storage.compose(tuple(segments), shelf.object, last_writer=False)
    storage.clear(shelf.parts)
    return shelf


def content(storage: Storage, shelf: Shelf) -> bytes:
    size = storage.size(shelf.object)
    assert size is not None, f"{shelf} is gone"
    with storage.reading(shelf.object) as reader:
        return b"".join(reader.at(offset, 1 << 20) for offset in range(0, size, 1 << 20))


def shelf(name: str = "c", server: int = 0, epoch: int = 0, number: int = 7) -> Shelf:
    return Shelf(TENANT, name, number, at_server(server, epoch))


def parts(mover: TenantFiles, share: Share) -> list[tuple[str, bytes]]:
    found: list[tuple[str, bytes]] = []
    cursor = ""
    while True:
        page = mover.export(share, cursor)
        found += page.parts
        cursor = page.cursor
        if not cursor:
            return found


def install(mover: TenantFiles, source: Share, target: Share) -> None:
    for name, data in parts(mover, source):
        mover.install(target, name, data)


def names(storages: ServerStorages, server: int, directory: str = "objects") -> list[str]:
    return [file.name.rpartition("/")[2] for file in storages.at(server).below(directory)]


def test_a_file_moves_and_is_found(storages: ServerStorages) -> None:
    one, other = stored(storages, shelf()), stored(storages, Shelf(TENANT, "c", 9), b"of all servers")
    mover, epochs = TenantFiles(storages), [Share(TENANT, server, epoch) for epoch, server in enumerate((0, 1, 3, 0))]
    for source, target in pairwise(epochs):
        for _ in range(2):
            install(mover, source, target)
            assert content(storages, one) == DATA
        for _ in range(2):
            mover.delete(source)
            assert content(storages, one) == DATA
        assert names(storages, source.server) == []
        assert names(storages, target.server) == [f"7.{target.epoch}"]
        assert names(storages, target.server, "parts") == []
    assert content(storages, other) == b"of all servers"
    storages.delete([one.object])
    assert storages.size(one.object) is None
    assert [names(storages, server) for server in range(SERVERS)] == [[]] * SERVERS


def test_a_move_that_fails_leaves_the_file(storages: ServerStorages) -> None:
    one, source, target = stored(storages, shelf()), Share(TENANT, 0, 0), Share(TENANT, 1, 1)
    mover = TenantFiles(storages)
    install(mover, source, target)
    # A host was killed in the middle of a second file.
    left = storages.at(1).writer("parts/" + shelf("d", 1, 1).object.partition("objects/")[2] + "/dead-")
    left.write([b"half"])
    left.sync(final=True)
    left.close()
    live = storages.writer(shelf("e", 1, 0).prefix(1))
    live.write([b"of somebody's upload"])
    segments = live.sync(final=True)
    for _ in range(2):
        mover.discard(target)
    assert names(storages, 1) == []
    assert [f"@1/{file.name}" for file in storages.at(1).below("parts")] == [segment.name for segment in segments]
    assert content(storages, one) == DATA
    # The next attempt goes to the same place, under another epoch.
    install(mover, source, Share(TENANT, 1, 2))
    mover.discard(target)
    mover.delete(source)
    assert content(storages, one) == DATA


def test_what_became_whole_after_the_list_stays_and_is_found(local: ServerStorages) -> None:
    mover, source, target = TenantFiles(local), Share(TENANT, 0, 0), Share(TENANT, 1, 1)
    listed = parts(mover, source)
    late = stored(local, shelf("late"))
    for name, data in listed:
        mover.install(target, name, data)
    mover.delete(source)
    assert content(local, late) == DATA
    assert names(local, 0) == ["7.0"]


def test_a_file_that_is_deleted_meanwhile_is_passed_over(local: ServerStorages) -> None:
    mover, source, target = TenantFiles(local), Share(TENANT, 0, 0), Share(TENANT, 1, 1)
    gone = stored(local, shelf("gone"))
    listed = parts(mover, source)
    local.delete([gone.object])
    for name, data in listed:
        mover.install(target, name, data)
    assert local.size(gone.object) is None


def test_many_files_are_listed_in_pages(local: ServerStorages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenant_files, "AT_ONCE", 5)
    count = 8
    for number in range(count):
        stored(local, shelf(f"c{number}"), b"0123456789abc")
    mover = TenantFiles(local)
    page = mover.export(Share(TENANT, 0, 0), "")
    assert (len(page.parts), bool(page.cursor)) == (5, True)
    assert len({name for name, _ in parts(mover, Share(TENANT, 0, 0))}) == count
    assert mover.export(Share("nobody", 0, 0), "") == ([], "")


def test_a_copy_that_differs_is_not_kept(local: ServerStorages) -> None:
    one = stored(local, shelf())
    name = one.object.partition("/")[2]
    tmp = local.at(1).path(name)
    assert tmp is not None
    tmp.parent.mkdir(parents=True)
    tmp.write_bytes(DATA[:-1] + bytes([DATA[-1] ^ 1]))
    with pytest.raises(StorageError, match="differs"):
        copy(local.at(0), name, local.at(1), name, len(DATA))
    assert local.at(1).size(name) is None
    copy(local.at(0), name, local.at(1), name, len(DATA))
    assert tmp.read_bytes() == DATA


def test_a_part_that_is_no_file_is_refused(local: ServerStorages) -> None:
    for name in ("../../etc/passwd", "x/7", "0" * 32 + "/7/.."):
        with pytest.raises(ValueError, match="is no file"):
            TenantFiles(local).install(Share(TENANT, 1, 1), name, b'{"server":0,"epoch":0,"size":1}')


def test_parts_of_a_concatenation_that_lie_apart(storages: ServerStorages) -> None:
    """One part has moved, one was begun behind the move, one is nobody's."""
    pieces = [stored(storages, shelf("a")), stored(storages, shelf("b", 1, 1)), stored(storages, Shelf("", "c", 7))]
    mover = TenantFiles(storages)
    install(mover, Share(TENANT, 0, 0), Share(TENANT, 1, 1))
    mover.delete(Share(TENANT, 0, 0))
    segments = tuple(Segment(piece.object, len(DATA)) for piece in pieces)
    for count, joined in ((3, shelf("all", 2, 2)), (2, shelf("two", 1, 1))):
        storages.compose(segments[:count], joined.object, last_writer=False)
        storages.compose((), joined.object, last_writer=False)
        assert content(storages, joined) == DATA * count
    assert names(storages, 2, "parts") == []


@pytest.mark.parametrize("seed", range(15))
def test_moves_and_late_hosts_in_any_order(local: ServerStorages, seed: int) -> None:
    """Every file that was whole and not deleted can be read at every moment, whatever hosts do late or twice."""
    chance, mover = random.Random(seed), TenantFiles(local)
    home = Share(TENANT, 0, 0)
    tried, wanted, gone = 0, dict[Shelf, bytes](), list[Shelf]()
    late = list[tuple[str, Share, tuple[str, bytes]]]()
    for number in range(30):
        match chance.choice(["store", "store", "move", "move", "fail", "late", "late", "delete"]):
            case "store":
                # A worker may not have heard of the last moves.
                place = home if chance.random() < 0.6 else Share(TENANT, chance.randrange(SERVERS), 0)
                data = chance.randbytes(20 + number)
                wanted[stored(local, shelf(f"c{number}", place.server, place.epoch), data)] = data
            case "move" | "fail" as end:
                tried += 1
                target = Share(TENANT, chance.randrange(SERVERS), tried)
                listed = parts(mover, home)
                for name, data in listed:
                    mover.install(target, name, data)
                    late.append(("install", target, (name, data)))
                over = home if end == "move" else target
                (mover.delete if end == "move" else mover.discard)(over)
                late.append(("delete" if end == "move" else "discard", over, ("", b"")))
                home = target if end == "move" else home
            case "late" if late:
                what, share, part = chance.choice(late)
                mover.install(share, *part) if what == "install" else getattr(mover, what)(share)
            case "delete" if wanted and chance.random() < 0.5:
                victim = chance.choice(sorted(wanted, key=str))
                del wanted[victim]
                local.delete([victim.object])
                gone.append(victim)
            case _:
                continue
        for one, data in wanted.items():
            assert content(local, one) == data
    # What a late host brought back has no row; nothing else of it is there.
    assert tried


def test_the_place_is_the_owners_word() -> None:
    message = Message("m", 5, 7, details={"tenant": TENANT, "place": "../x"})
    assert put_at(message, lambda tenant: "").details == {"tenant": TENANT}
    placed = put_at(message, lambda tenant: at_server(3, 2))
    assert shelf_for("c", placed) == shelf(server=3, epoch=2)
    assert shelf_for("c", placed).object.startswith("@3/objects/t-")
    assert shelf_for("c", placed).object.endswith("/7.2")
    assert "place" not in put_at(Message("m", 5), lambda tenant: "1.1").details, "nobody's are in the storage of all"


def test_settings_make_storages_and_the_mover(tmp_path: Path) -> None:
    alone = storage_of(Settings(storage=f"file://{tmp_path}"))
    assert files_of_tenants(alone, {}) == {}, "where all share a storage nothing moves, and no migration is offline"
    theirs = storage_of(Settings(storage=f"file://{tmp_path}", server_storage="file:///x/{server}", servers=2))
    assert list(files_of_tenants(theirs, {"a": Directories(tmp_path), "z": Directories(tmp_path)})) == [
        "a",
        "files",
        "z",
    ]
    with pytest.raises(ConfigurationError, match="rename the mover 'files'"):
        files_of_tenants(theirs, {"files": Directories(tmp_path)})
    with pytest.raises(ValueError, match="server_storage"):
        Settings(server_storage="file:///x")
    assert url_of("@12/objects/a", "s3://all", "s3://files-{server}/x") == "s3://files-12/x/objects/a"
    assert url_of("objects/a", "s3://all", "s3://files-{server}/x") == "s3://all/objects/a"
    assert isinstance(theirs, ServerStorages)
    with pytest.raises(StorageError, match="there is no server 2"):
        theirs.size("@2/objects/a/b/c")
