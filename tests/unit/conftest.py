"""Two workers' web servers in front of one owner of connections; the mark ``settings(...)`` changes their settings."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.transfers import Site


@pytest.fixture
def site(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    mark = request.node.get_closest_marker("settings")
    made = Site(tmp_path / "files", **(mark.kwargs if mark else {}))
    yield made
    made.close()


@pytest.fixture
def w1(site: Site) -> str:
    return site.urls["w1"]


@pytest.fixture
def w2(site: Site) -> str:
    return site.urls["w2"]
