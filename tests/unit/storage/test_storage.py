"""Segments and objects: on this machine, in an S3, and in another file system of fsspec."""

import errno
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.errors import ConfigurationError, StorageError
from app.protocol.conveyance import Completing, Conveyance, Message, Reason, Segment, Segments
from app.storage import Shelf, Storage, open_storage
from app.storage.conclude import checksum_of, conclude, shelf_of
from app.storage.layout import tenant_directory
from app.storage.local import LocalStorage
from app.storage.objects import FLUSH_BYTES
from tests.support.s3 import BUCKET, s3

SHELF = Shelf("acme", "device/../7", 12)
DATA = os.urandom(1 << 16)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch, s3(patch):
        yield f"s3://{BUCKET}"


@pytest.fixture(params=["file", "memory", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    match request.param:
        case "file":
            return open_storage(f"file://{tmp_path}/files")
        case "memory":
            return open_storage(f"memory://{uuid.uuid4().hex}")
        case _:
            return open_storage(f"{request.getfixturevalue('bucket')}/{uuid.uuid4().hex}")


def written(storage: Storage, instance: int, *chunks: bytes) -> Segments:
    writer = storage.writer(SHELF.prefix(instance))
    for chunk in chunks:
        writer.write([chunk])
    segments = writer.sync(final=True)
    writer.close()
    return segments


def content(storage: Storage, name: str, size: int) -> bytes:
    with storage.reading(name) as reader:
        return reader.at(0, size)


def test_the_whole_is_what_the_segments_list(storage: Storage) -> None:
    first, second = written(storage, 1, DATA[:100], DATA[100:300]), written(storage, 2, DATA[290:])
    assert sum(segment.length for segment in first) == 300
    # The second holder began at 290: only so much of the first counts.
    listed = (Segment(first[0].name, 290), *second)
    assert storage.size(SHELF.object) is None
    storage.compose(listed, SHELF.object, last_writer=False)
    assert storage.size(SHELF.object) == len(DATA)
    assert content(storage, SHELF.object, len(DATA)) == DATA
    storage.compose((), SHELF.object, last_writer=False)
    assert storage.size(SHELF.object) == len(DATA), "composed again, it stays as it is"
    storage.clear(SHELF.parts)
    assert storage.durable(first[0].name) is None
    mine, others = (f"objects/{tenant_directory(tenant)}" for tenant in ("acme", "other"))
    assert [(file.name, file.size) for file in storage.below(mine)] == [(SHELF.object, len(DATA))]
    assert list(storage.below(others)) == []
    storage.delete([SHELF.object, SHELF.object])
    assert storage.size(SHELF.object) is None
    storage.clear(SHELF.parts)


def test_large_segments_are_composed_by_the_store(storage: Storage) -> None:
    big = os.urandom(FLUSH_BYTES)
    segments = written(storage, 1, big, big[: FLUSH_BYTES - 5], b"12345", b"end")
    storage.compose(segments, SHELF.object, last_writer=True)
    assert content(storage, SHELF.object, 3 * FLUSH_BYTES) == big + big[: FLUSH_BYTES - 5] + b"12345end"


def test_a_message_without_bytes(storage: Storage) -> None:
    storage.compose((), SHELF.object, last_writer=False)
    assert storage.size(SHELF.object) == 0


def test_bytes_are_taken_back(storage: Storage) -> None:
    writer = storage.writer(SHELF.prefix(1))
    writer.write([b"kept"])
    writer.apart()
    writer.write([b"wrong"])
    writer.take_back()
    writer.write([b"right"])
    segments = writer.sync(final=True)
    assert writer.length == 9
    writer.close()
    storage.compose(segments, SHELF.object, last_writer=False)
    assert content(storage, SHELF.object, 9) == b"keptright"


def test_a_segment_that_is_shorter_than_its_row_says(storage: Storage) -> None:
    (segment,) = written(storage, 1, b"short")
    with pytest.raises(StorageError):
        storage.compose((Segment(segment.name, 6),), SHELF.object, last_writer=False)
    assert storage.size(SHELF.object) is None


def completing(segments: Segments, **message: object) -> Completing:
    size = sum(segment.length for segment in segments)
    fields = {"name": "m", "size": size, "number": SHELF.message, "details": {"tenant": "acme"}, **message}
    return Completing(2, Conveyance(Message(**fields), segments, 0), None, by=1)  # type: ignore[arg-type]


def test_conclusions(storage: Storage) -> None:
    segments = written(storage, 1, b"hello ", b"world")
    sum_of_it = "sha256:b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9"
    state = completing(segments, checksum="sha256:00")
    assert shelf_of(SHELF.connection, state.conveyance) == SHELF
    assert conclude(storage, SHELF.connection, state).spoiled is Reason.CHECKSUM
    assert storage.size(SHELF.object) is None, "what is wrong is not seen under its name"
    segments = written(storage, 3, b"hello ", b"world")
    state = completing(segments, checksum=sum_of_it, details={"tenant": "acme", "publish": "topic"})
    for _ in range(2):
        done = conclude(storage, SHELF.connection, state)
        assert done == (None, sum_of_it, b"hello world")
    assert checksum_of(storage, SHELF.object, 11, "sha256") == sum_of_it
    lost = completing((Segment(f"{SHELF.parts}/9-0", 3),), number=13)
    assert conclude(storage, SHELF.connection, lost).spoiled is Reason.STORAGE


def test_names_never_become_paths() -> None:
    for name in ("..", "/etc/passwd", "a/b", "\u2025", "x" * 200):
        shelf = Shelf(name, name, 1)
        assert ".." not in shelf.object
        assert set(shelf.object) <= set("abcdefghijklmnopqrstuvwxyz0123456789-/")
        assert shelf.object.count("/") == 3
    assert Shelf("", "c", 1).object.startswith("objects/common/")


def test_an_unknown_protocol_is_a_wrong_setting() -> None:
    with pytest.raises(ConfigurationError, match="HOLDFAST_STORAGE=nothing://x"):
        open_storage("nothing://x")


# -- files --------------------------------------------------------------------------------------------------------


@pytest.fixture
def local(tmp_path: Path) -> LocalStorage:
    return LocalStorage(str(tmp_path))


def test_a_single_segment_becomes_the_object(local: LocalStorage, tmp_path: Path) -> None:
    (segment,) = written(local, 1, DATA)
    inode = (tmp_path / segment.name).stat().st_ino
    local.compose((segment,), SHELF.object, last_writer=True)
    assert (tmp_path / SHELF.object).stat().st_ino == inode


def test_a_segment_with_bytes_that_do_not_count_is_copied(local: LocalStorage, tmp_path: Path) -> None:
    (segment,) = written(local, 1, DATA)
    local.compose((Segment(segment.name, 10),), SHELF.object, last_writer=True)
    assert (tmp_path / SHELF.object).read_bytes() == DATA[:10]


def test_what_a_late_writer_writes_is_seen_by_nobody(local: LocalStorage, tmp_path: Path) -> None:
    late = local.writer(SHELF.prefix(1))
    late.write([b"counts"])
    segments = late.sync(final=True)
    local.compose(segments, SHELF.object, last_writer=False)
    late.write([b" does not"])
    assert (tmp_path / SHELF.object).read_bytes() == b"counts"
    local.clear(SHELF.parts)
    late.write([b" nor this"])
    late.close()
    assert not (tmp_path / SHELF.parts).exists()


def test_what_a_dead_writer_left_is_found(local: LocalStorage) -> None:
    dead = local.writer(SHELF.prefix(1))
    dead.write([b"left behind"])
    assert local.durable(f"{SHELF.prefix(1)}0") == 11
    dead.close()


def test_a_full_disk(local: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = local.writer(SHELF.prefix(1))
    writer.write([b"safe"])

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", full)
        with pytest.raises(StorageError) as caught:
            writer.write([b"more"])
    assert caught.value.full
    assert writer.sync(final=True) == (Segment(f"{SHELF.prefix(1)}0", 4),)
    writer.close()


def test_a_write_that_is_cut_short_goes_on(local: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.writev
    monkeypatch.setattr(os, "writev", lambda file, chunks: whole(file, [b"".join(chunks)[:3]]))
    segments = written(local, 1, b"hello world")
    assert content(local, segments[0].name, 20) == b"hello world"


def test_without_ranges_bytes_go_through_memory(local: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EXDEV, "not here")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    segments = (*written(local, 1, DATA[:1000]), *written(local, 2, DATA[1000:]))
    local.compose(segments, SHELF.object, last_writer=False)
    assert content(local, SHELF.object, len(DATA)) == DATA
