"""The end of every run with faults: all results there, the account clean, the chains whole."""

import time

from app.observe.account import Account
from app.observe.reading import read_account, wait_for_results
from tests.support import chain
from tests.support.cluster import Workers, wait_for
from tests.support.load import Load


def settle(workers: Workers, *loads: Load, timeout: float = 120.0, quiet_s: float = 45.0) -> Account:
    """Wait until every task of the loads has its result; check I1, I2, I3 and every session's chain."""
    deadline = time.monotonic() + timeout
    sent = sum(load.join(timeout) for load in loads)
    seen = wait_for_results(
        workers.config, workers.namespace, sent, deadline=time.monotonic() + timeout, quiet_s=quiet_s
    )
    deadline = time.monotonic() + timeout
    account = read_account(workers.config, workers.namespace, deadline=deadline)
    assert account.ok, f"{account}\n{workers.logs()}"
    assert account.sent == sent == seen == account.performed, str(account)
    check_chains(workers, deadline=deadline)
    return account


def check_chains(workers: Workers, *, deadline: float) -> None:
    """Compare the chains computed from ``tasks`` with those in results and in the sessions' rows."""
    wanted = chain.expected(workers.config, workers.namespace, deadline=deadline)
    assert wanted
    for found in (chain.from_results, chain.from_rows):
        got = found(workers.config, workers.namespace, deadline=deadline)
        assert chain.difference(wanted, got) == [], found.__name__


def when_sent(load: Load, count: int, timeout: float = 300.0) -> None:
    """Wait until the load has ``count`` tasks acknowledged, or has ended."""
    wait_for(lambda: load.acknowledged >= count or not load.running, timeout, f"{count} tasks are acknowledged")
