"""JSON Schemas of everything on the wire, and an AsyncAPI document of the topics, generated from the types."""

from __future__ import annotations

from typing import Any

import msgspec

from streammon import __version__
from streammon.events import KEYS, SCHEMA, STRUCTS
from streammon.heartbeat import Heartbeat
from streammon.results import RESULTS
from streammon.topics import HEARTBEATS, TOPIC_OF

_JSON_SCHEMA = "https://json-schema.org/draft/2020-12/schema"


def types() -> dict[str, type[msgspec.Struct]]:
    """Every type that has a schema, by its ``type`` on the wire."""
    results = {str(struct.__struct_config__.tag): struct for struct in RESULTS.values()}
    return {**{event.value: struct for event, struct in STRUCTS.items()}, **results, "heartbeat": Heartbeat}


def json_schema(name: str) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of one type. Raises KeyError for an unknown one."""
    return {"$schema": _JSON_SCHEMA, **msgspec.json.schema(types()[name])}


def asyncapi(prefix: str) -> dict[str, Any]:
    """An AsyncAPI 3.0 document: one channel a topic, with its key and its messages."""
    structs = types()
    _, components = msgspec.json.schema_components(structs.values(), ref_template="#/components/schemas/{name}")
    topics = {TOPIC_OF[event]: (event.value, "/".join(KEYS[event])) for event in STRUCTS}
    topics |= {topic: (str(struct.__struct_config__.tag), "series") for topic, struct in RESULTS.items()}
    topics[HEARTBEATS] = ("heartbeat", "component id")
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "streammon",
            "version": __version__,
            "description": f"Events and results of streammon, wire schema {SCHEMA}. Input topics also take arrays, "
            "columns and packed columns of their event; see docs/wire.md.",
        },
        "defaultContentType": "application/json",
        "channels": {
            topic: {
                "address": f"{prefix}{topic}",
                "description": f"Record key: {key}.",
                "messages": {name: {"$ref": f"#/components/messages/{name}"}},
            }
            for topic, (name, key) in topics.items()
        },
        "components": {
            "messages": {
                name: {"name": name, "payload": {"$ref": f"#/components/schemas/{struct.__name__}"}}
                for name, struct in structs.items()
            },
            "schemas": components,
        },
    }
