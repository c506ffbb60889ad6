"""The AsyncAPI document: up to date, valid, and true to records that exist.

The schema in ``tests/golden`` is that of AsyncAPI 3.0.0 by the AsyncAPI Initiative (Apache License 2.0), without
examples and without the bindings of other protocols.
"""

import json
import re
from pathlib import Path
from typing import Any, Final

import jsonschema
import pytest
import yaml

from app.asyncapi import document, messages, text
from app.settings import Settings
from app.topics import specs

ROOT: Final = Path(__file__).parents[2]
GOLDEN: Final = ROOT / "tests" / "golden"
RELEASED: Final = json.loads((GOLDEN / "exchanges.json").read_text())


def test_the_document_is_up_to_date() -> None:
    path = ROOT / "docs" / "asyncapi.yaml"
    assert path.read_text(encoding="utf-8") == text(), "run `make asyncapi`"


def test_the_document_is_valid() -> None:
    schema = json.loads((GOLDEN / "asyncapi-3.0.0.json").read_text())
    validator = jsonschema.Draft7Validator(schema)
    validator.validate(yaml.safe_load(text()))
    broken = document()
    broken["operations"]["send-tasks"]["action"] = "push"
    assert not validator.is_valid(broken)


def test_every_topic_for_others_is_in_it() -> None:
    channels = document()["channels"]
    kept = {spec.name.removeprefix("holdfast."): spec for spec in specs(Settings())}
    internal = {"views", "suspects", "work", "handoffs", "delay"}
    assert set(channels) == {name for name in kept if not name.endswith("-changelog")} - internal
    for name, channel in channels.items():
        assert channel["bindings"]["kafka"]["partitions"] == kept[name].partitions
        for message in channel["messages"].values():
            jsonschema.Draft7Validator.check_schema(message["payload"])


def released() -> list[tuple[str, str, Any]]:
    """Records of exchanges that other programs rely on: topic, message, value."""
    found = []
    for topic in ("requests", "responses", "replies", "assignments"):
        entries = RELEASED[topic]
        for name, value in entries if isinstance(entries, list) else entries.items():
            found.append((topic, str(json.loads(value)["type"]), json.loads(value)))
            assert name
    return found


@pytest.mark.parametrize(("topic", "name", "value"), released())
def test_released_records_of_exchanges_fit(topic: str, name: str, value: Any) -> None:
    schemas = messages(topic)
    jsonschema.validate(value, schemas[name])
    for field in schemas[name]["required"]:
        assert not jsonschema.Draft7Validator(schemas[name]).is_valid({k: v for k, v in value.items() if k != field})


def examples() -> list[tuple[str, Any]]:
    """The examples of the topic reference, by the topic of their section."""
    found: list[tuple[str, Any]] = []
    for section in (ROOT / "docs" / "topics.md").read_text().split("\n## ")[1:]:
        topic = section.splitlines()[0]
        if topic in ("tasks", "results", "commands", "events"):
            found += [(topic, json.loads(line)) for line in re.findall(r"^    (\{.*\})$", section, re.MULTILINE)]
    return found


@pytest.mark.parametrize(("topic", "value"), examples())
def test_the_examples_of_the_topic_reference_fit(topic: str, value: Any) -> None:
    [schema] = messages(topic).values()
    jsonschema.validate(value, schema)


def test_examples_are_found() -> None:
    assert {topic for topic, _ in examples()} == {"tasks", "results", "commands", "events"}
