"""The topics that programs outside of Holdfast read and write, as an AsyncAPI 3 document made from the models.

``make asyncapi`` writes ``docs/asyncapi.yaml``. Internal topics are in the topic reference only: nobody generates
code for them.

Source: AsyncAPI 3.0.0; bindings of Kafka 0.5.0.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter

from app.records import Command, Event, Result, Task
from app.settings import Settings
from app.topics import Names, TopicSpec, specs

Schema = dict[str, Any]

_NAMESPACE: Final = "{namespace}"
_BINDING: Final = "0.5.0"

_ANY: Final[Schema] = {"description": "anything that JSON can express"}
_WHOLE: Final[Schema] = {"type": "integer", "minimum": 0}
_TEXT: Final[Schema] = {"type": "string"}
_FLAG: Final[Schema] = {"type": "boolean"}

_NUMBERS: Final = (
    *("incarnation", "op", "number", "submitted", "answered", "acknowledged", "assignment", "expected", "current"),
    *("offset", "size", "length", "window"),
)

_FIELDS: Final[Mapping[str, Schema]] = {
    **dict.fromkeys(_NUMBERS, _WHOLE),
    **dict.fromkeys(("body", "restart"), _ANY),
    **dict.fromkeys(("careful", "programs", "ordered"), _FLAG),
    "deadline": {"type": ["number", "null"], "description": "seconds"},
    "error": {"type": ["object", "null"], "description": "`type` and `message`"},
    "details": {"type": "object"},
    "row": {"type": ["object", "null"]},
    "data": {"type": "string", "contentEncoding": "base64"},
    "to": {"type": ["string", "null"]},
    "checksum": {"type": ["string", "null"]},
}
"""Types of fields by their names; whatever is not named is a text."""

_EXCHANGES: Final[Mapping[str, Mapping[str, str]]] = {
    "requests": {
        "open": "client window? deadline?",
        "submit": "incarnation op number body restart?",
        "acknowledge": "incarnation op number restart?",
        "finish": "incarnation op",
        "alive": "incarnation",
        "bye": "incarnation",
        "ask": "incarnation",
        "look": "asker",
        "restart": "id? programs?",
        "cancel": "id? reason?",
    },
    "replies": {
        "restart": "incarnation cause window op submitted answered acknowledged server restart",
        "request": "incarnation number body",
        "response": "incarnation number body error?",
        "positions": "incarnation op submitted answered acknowledged",
        "refused": "incarnation op reason expected",
        "fenced": "incarnation current",
        "closed": "incarnation outcome reason",
        "start": "incarnation ordered?",
        "roll-call": "",
        "look": "asker",
        "look-message": "asker",
        "look-end": "asker",
    },
    "responses": {
        "open": "server",
        "alive": "server incarnation",
        "bye": "server incarnation",
        "respond": "server assignment op number body? error? restart?",
        "checkpoint": "server assignment op number restart",
        "begin": "server assignment op number",
        "look": "server asker",
    },
    "assignments": {
        "restart": "server assignment cause op submitted answered acknowledged careful client restart",
        "request": "server assignment number body",
        "response": "server assignment number body error?",
        "release": "server assignment reason",
        "fenced": "server incarnation current",
        "start": "server incarnation ordered?",
        "roll-call": "",
        "look": "asker",
        "look-end": "asker",
    },
}
"""Messages of the four topics of exchanges: their fields, optional ones with a question mark."""

_TRANSFERS: Final[Mapping[str, str]] = {
    "begin": "request size name? checksum? details?",
    "data": "request offset data",
    "show": "request",
    "read": "request offset length",
    "ack": "request checksum?",
    "cancel": "request",
}

_REPLIES: Final[Mapping[str, str]] = {
    "durable": "request to? offset row?",
    "ack": "request to? size checksum row?",
    "nak": "request to? reason offset? row?",
    "data": "request to? offset data size row?",
}


def messages(topic: str) -> dict[str, Schema]:
    """The payloads of a topic by the names of its messages, as JSON schemas (draft 07)."""
    models: dict[str, tuple[str, Any]] = {
        "tasks": ("task", Task),
        "commands": ("command", Command),
        "results": ("result", Result),
        "events": ("event", Event),
    }
    if topic in models:
        name, model = models[topic]
        return {name: _inlined(TypeAdapter(model).json_schema())}
    if topic == "dead-letters":
        return {"dead-letter": {"description": "the original bytes of the record, whatever they were"}}
    if topic == "transfers":
        return {name: _object({"op": name}, fields) for name, fields in _TRANSFERS.items()}
    if topic == "transfer-replies":
        return {name: _object({"v": 1, "reply": name}, fields) for name, fields in _REPLIES.items()}
    return {name: _object({"v": 1, "type": name}, fields) for name, fields in _EXCHANGES[topic].items()}


def _object(constants: Mapping[str, Any], fields: str) -> Schema:
    words = fields.split()
    return {
        "type": "object",
        "required": [*constants, *(word for word in words if not word.endswith("?"))],
        "properties": {
            **{name: {"const": value} for name, value in constants.items()},
            **{word.rstrip("?"): dict(_FIELDS.get(word.rstrip("?"), _TEXT)) for word in words},
        },
    }


def _inlined(schema: Schema) -> Schema:
    """Put definitions where they are referred to, and leave out titles, which only repeat names."""
    definitions = schema.pop("$defs", {})

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            if "$ref" in value:
                return walk(definitions[value["$ref"].rpartition("/")[2]])
            return {k: walk(v) for k, v in value.items() if not (k == "title" and isinstance(v, str))}
        return [walk(entry) for entry in value] if isinstance(value, list) else value

    found: Schema = walk(schema)
    return found


_TOPICS: Final[Mapping[str, tuple[str, str, str]]] = {
    "tasks": ("tenant", "send", "What is to be done. Partition: murmur2 of the key."),
    "results": ("tenant", "receive", "One for each task, in the order in which the tasks of a session took effect."),
    "commands": ("tenant", "send", "What operators order; about servers: no key, partition 0."),
    "events": ("subject", "receive", "What happened."),
    "dead-letters": ("the original key", "receive", "Records that were no tasks, and tasks that failed."),
    "transfers": ("connection", "send", "What devices ask. Partition: murmur2 of the key."),
    "transfer-replies": ("connection", "receive", "The answers to them."),
    "requests": ("exchange", "send", "What the client of an exchange says. Partition: murmur2 of the key."),
    "replies": ("exchange", "receive", "What its client hears."),
    "responses": ("exchange or server session", "send", "What a server session says. Partition: murmur2 of the key."),
    "assignments": ("exchange or server session", "receive", "What server sessions hear."),
}
"""By topic: what the key is, what a program does there, and what it is for."""

_LETTER_HEADERS: Final[Schema] = {
    "type": "object",
    "required": ["error", "message", "source-topic", "source-partition", "source-offset"],
    "properties": {
        "error": {**_TEXT, "description": "`RecordError` for what is no task, else the type of the result's error"},
        "message": {**_TEXT, "description": "one line"},
        "source-topic": _TEXT,
        "source-partition": {**_TEXT, "pattern": "^[0-9]+$"},
        "source-offset": {**_TEXT, "pattern": "^[0-9]+$"},
    },
}


def document() -> dict[str, Any]:
    """The whole AsyncAPI document. Numbers of partitions and retention are those of the default settings."""
    names = Names(_NAMESPACE)
    kept = {spec.name.removeprefix("holdfast."): spec for spec in specs(Settings())}
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Holdfast",
            "version": "1",
            "description": (
                "The topics between Holdfast and the programs around it. Values are JSON objects in UTF-8, one a "
                "record; unknown fields are ignored. Keys are raw UTF-8. Read with isolation.level=read_committed. "
                "Written by `make asyncapi` from the models; the topic reference in docs/topics.md has the words."
            ),
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {"kafka": {"host": "localhost:9092", "protocol": "kafka", "description": "HOLDFAST_BOOTSTRAP"}},
        "channels": {topic: _channel(topic, names, kept[topic]) for topic in _TOPICS},
        "operations": {
            f"{action}-{topic}": {"action": action, "channel": {"$ref": f"#/channels/{topic}"}, "summary": summary}
            for topic, (_, action, summary) in _TOPICS.items()
        },
    }


def _channel(topic: str, names: Names, spec: TopicSpec) -> dict[str, Any]:
    key, _, summary = _TOPICS[topic]
    configuration = {
        "cleanup.policy": [spec.config["cleanup.policy"]],
        "retention.ms": int(spec.config["retention.ms"]),
        "max.message.bytes": int(spec.config["max.message.bytes"]),
    }
    return {
        "address": names.topic(topic),
        "description": summary,
        "parameters": {"namespace": {"default": "holdfast", "description": "HOLDFAST_NAMESPACE"}},
        "messages": {name: _message(topic, payload, key) for name, payload in messages(topic).items()},
        "bindings": {
            "kafka": {
                "partitions": spec.partitions,
                "topicConfiguration": configuration,
                "bindingVersion": _BINDING,
            }
        },
    }


def _message(topic: str, payload: Schema, key: str) -> dict[str, Any]:
    headers = {"headers": _LETTER_HEADERS} if topic == "dead-letters" else {}
    binding = {"key": {"type": ["string", "null"], "description": key}, "bindingVersion": _BINDING}
    return {**headers, "payload": payload, "bindings": {"kafka": binding}}


def text() -> str:
    """The document as YAML."""
    import yaml  # Only who writes the document needs it.

    # Copied by way of JSON, so that no two places share an object, which YAML would write as an anchor and an alias.
    plain = json.loads(json.dumps(document()))
    return str(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=110))


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(text(), encoding="utf-8")
