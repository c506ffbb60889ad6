"""The same fixtures as for the tests on a real broker."""

from tests.broker.conftest import probe, pytest_runtest_makereport, workers

__all__ = ["probe", "pytest_runtest_makereport", "workers"]
