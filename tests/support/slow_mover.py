"""A mover that takes its time, many delays of the tests. The data of one tenant cannot be read.

Workers load it by ``HOLDFAST_HANDLERS``.
"""

import time

from app.movers import Page, Share, register

SECONDS = 4.0
BROKEN = "t0004"


class SlowMover:
    """See :class:`app.movers.Mover`: two parts, each of which takes half of the time."""

    name = "slow"

    def export(self, share: Share, cursor: str) -> Page:
        if share.tenant == BROKEN:
            raise OSError("the disk is broken")
        time.sleep(SECONDS / 2)
        return Page([("second" if cursor else "first", b"x" * 1_000)], "" if cursor else "first")

    def install(self, share: Share, name: str, data: bytes) -> None:
        """It has no place to keep it."""

    def discard(self, share: Share) -> None:
        """Nothing was kept."""

    def delete(self, share: Share) -> None:
        """Nothing was kept."""


register(SlowMover())
