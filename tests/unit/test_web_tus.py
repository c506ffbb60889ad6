"""tus 1.0 over two workers' web servers: every MUST of the core and of the extensions that are offered.

Comments say which rule of https://tus.io/protocols/resumable-upload (1.0.0) the lines below them are about.
"""

import hashlib
import os
from itertools import pairwise
from pathlib import Path
from urllib.parse import quote

import pytest

from app.protocol.conveyance import Done, Floating
from tests.support.cluster import wait_for
from tests.support.transfers import OCTETS, Site, ask, create, digest, name_of, pairs, patch

DATA = os.urandom(300_000)


# -- core ---------------------------------------------------------------------------------------------------------


def test_an_upload_goes_from_worker_to_worker(site: Site, w1: str, w2: str) -> None:
    path = create(w1, len(DATA))
    cuts = [0, 1, 100_000, 100_000, 250_000, len(DATA)]
    for number, (start, stop) in enumerate(pairwise(cuts)):
        here, there = (w1, w2) if number % 2 else (w2, w1)
        reply = patch(here, path, start, DATA[start:stop])
        # The Server MUST respond with 204 No Content and MUST include the Upload-Offset header containing the
        # new offset.
        assert (reply.status, reply.headers["Upload-Offset"]) == (204, str(stop))
        reply = ask(there, "HEAD", path)
        assert (reply.headers["Upload-Offset"], reply.headers["Upload-Length"]) == (str(stop), str(len(DATA)))
        assert len(site.objects()) == (stop == len(DATA)), "seen under its name only once it is whole"
    assert site.objects() == [DATA]
    assert [event["event"] for event in site.bench.events(name_of(path))] == ["transfer-completed"]
    assert ask(w1, "GET", path, Tus_Resumable=None).body == DATA


@pytest.mark.parametrize("method", ["HEAD", "PATCH", "POST", "DELETE"])
def test_an_unsupported_version(w1: str, method: str) -> None:
    # If the version specified by the Client is not supported, it MUST respond with 412 and MUST include the
    # Tus-Version
    # header. In addition, the Server MUST NOT process the request.
    path = create(w1, 3)
    target = "/files/" if method == "POST" else path
    for version in ("0.2.2", None):
        reply = ask(w1, method, target, Tus_Resumable=version, Upload_Length="3")
        assert (reply.status, reply.headers["Tus-Version"]) == (412, "1.0.0")
    assert ask(w1, "HEAD", path).status == 200


def test_every_answer_says_the_version(w1: str) -> None:
    # The Tus-Resumable header MUST be included in every request and response except for OPTIONS requests.
    path = create(w1, 3)
    for reply in (ask(w1, "HEAD", path), patch(w1, path, 9, b"abc"), ask(w1, "HEAD", "/files/unknown")):
        assert reply.headers["Tus-Resumable"] == "1.0.0"


def test_options(w1: str) -> None:
    # A successful response indicated by the 204 No Content or 200 OK status MUST contain the Tus-Version header.
    for path in ("/files/", "/files/any"):
        reply = ask(w1, "OPTIONS", path, Tus_Resumable=None)
        assert (reply.status, reply.headers["Tus-Version"]) == (204, "1.0.0")
        assert set(reply.headers["Tus-Extension"].split(",")) == {
            "creation",
            "creation-with-upload",
            "creation-defer-length",
            "checksum",
            "termination",
            "expiration",
            "concatenation",
        }
        assert reply.headers["Tus-Max-Size"] == str(10 * 1024**3)
        # The Tus-Checksum-Algorithm header MUST be included in the response to an OPTIONS request. SHA1 is a MUST.
        assert "sha1" in reply.headers["Tus-Checksum-Algorithm"].split(",")


def test_head(w1: str) -> None:
    path = create(w1, 3, Upload_Metadata="name ZGF0YQ==,empty")
    reply = ask(w1, "HEAD", path)
    # The Server MUST always include the Upload-Offset header in the response for a HEAD request, even if the
    # offset is 0.
    assert reply.headers["Upload-Offset"] == "0"
    # The Server MUST prevent the client and/or proxies from caching the response by adding Cache-Control: no-store.
    assert reply.headers["Cache-Control"] == "no-store"
    # the Upload-Metadata header MUST be included if set, as it was given.
    assert reply.headers["Upload-Metadata"] == "name ZGF0YQ==,empty"
    # If the resource is not found, the Server SHOULD return 404, 410 or 403 without the Upload-Offset header.
    reply = ask(w1, "HEAD", "/files/unknown")
    assert reply.status == 404
    assert "Upload-Offset" not in reply.headers


def test_a_conflict_of_offsets(site: Site, w1: str) -> None:
    # If the offsets do not match, the Server MUST respond with 409 Conflict without modifying the upload resource.
    path = create(w1, 10)
    assert patch(w1, path, 0, b"hello").status == 204
    for offset in (0, 4, 6, 10):
        assert patch(w1, path, offset, b"x").status == 409
        assert ask(w1, "HEAD", path).headers["Upload-Offset"] == "5"
    assert patch(w1, path, 5, b"world").status == 204
    assert site.objects() == [b"helloworld"]
    assert patch(w1, path, 5, b"world").status == 409


def test_a_wrong_content_type(w1: str) -> None:
    # All PATCH requests MUST use Content-Type: application/offset+octet-stream, otherwise the server SHOULD
    # return 415.
    path = create(w1, 3)
    assert ask(w1, "PATCH", path, b"abc", Upload_Offset="0", Content_Type="text/plain").status == 415
    assert ask(w1, "PATCH", path, b"abc", Content_Type=OCTETS).status == 400
    assert ask(w1, "PATCH", path, b"abc", Content_Type=OCTETS, Upload_Offset="-1").status == 400


def test_unknown_uploads(w1: str) -> None:
    # If the Server receives a PATCH request against a non-existent resource it SHOULD return a 404 Not Found status.
    assert patch(w1, "/files/unknown", 0, b"x").status == 404
    assert ask(w1, "DELETE", "/files/unknown").status == 404
    assert ask(w1, "GET", "/files/unknown").status == 404


def test_another_method_by_override(site: Site, w1: str) -> None:
    # If it is present, the Server MUST interpret its value as the request's method.
    path = create(w1, 5)
    override = {"X_HTTP_Method_Override": "PATCH", "Upload_Offset": "0", "Content_Type": OCTETS}
    assert ask(w1, "POST", path, b"hello", **override).status == 204
    assert site.objects() == [b"hello"]
    assert ask(w1, "POST", path, X_HTTP_Method_Override="DELETE").status == 204
    wait_for(lambda: site.objects() == [], 10, "it is deleted")
    assert ask(w1, "POST", path).status == 405


# -- creation -----------------------------------------------------------------------------------------------------


def test_creation(w1: str) -> None:
    # an Upload-Length or Upload-Defer-Length header MUST be included; the latter's value MUST be 1.
    assert ask(w1, "POST", "/files/").status == 400
    for wrong in ("-1", "x", "1.5", ""):
        assert ask(w1, "POST", "/files/", Upload_Length=wrong).status == 400
    assert ask(w1, "POST", "/files/", Upload_Defer_Length="2").status == 400
    assert ask(w1, "POST", "/files/", Upload_Length="1", Upload_Defer_Length="1").status == 400
    # keys and values MUST NOT be empty of key; keys MUST be unique; the value MUST be Base64 encoded
    for wrong in ("a !!!", "a YQ==,a YQ==", " ,b YQ=="):
        assert ask(w1, "POST", "/files/", Upload_Length="1", Upload_Metadata=wrong).status == 400
    # The Server MUST acknowledge a successful upload creation with 201 Created and set the Location header.
    reply = ask(w1, "POST", "/files/", Upload_Length="1")
    assert reply.status == 201
    assert reply.headers["Location"].startswith("/files/")


def test_an_empty_upload_is_whole_at_once(site: Site, w1: str) -> None:
    path = create(w1, 0)
    wait_for(lambda: isinstance(site.bench.state(name_of(path)), Done), 10, "the whole")
    assert site.objects() == [b""]
    assert ask(w1, "HEAD", path).headers["Upload-Offset"] == "0"
    assert ask(w1, "GET", path).body == b""


def test_creation_with_upload(site: Site, w1: str) -> None:
    # the Server MUST include the Upload-Offset header in the response
    reply = ask(w1, "POST", "/files/", b"hello", Upload_Length="10", Content_Type=OCTETS)
    assert (reply.status, reply.headers["Upload-Offset"]) == (201, "5")
    assert patch(w1, reply.headers["Location"], 5, b"world").status == 204
    assert site.objects() == [b"helloworld"]
    reply = ask(w1, "POST", "/files/", b"all", Upload_Length="3", Content_Type=OCTETS)
    assert (reply.status, reply.headers["Upload-Offset"]) == (201, "3")


def test_a_length_that_comes_later(site: Site, w1: str, w2: str) -> None:
    path = create(w1)
    reply = ask(w2, "HEAD", path)
    # If the length is not known, the Server MUST set Upload-Defer-Length: 1.
    assert reply.headers["Upload-Defer-Length"] == "1"
    assert "Upload-Length" not in reply.headers
    assert patch(w1, path, 0, b"hello").status == 204
    assert patch(w2, path, 5, b"wor", Upload_Length="10").status == 204
    # Once set the length MUST NOT be changed.
    assert patch(w2, path, 8, b"ld", Upload_Length="11").status == 400
    assert ask(w1, "HEAD", path).headers["Upload-Length"] == "10"
    assert patch(w1, path, 8, b"ld", Upload_Length="10").status == 204
    assert site.objects() == [b"helloworld"]


@pytest.mark.settings(max_upload_bytes=1000)
def test_what_is_too_large(w1: str) -> None:
    # If the length of the upload exceeds the maximum, the Server MUST respond with 413 Request Entity Too Large.
    assert ask(w1, "POST", "/files/", Upload_Length="1001").status == 413
    path = create(w1)
    assert patch(w1, path, 0, bytes(1001)).status == 413
    path = create(w1, 10)
    assert patch(w1, path, 0, bytes(11)).status == 413
    assert ask(w1, "HEAD", path).headers["Upload-Offset"] == "0"
    chunks = (bytes(6) for _ in range(2))
    reply = patch(w1, path, 0, chunks)
    assert reply.status == 413, "chunks without a length are counted"


@pytest.mark.settings(uploads_per_remote=2)
def test_too_many_of_one_remote(w1: str) -> None:
    first = create(w1, 5)
    create(w1, 5)
    assert ask(w1, "POST", "/files/", Upload_Length="5").status == 429
    assert ask(w1, "POST", "/files/", Upload_Length="5", X_Forwarded_For="10.0.0.9").status == 201
    assert patch(w1, first, 0, b"12345").status == 204
    create(w1, 5)


@pytest.mark.settings(uploads_max=1)
def test_too_many_in_all(w1: str) -> None:
    create(w1, 5)
    assert ask(w1, "POST", "/files/", Upload_Length="5", X_Forwarded_For="10.0.0.9").status == 507


def test_metadata_that_are_too_long(w1: str) -> None:
    longest = 16_384 - len("name ")
    assert ask(w1, "POST", "/files/", Upload_Length="5", Upload_Metadata="name " + "a" * (longest + 1)).status == 400


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a b/ü", "%2e%2e", "x" * 200])
def test_names_of_remotes_never_become_paths(site: Site, w1: str, name: str) -> None:
    metadata = pairs(filename=name, tenant=name)
    path = create(w1, 3, Holdfast_Connection=quote(name, safe=""), Upload_Metadata=metadata)
    assert path == f"/files/{quote(name, safe='')}"
    assert patch(w1, path, 0, b"abc").status == 204
    assert ask(w1, "GET", path).body == b"abc"
    outside = [Path(place, name) for place, _, names in os.walk(site.directory.parent) for name in names]
    assert [found.relative_to(site.directory).parts[0] for found in outside] == ["objects"]


def test_names_that_are_none(w1: str) -> None:
    for name in ("", ".", "..", "x" * 201, "%00"):
        assert ask(w1, "POST", "/files/", Upload_Length="1", Holdfast_Connection=name).status == 404


# -- checksum -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "md5", "sha512"])
def test_checksums(site: Site, w1: str, w2: str, algorithm: str) -> None:
    path = create(w1, 10)
    assert patch(w1, path, 0, b"hello", Upload_Checksum=digest(algorithm, b"hello")).status == 204
    # If the checksums do not match, the Server MUST return 460 Checksum Mismatch and MUST discard the uploaded chunk.
    reply = patch(w1, path, 5, b"wrong", Upload_Checksum=digest(algorithm, b"world"))
    assert (reply.status, reply.headers["Upload-Offset"]) == (460, "5")
    assert ask(w2, "HEAD", path).headers["Upload-Offset"] == "5"
    assert patch(w2, path, 5, b"world", Upload_Checksum=digest(algorithm, b"world")).status == 204
    assert site.objects() == [b"helloworld"]


def test_a_checksum_that_is_none(w1: str) -> None:
    # If the Server does not support the algorithm, it MUST respond with 400 Bad Request.
    path = create(w1, 5)
    for wrong in ("crc32 AAAA", "sha1", "sha1 !!!", "sha1 AAAA"):
        assert patch(w1, path, 0, b"hello", Upload_Checksum=wrong).status == 400
    assert ask(w1, "HEAD", path).headers["Upload-Offset"] == "0"


def test_the_checksum_of_the_whole(site: Site, w1: str) -> None:
    right = pairs(checksum=f"sha256:{hashlib.sha256(b'hello').hexdigest()}")
    path = create(w1, 5, Upload_Metadata=right)
    assert patch(w1, path, 0, b"hullo").status == 460
    assert ask(w1, "HEAD", path).headers["Upload-Offset"] == "0", "NAK: send it again"
    assert site.objects() == []
    assert patch(w1, path, 0, b"hello").status == 204
    assert site.objects() == [b"hello"]
    assert ask(w1, "POST", "/files/", Upload_Length="5", Upload_Metadata=pairs(checksum="sha256:12")).status == 400


# -- termination, expiration --------------------------------------------------------------------------------------


def test_termination(site: Site, w1: str, w2: str) -> None:
    # the Server SHOULD free associated resources and MUST respond with 204 No Content; for all future requests
    # to this
    # URL the Server SHOULD respond with 404 or 410.
    path = create(w1, 10)
    assert patch(w1, path, 0, b"hello").status == 204
    assert ask(w2, "DELETE", path).status == 204
    for reply in (ask(w1, "HEAD", path), patch(w1, path, 5, b"world"), ask(w2, "DELETE", path), ask(w2, "GET", path)):
        assert reply.status == 410
    wait_for(lambda: not [p for p in site.directory.rglob("*") if p.is_file()], 10, "segments are deleted")
    path = create(w1, 5)
    assert patch(w1, path, 0, b"hello").status == 204
    assert ask(w2, "DELETE", path).status == 204
    wait_for(lambda: site.objects() == [], 10, "the object is deleted")


@pytest.mark.settings(upload_expires=60)
def test_expiration(site: Site, w1: str) -> None:
    reply = ask(w1, "POST", "/files/", Upload_Length="10")
    path = reply.headers["Location"]
    # This header MUST be included in every PATCH response if the upload is going to expire; RFC 9110 date.
    assert reply.headers["Upload-Expires"].endswith(" GMT")
    assert patch(w1, path, 0, b"hello").headers["Upload-Expires"].endswith(" GMT")
    wait_for(lambda: isinstance(site.bench.state(name_of(path)), Floating), 10, "the lock is given back")
    site.bench.tick(61)
    # the Server SHOULD respond with 410 Gone if it keeps track of expired uploads.
    assert ask(w1, "HEAD", path).status == 410
    assert patch(w1, path, 5, b"world").status == 410
    assert [event["reason"] for event in site.bench.events(name_of(path))] == ["expired"]
    site.bench.tick(200)
    assert ask(w1, "HEAD", path).status == 404


# -- concatenation ------------------------------------------------------------------------------------------------


def test_concatenation(site: Site, w1: str, w2: str) -> None:
    first, second = create(w1, 5, Upload_Concat="partial"), create(w2, 6, Upload_Concat="partial")
    assert patch(w1, first, 0, b"hello").status == 204
    # the Server MAY respond with an error if the partial uploads are not finished: without concatenation-unfinished.
    concat = f"final;{first} {w1}{second}"
    assert ask(w1, "POST", "/files/", Upload_Concat=concat).status == 409
    assert patch(w2, second, 0, b" world").status == 204
    assert ask(w1, "HEAD", first).headers["Upload-Concat"] == "partial"
    # The Client MUST NOT include the Upload-Length header in the final upload creation.
    assert ask(w1, "POST", "/files/", Upload_Concat=concat, Upload_Length="11").status == 400
    reply = ask(w2, "POST", "/files/", Upload_Concat=concat)
    assert reply.status == 201
    final = reply.headers["Location"]
    wait_for(lambda: isinstance(site.bench.state(name_of(final)), Done), 10, "the whole")
    reply = ask(w1, "HEAD", final)
    assert (reply.headers["Upload-Length"], reply.headers["Upload-Offset"]) == ("11", "11")
    assert reply.headers["Upload-Concat"] == concat
    assert ask(w1, "GET", final).body == b"hello world"
    # The Server MUST respond with 403 Forbidden to PATCH requests against a final upload URL.
    assert patch(w1, final, 11, b"!").status == 403
    assert [event["event"] for event in site.bench.events(name_of(final))] == ["transfer-completed"]
    assert site.bench.events(name_of(first)) == []
    # Parts may go; the whole stays.
    assert ask(w1, "DELETE", first).status == 204
    assert ask(w1, "GET", final).body == b"hello world"


def test_concatenations_that_are_none(w1: str) -> None:
    whole = create(w1, 0)
    for wrong in ("final", "final;", "both", f"final;{whole}", "final;/files/unknown", "final;/other/x"):
        assert ask(w1, "POST", "/files/", Upload_Concat=wrong).status in (400, 404, 409), wrong


@pytest.mark.settings(token="secret")
def test_the_token_is_wanted_here_too(w1: str) -> None:
    for method, path in (("POST", "/files/"), ("HEAD", "/files/x"), ("GET", "/files/x"), ("GET", "/api/transfers")):
        assert ask(w1, method, path, Upload_Length="1").status == 401
    assert ask(w1, "POST", "/files/", Upload_Length="1", Authorization="Bearer secret").status == 201
