"""Topics: the list of a namespace, as the contract's table has it."""

import pytest

from app import topics
from app.errors import BrokerUnreachableError, ConfigurationError
from app.settings import Settings
from app.topics import Names, connect, ensure, specs

WEEK_MS, MONTH_MS = "604800000", "2592000000"


def test_names_begin_with_the_namespace_and_a_dot() -> None:
    names = Names("a-b")
    assert names.tasks == "a-b.tasks"
    assert names.dead_letters == "a-b.dead-letters"
    assert names.transfer_replies == "a-b.transfer-replies"
    assert names.changelog("sessions") == "a-b.sessions-changelog"
    assert names.group == "a-b.workers"
    assert names.transactional_id("w1") == "a-b.w1"
    assert not names.tasks.startswith(Names("a").prefix)


def test_partitions_follow_routers_and_servers() -> None:
    found = {spec.name.removeprefix("n."): spec.partitions for spec in specs(Settings(namespace="n", servers=5))}
    assert found == {
        **dict.fromkeys(("tasks", "commands", "results", "delay", "transfers", "transfer-replies"), 4),
        **dict.fromkeys(("requests", "assignments", "responses", "replies"), 4),
        **dict.fromkeys(("placements-changelog", "parked-changelog", "outcomes-changelog", "views-changelog"), 4),
        **dict.fromkeys(("transfers-changelog", "exchanges-changelog", "exchange-messages-changelog"), 4),
        **dict.fromkeys(("work", "handoffs", "sessions-changelog", "waiting-changelog", "handoffs-changelog"), 5),
        **dict.fromkeys(("events", "dead-letters", "views", "suspects"), 1),
    }


def test_every_topic_is_kept_as_the_contract_says() -> None:
    by_name = {spec.name: spec.config for spec in specs(Settings(namespace="n", result_retention=60))}
    for name in ("tasks", "commands", "transfers", "requests", "replies"):
        assert by_name[f"n.{name}"]["cleanup.policy"] == "delete"
        assert by_name[f"n.{name}"]["retention.ms"] == WEEK_MS
    assert by_name["n.results"]["retention.ms"] == "60000"
    assert by_name["n.events"]["retention.ms"] == by_name["n.dead-letters"]["retention.ms"] == MONTH_MS
    for name in ("work", "handoffs", "delay"):
        assert by_name[f"n.{name}"]["retention.ms"] == by_name[f"n.{name}"]["retention.bytes"] == "-1"
    for name in ("views", "suspects", "sessions-changelog", "placements-changelog"):
        assert by_name[f"n.{name}"]["cleanup.policy"] == "compact"


def test_internal_topics_accept_what_inputs_accept_and_64_kib_more() -> None:
    sizes = {spec.name: int(spec.config["max.message.bytes"]) for spec in specs(Settings(max_record_bytes=5_000))}
    assert sizes["holdfast.tasks"] == sizes["holdfast.commands"] == 5_000
    for name in ("work", "delay", "handoffs", "results", "dead-letters", "sessions-changelog"):
        assert sizes[f"holdfast.{name}"] == 5_000 + 65_536


@pytest.mark.parametrize("size", [1024, 999_934_464])
def test_a_segment_holds_more_than_the_largest_record(size: int) -> None:
    for spec in specs(Settings(max_record_bytes=size)):
        segment = int(spec.config.get("segment.bytes", str(1024**3)))
        assert int(spec.config["max.message.bytes"]) < segment < 2**31


def test_nobody_at_the_address_is_one_line_with_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topics, "REQUEST_TIMEOUT_S", 1.0)
    settings = Settings(bootstrap="127.0.0.1:1")
    with pytest.raises(BrokerUnreachableError) as caught:
        ensure(connect(settings), settings)
    assert "127.0.0.1:1" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_option_the_client_refuses_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match=r"ssl\.ca\.location"):
        connect(Settings(bootstrap="a:1", security_protocol="SSL", ssl_ca_location="no-such-file.pem"))
