"""Stub."""
from typing import Any
Verdict = tuple[str, str]


class Vigilance:
    def __init__(self, announcements: Any, place: Any, max_crashes: int) -> None:
        pass

    def alone(self, offset: int) -> bool:
        return False

    def verdict(self, offset: int) -> Verdict | None:
        return None

    def waiting(self, row_key: bytes, arrival: int) -> Verdict | None:
        return None

    def ended(self, row_key: bytes, arrival: int) -> None:
        pass
