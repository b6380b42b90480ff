"""From all partitions of what remediation is decided by into the one order in which that is done.

One order, because a cool-down and a limit are of an action, whichever partition the alerts lie in. An approval can lie
in any partition, too: it comes after what it approves, which somebody has read before.

Where an action trains a model anew, what is told of that model comes along: its quality, its deploys, the runs of
pipelines, and how many of its requests fail. Nothing else of those topics is read where no action does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from streammon.broker import Outgoing, Record
from streammon.commands import Acknowledge, Approve, Silence, Unsilence
from streammon.errors import Reason, Rejected
from streammon.events import STRUCTS, Change, EventType, Pipeline
from streammon.remediation import REMEDIES, Execution, Policies, Requests
from streammon.results import Alert, Quality, Run
from streammon.retraining import Retrain
from streammon.sketch import Sketch
from streammon.topics import ROLLUP_HEADER
from streammon.wire import SCHEMA_HEADER, decode, read_message
from streammon_processors.copying import CopyTask

_Input = Alert | Acknowledge | Approve | Silence | Unsilence
_DECODER: Final[msgspec.json.Decoder[_Input]] = msgspec.json.Decoder(_Input)
Remedy = Alert | Approve | Execution | Quality | Run | Pipeline | Change | Requests
_REMEDY: Final[msgspec.json.Decoder[Remedy]] = msgspec.json.Decoder(Remedy)
_QUALITY: Final = msgspec.json.Decoder(Quality)
_RUN: Final = msgspec.json.Decoder(Run)
ASKING: Final = ("alerts", "commands")
FOLLOWING: Final = ("quality", "changes", "pipelines", "runs")
"""What tells how a retraining goes on."""


class _Window(msgspec.Struct, tag_field="type", tag="window"):
    """As much of a window as is looked at."""

    schema: int
    source: str
    series: dict[str, str]
    start_unix_s: float
    end_unix_s: float
    count: int
    error_count: int | None = None
    duration_s: msgspec.Raw = msgspec.Raw(b"null")
    """Read only where somebody asks how many were slow."""


class _Durations(msgspec.Struct):
    sketch: Sketch


_WINDOW: Final = msgspec.json.Decoder(_Window)


def inputs(policies: Policies) -> tuple[str, ...]:
    """The topics that have to be read for these."""
    retrains = _retrains(policies)
    windows = ("windows",) if any(each.confirm.guards for each in retrains) else ()
    return (*ASKING, *(FOLLOWING if retrains else ()), *windows)


class GatherRemediesTask(CopyTask):
    """Copies what remediation is decided by from one partition of each of its inputs into `remedies`.

    ``shape`` names the windows whose requests are counted.
    """

    def __init__(self, partition: int, policies: Policies | None = None, shape: str = "") -> None:
        super().__init__(partition)
        retrains = _retrains(policies or {})
        self._models = {(each.service, each.model): each.confirm for each in retrains}
        self._services = {each.service for each in retrains}
        self._shape = (ROLLUP_HEADER, shape.encode())
        self._of: dict[str, Any] = {
            "quality": self._quality,
            "runs": lambda value: iter([read_message(_RUN.decode, value)]),
            "changes": partial(self._events, EventType.CHANGE),
            "pipelines": partial(self._events, EventType.PIPELINE),
            "windows": self._requests,
        }

    def copies(self, topic: str, record: Record, value: bytes) -> Iterator[Outgoing]:
        if topic == "windows" and self._shape not in record.headers:
            return
        told = self._of[topic](value) if topic in self._of else self._asking(record, value)
        for each in told:
            yield Outgoing(REMEDIES, record.key, msgspec.json.encode(each), (SCHEMA_HEADER,), 0)

    def _asking(self, record: Record, value: bytes) -> Iterator[Alert | Approve]:
        match read_message(_DECODER.decode, value):
            case Alert() as alert if _concerns(alert):
                yield replace(alert, evidence={})  # what was seen is for people, and large
            case Approve() as approve:
                # how old it is must not depend on the clock of whoever gave it
                yield replace(approve, time_unix_s=record.timestamp / 1000)

    def _quality(self, value: bytes) -> Iterator[Quality]:
        """Each label and each prediction once: what comes later are revisions of the same."""
        quality = read_message(_QUALITY.decode, value)
        is_new = quality.by == "label" or quality.revision == 0
        if (quality.service, quality.model) in self._models and not quality.slice and is_new:
            yield replace(quality, label_delay_s=None, intervals={}, disparity={})

    def _events(self, of: EventType, value: bytes) -> Iterator[Pipeline | Change]:
        for batch in decode(of, value):
            refused = {fault.row for fault in batch.rows.faults()}
            for row in range(len(batch.rows)):
                if row not in refused and self._tells(event := _event(of, batch.rows.event(row))):
                    yield event

    def _tells(self, event: Pipeline | Change) -> bool:
        """Of runs, all but their steps: the id of a request may be in any."""
        if isinstance(event, Pipeline):
            return event.event in ("started", "finished", "failed")
        return event.kind in ("deploy", "rollback") and event.service in self._services

    def _requests(self, value: bytes) -> Iterator[Requests]:
        window = read_message(_WINDOW.decode, value)
        service, model = window.series.get("service"), window.series.get("model")
        if window.source == "inference" and service and model and (service, model) in self._models and window.count:
            slow_s = self._models[service, model].slow_s
            yield Requests(
                service=service,
                model=model,
                model_version=window.series.get("model_version") or None,
                start_unix_s=window.start_unix_s,
                end_unix_s=window.end_unix_s,
                count=window.count,
                error_count=window.error_count or 0,
                slow_count=None if slow_s is None else _slow(window.duration_s, slow_s),
            )


def _slow(durations: msgspec.Raw, slow_s: float) -> int | None:
    """How many took longer. Raises Rejected."""
    try:
        found = msgspec.json.decode(durations, type=_Durations | None)
    except msgspec.ValidationError as error:
        raise Rejected(Reason.INVALID_EVENT, f"duration_s: {error}") from None
    return None if found is None else found.sketch.above(slow_s)


def _retrains(policies: Policies) -> Sequence[Retrain]:
    return [known.policy.retrain for known in policies.values() if known.policy.retrain is not None]


def _event(of: EventType, fields: dict[str, Any]) -> Any:
    """An event without what is long and says nothing here. Raises Rejected."""
    try:
        event = msgspec.convert(fields, STRUCTS[of])
    except msgspec.ValidationError as error:
        raise Rejected(Reason.INVALID_EVENT, str(error)) from None
    if isinstance(event, Pipeline):
        return Pipeline(time_unix_s=event.time_unix_s, job=event.job, run_id=event.run_id, event=event.event)
    return event


def _concerns(alert: Alert) -> bool:
    """An alert that asks for something; or the end of any, since its rule may name no action any more."""
    return alert.has_fired and (alert.action is not None or alert.state == "resolved")


def decode_remedy(value: bytes) -> Remedy:
    """What stands in a record of `remedies`. Raises Rejected."""
    return read_message(_REMEDY.decode, value)


def remedy_time(value: bytes) -> float | None:
    """The time that a record of `remedies` is about; None of an execution, which is not gathered."""
    try:
        content = decode_remedy(value)
    except Rejected:
        return None
    match content:
        case Alert():
            return content.updated_unix_s
        case Quality() | Requests():
            return content.start_unix_s
        case Execution():
            return None
        case _:
            return content.time_unix_s
