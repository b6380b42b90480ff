"""What agents may say: the six event types, exactly as they travel.

Each type is a `msgspec.Struct` whose field names are the wire names. Units are in the names: ``_s`` seconds,
``_bytes``, ``_j`` joules; fractions are 0–1; times are Unix seconds. A field without a default is required.
Unknown fields are ignored, so that an old processor can read a newer agent.

Any event may carry ``agent``, ``boot`` and ``seq``: it is then a batch of one, and takes part in duplicate
and gap detection like any other batch (see `streammon.wire`).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from streammon.sketch import Sketch

SCHEMA = 1
"""The version of every event and result; an unknown version goes to the dead letter."""

MAX_COUNT = 2**53
"""The bound of whatever is counted: every store and every JSON reader keeps whole numbers up to it exactly."""

NonNegative = Annotated[float, Meta(title="non-negative")]
"""A number that is refused, per event, when below zero. Checked by `streammon.wire`, not by the JSON decoder:
one bad value must not send its whole batch to the dead letter."""


def _schema() -> int:  # a factory, because msgspec omits plain defaults and the version must be on the wire
    return SCHEMA


class Event(Struct, kw_only=True, omit_defaults=True, gc=False):
    """What every event carries."""

    schema: int = msgspec.field(default_factory=_schema)
    time_unix_s: float
    agent: str | None = None
    boot: str | None = None
    seq: int | None = None


class Inference(Event, tag_field="type", tag="inference"):
    """One prediction of one model, successful or not."""

    service: str
    model: str
    duration_s: NonNegative
    status: Literal["ok", "error"]
    model_version: str | None = None
    endpoint: str | None = None
    host: str | None = None
    tenant: str | None = None
    event_id: str | None = None
    request_id: str | None = None
    trace_id: str | None = None
    span_id: str | None = None
    error_type: str | None = None
    http_status: NonNegative | None = None
    ttft_s: NonNegative | None = None
    tpot_s: NonNegative | None = None
    queue_s: NonNegative | None = None
    queue_length: NonNegative | None = None
    cache_hit: bool | None = None
    input_tokens: NonNegative | None = None
    output_tokens: NonNegative | None = None
    cache_read_tokens: NonNegative | None = None
    cache_write_tokens: NonNegative | None = None
    reasoning_tokens: NonNegative | None = None
    provider: str | None = None
    confidence: float | None = None
    prediction: float | str | bool | None = None
    features: dict[str, float | str | bool | None] | None = None
    metrics: dict[str, float] | None = None
    cost_amount: NonNegative | None = None
    cost_currency: str | None = None


Entity = Literal[
    "host", "cpu", "memory", "disk", "filesystem", "network",
    "gpu", "gpu_process", "process", "container", "service",
]  # fmt: skip


class Histogram(Struct, kw_only=True, omit_defaults=True, gc=False):
    """Values that were observed since the event before, as their senders added them up.

    ``sum`` is exact; ``min`` and ``max`` are left out by senders who do not know them, and not believed where the one
    is above the other.
    """

    sum: float
    sketch: Sketch
    min: float | None = None
    max: float | None = None


class Resource(Event, tag_field="type", tag="resource"):
    """What one thing on one host measured at one moment, or since the event before.

    ``metrics`` are sampled: a temperature, a queue's length, a rate. ``counters`` and ``histograms`` are what was
    added since the event before, so that they add up in windows whatever was restarted in between.
    """

    host: str
    entity: Entity
    id: str
    metrics: dict[str, float]
    labels: dict[str, str] | None = None
    counters: dict[str, NonNegative] | None = None
    histograms: dict[str, Histogram] | None = None


class Label(Event, tag_field="type", tag="label"):
    """What the truth turned out to be for an earlier inference, named by ``event_id``."""

    service: str
    model: str
    event_id: str
    label: float | str | bool | None = None
    score: float | None = None
    rating: float | None = None
    source: str | None = None


class Column(Struct, kw_only=True, omit_defaults=True):
    """One column of a dataset's schema."""

    name: str
    type: str


class Dataset(Struct, kw_only=True, omit_defaults=True):
    """What a pipeline step read or wrote."""

    name: str
    file_count: int | None = None
    bytes: int | None = None
    file_types: dict[str, int] | None = None
    row_count: int | None = None
    schema: list[Column] | None = None
    quality: dict[str, dict[str, Any]] | None = None


class Pipeline(Event, tag_field="type", tag="pipeline"):
    """One thing that happened in one run of a job."""

    job: str
    run_id: str
    event: Literal["started", "step_started", "step_finished", "finished", "failed", "skipped"]
    step: str | None = None
    nominal_time_unix_s: float | None = None
    schedule: str | None = None
    inputs: list[Dataset] | None = None
    outputs: list[Dataset] | None = None
    dependencies: dict[str, str] | None = None
    dependency_lock: str | None = None
    resources: dict[str, float] | None = None
    cost_amount: NonNegative | None = None
    error: dict[str, Any] | None = None


class Log(Event, tag_field="type", tag="log"):
    """One log record of a service."""

    service: str
    message: str
    level: str | None = None
    category: Literal["app", "audit", "authentication", "authorization", "data_access", "security"] | None = None
    outcome: str | None = None
    request_id: str | None = None
    user: str | None = None
    operation: str | None = None
    trace_id: str | None = None
    span_id: str | None = None
    error: dict[str, Any] | None = None
    fields: dict[str, Any] | None = None


class Change(Event, tag_field="type", tag="change"):
    """Something a person or a pipeline changed about a service."""

    service: str
    kind: Literal["deploy", "rollback", "config", "retrain", "scale"]
    model: str | None = None
    model_version: str | None = None
    actor: str | None = None
    ref: str | None = None


class EventType(StrEnum):
    """The types of event; the value is the ``type`` field on the wire."""

    INFERENCE = "inference"
    RESOURCE = "resource"
    LABEL = "label"
    PIPELINE = "pipeline"
    LOG = "log"
    CHANGE = "change"


STRUCTS: dict[EventType, type[Event]] = {
    EventType.INFERENCE: Inference,
    EventType.RESOURCE: Resource,
    EventType.LABEL: Label,
    EventType.PIPELINE: Pipeline,
    EventType.LOG: Log,
    EventType.CHANGE: Change,
}

KEYS: dict[EventType, tuple[str, ...]] = {
    EventType.INFERENCE: ("service", "model"),
    EventType.RESOURCE: ("host",),
    EventType.LABEL: ("service", "model"),
    EventType.PIPELINE: ("job",),
    EventType.LOG: ("service",),
    EventType.CHANGE: ("service",),
}
"""The fields that make the key of a record: their values, joined with ``/``. One key, one partition."""


def record_key(event_type: EventType, values: tuple[str | None, ...]) -> bytes:
    """The record key of an event with these values of the `KEYS` fields.

    >>> record_key(EventType.INFERENCE, ("shop", "ranker"))
    b'shop/ranker'
    """
    return "/".join(value or "" for value in values).encode()
