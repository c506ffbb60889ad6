"""Workers for tests on a real broker; their logs are quoted when a test fails."""

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.support.cluster import Workers
from tests.support.probe import Probe


@pytest.fixture
def workers(request: pytest.FixtureRequest, broker: str, namespace: str, tmp_path: Path) -> Iterator[Workers]:
    """A cluster without workers yet; its topics exist. The mark ``settings(...)`` changes its settings."""
    mark = request.node.get_closest_marker("settings")
    with Workers(broker, namespace, tmp_path / "workers", **(mark.kwargs if mark else {})) as made:
        made.topics()
        yield made


@pytest.fixture
def probe(workers: Workers) -> Iterator[Probe]:
    """Sends single tasks to that cluster and waits for what comes of them."""
    with Probe(workers.config, workers.namespace) as made:
        yield made


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the ends of the workers' logs to the report of a test that failed."""
    report = yield
    workers = getattr(item, "funcargs", {}).get("workers")
    if report.failed and isinstance(workers, Workers) and workers.all:
        report.sections.append(("workers", workers.logs()))
    return report
