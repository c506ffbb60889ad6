"""The headers of tus 1.0, read and written; what is wrong with them as the protocol's own answers."""

import base64
import binascii
import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from app.protocol.conveyance import Done, Failed, Idle, Nak, Reason, State
from app.records import valid_name
from app.web.answers import ProblemError

VERSION: Final = "1.0.0"
EXTENSIONS: Final = "creation,creation-with-upload,creation-defer-length,checksum,termination,expiration,concatenation"
CHECKSUMS: Final = ("sha1", "sha256", "md5", "sha512")
OCTETS: Final = "application/offset+octet-stream"
METADATA_MAX: Final = 16_384

_STATUS: Final[Mapping[Reason, int]] = {
    Reason.UNKNOWN: 404,
    Reason.LOCKED: 423,
    Reason.FENCED: 423,
    Reason.BUSY: 409,
    Reason.COMPLETE: 403,
    Reason.MISMATCH: 409,
    Reason.TOO_LARGE: 413,
    Reason.REMOTE_QUOTA: 429,
    Reason.TOTAL_QUOTA: 507,
    Reason.EXPIRED: 410,
    Reason.CANCELLED: 410,
    Reason.CHECKSUM: 460,
    Reason.STORAGE: 503,
}

_MESSAGE: Final[Mapping[Reason, str]] = {
    Reason.UNKNOWN: "there is no such upload",
    Reason.LOCKED: "another request has the upload; try again",
    Reason.FENCED: "another worker has taken the upload over; ask for the offset and go on",
    Reason.BUSY: "another message is under way on this connection",
    Reason.COMPLETE: "the upload is complete",
    Reason.MISMATCH: "that does not fit what is known of the upload",
    Reason.TOO_LARGE: "larger than what is taken, see Tus-Max-Size",
    Reason.REMOTE_QUOTA: "too many unfinished uploads of yours (UPLOADS_PER_REMOTE)",
    Reason.TOTAL_QUOTA: "too many unfinished uploads (UPLOADS_MAX)",
    Reason.EXPIRED: "the upload has expired",
    Reason.CANCELLED: "the upload was cancelled",
    Reason.CHECKSUM: "the bytes are not those that the checksum says",
    Reason.STORAGE: "the storage does not answer",
}


def refused(nak: Nak) -> ProblemError:
    """The answer of HTTP to a Nak; it says where to go on."""
    status = _STATUS[nak.reason]
    return ProblemError(status, nak.reason.value, _MESSAGE[nak.reason], offset=nak.resume)


def gone_or_unknown(state: State) -> None:
    """Raise what an upload is answered with that is not there."""
    if isinstance(state, Idle):
        raise refused(Nak(Reason.UNKNOWN))
    if isinstance(state, Failed):
        raise (
            refused(Nak(state.reason))
            if _STATUS[state.reason] == 410
            else ProblemError(410, state.reason.value, f"the upload has failed: {_MESSAGE[state.reason]}")
        )


def number(headers: Mapping[str, str], name: str) -> int | None:
    """A header that is a number of bytes, or None where it is missing.

    Raises:
        ProblemError: 400, it is something else.
    """
    text = headers.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise ProblemError(400, "bad-request", f"{name}: {text!r} is no number of bytes")
    return int(text)


def metadata(text: str) -> dict[str, str]:
    """The pairs of ``Upload-Metadata``.

    Raises:
        ProblemError: 400, they are not as the protocol wants them.
    """
    if len(text) > METADATA_MAX:
        raise ProblemError(400, "bad-request", f"Upload-Metadata: at most {METADATA_MAX} characters")
    pairs: dict[str, str] = {}
    for pair in text.split(",") if text.strip() else ():
        key, _, value = pair.strip().partition(" ")
        if not key or not key.isascii() or key in pairs:
            raise ProblemError(400, "bad-request", "Upload-Metadata: keys are ASCII, not empty, each once")
        try:
            pairs[key] = base64.b64decode(value.strip(), validate=True).decode(errors="replace")
        except binascii.Error as error:
            raise ProblemError(400, "bad-request", f"Upload-Metadata: {key} is not base64") from error
    return pairs


def checksum(headers: Mapping[str, str]) -> tuple[str, bytes] | None:
    """Algorithm and digest of ``Upload-Checksum``, or None.

    Raises:
        ProblemError: 400, an algorithm that is not offered, or no digest.
    """
    text = headers.get("Upload-Checksum")
    if text is None:
        return None
    algorithm, _, encoded = text.partition(" ")
    try:
        digest = base64.b64decode(encoded.strip(), validate=True)
    except binascii.Error:
        digest = b""
    if algorithm not in CHECKSUMS or len(digest) != hashlib.new(algorithm, usedforsecurity=False).digest_size:
        raise ProblemError(
            400, "bad-request", f"Upload-Checksum: one of {', '.join(CHECKSUMS)}, and its digest in base64"
        )
    return algorithm, digest


def whole_checksum(text: str) -> str:
    """The checksum of a whole message in its metadata, ``algorithm:hexadecimal``.

    Raises:
        ProblemError: 400, it is none.
    """
    algorithm, _, digits = text.partition(":")
    wanted = 2 * hashlib.new(algorithm, usedforsecurity=False).digest_size if algorithm in CHECKSUMS else 0
    if text and (len(digits) != wanted or not all(digit in "0123456789abcdef" for digit in digits)):
        raise ProblemError(400, "bad-request", "metadata checksum: sha256: and 64 hexadecimal digits, for example")
    return text


def concatenated(text: str) -> list[str]:
    """The connections that a final upload is made of, from ``Upload-Concat``.

    Raises:
        ProblemError: 400, they are not named by their URLs.
    """
    found = []
    for url in text.partition(";")[2].split():
        directory, _, name = urlsplit(url).path.rpartition("/")
        if not directory.endswith("/files"):
            raise ProblemError(400, "bad-request", f"Upload-Concat: {url} is no upload")
        found.append(connection_of(unquote(name)))
    if not found:
        raise ProblemError(400, "bad-request", "Upload-Concat: final; and the URLs of the parts")
    return found


def connection_of(name: str) -> str:
    """The name of a connection.

    Raises:
        ProblemError: 404, it cannot be one.
    """
    if not valid_name(name) or name in (".", ".."):
        raise ProblemError(404, "unknown", "a connection is named by 1 to 200 characters without control characters")
    return name


def http_date(unix_ms: int) -> str:
    """A time as ``Upload-Expires`` has it."""
    return format_datetime(datetime.fromtimestamp(unix_ms / 1000, UTC), usegmt=True)


def describe(state: State) -> dict[str, str]:
    """The headers that tell what an upload is: its length, metadata, expiry, concatenation."""
    if isinstance(state, Idle | Failed):
        return {}
    message: Any = state.message if isinstance(state, Done) else state.conveyance.message
    headers = {"Upload-Defer-Length": "1"} if message.size is None else {"Upload-Length": str(message.size)}
    if message.details.get("metadata"):
        headers["Upload-Metadata"] = message.details["metadata"]
    expires = state.expires_ms if isinstance(state, Done) else state.conveyance.expires_ms
    if expires is not None:
        headers["Upload-Expires"] = http_date(expires)
    if message.partial:
        headers["Upload-Concat"] = "partial"
    elif message.joined:
        headers["Upload-Concat"] = message.details.get("concat", "final")
    return headers
