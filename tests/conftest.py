"""What every test may ask for: a broker, a namespace on it, brokers of its own."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support.broker import Choice, NoBrokerError, OwnBrokers, choose, clear, new_namespace, running
from tests.support.reasons import NO_BROWSER

# How fast a machine is, is no property of the program.
settings.register_profile("holdfast", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("holdfast")

_CHOICE = pytest.StashKey[Choice]()
_SKIPPED: list[str] = []


def pytest_configure(config: pytest.Config) -> None:
    """Choose the broker once, before the header is printed."""
    try:
        config.stash[_CHOICE] = choose()
    except NoBrokerError as error:
        raise pytest.UsageError(str(error)) from error


def pytest_report_header(config: pytest.Config) -> str:
    """Say which broker the tests run against."""
    choice = config.stash[_CHOICE]
    return f"broker: {choice.kind} ({choice.detail})"


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Remember broker tests that were skipped, unless a browser is all they missed; also those of ``-n``."""
    missed = report.skipped and not hasattr(report, "wasxfail") and "broker" in report.keywords
    if missed and NO_BROWSER not in str(report.longrepr):
        _SKIPPED.append(report.nodeid)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail the run: a promise about Kafka that was not tried on Kafka is not kept."""
    if _SKIPPED and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Name them."""
    if _SKIPPED:
        terminalreporter.section("broker tests must not be skipped", red=True)
        for nodeid in _SKIPPED:
            terminalreporter.line(nodeid, red=True)


@pytest.fixture(scope="session")
def broker(pytestconfig: pytest.Config) -> Iterator[str]:
    """The bootstrap address of the session's Kafka."""
    with running(pytestconfig.stash[_CHOICE]) as bootstrap:
        yield bootstrap


@pytest.fixture
def namespace(broker: str) -> Iterator[str]:
    """A namespace of the test's own; what belongs to it is deleted afterwards."""
    name = new_namespace()
    yield name
    clear(broker, name)


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[OwnBrokers]:
    """A factory of embedded brokers that the test may restart, kill and secure."""
    with ExitStack() as stack:
        yield OwnBrokers(tmp_path, stack)
