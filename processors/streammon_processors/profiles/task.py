"""The profiles task: predictions of one partition to profiles of their model versions, and to references.

Watermark, lateness, supplements, duplicates, ticks and recovery are those of all event-time windows: see
`streammon_processors.event_windows`. Dead letters of the same events are the windows task's to write; here they are
only counted as rejected.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from math import inf
from typing import Any

import msgspec
from msgspec import Struct

from streammon import wire
from streammon.broker import Outgoing, Record
from streammon.broker.records import Records
from streammon.config import WindowSettings
from streammon.events import EventType, record_key
from streammon.models import DriftPolicy, Models
from streammon.profiles import PROFILES, Profile
from streammon.results import OTHER, Completeness
from streammon.topics import MAX_RECORD_BYTES
from streammon.wire import SCHEMA_HEADER
from streammon_processors.chunk import Series
from streammon_processors.event_windows import EventWindows, Product, Published
from streammon_processors.profiles.counting import ProfileCounting
from streammon_processors.profiles.references import References, ReferencesMemory
from streammon_processors.task import Step, outputs_of

INFERENCE = "inference"
MAX_SERIES_BYTES = 4096
"""Of the names of service, model and version together."""


class _Snapshot(Struct, array_like=True):
    windows: Published
    references: ReferencesMemory


class ProfileTask:
    """One partition of `inference`."""

    def __init__(self, partition: int, settings: WindowSettings, models: Models) -> None:
        settings = settings.model_copy(update={"size_s": models.profile_window_s})
        self._profiles = Profiles(partition, settings.size_s, models)
        self._windows = EventWindows(INFERENCE, self._profiles, partition, settings)

    def process(self, topic: str, records: Sequence[Record]) -> list[Outgoing]:
        """Take in the next predictions; the records to publish."""
        return list(outputs_of(self.steps(topic, records)))

    def steps(self, topic: str, records: Sequence[Record]) -> Iterator[Step]:
        """The same, a published place at a time."""
        assert topic == INFERENCE
        return self._windows.steps(Records.of(records))

    def snapshot(self) -> bytes:
        """All that has to be remembered, as of the last published place."""
        published = self._windows.published
        if published is None:
            return b""
        return zlib.compress(msgspec.msgpack.encode(_Snapshot(published, self._profiles.published)), 1)

    def restore(self, snapshot: bytes) -> None:
        """Go on from a snapshot; the records from `offsets` on have to be given again."""
        if snapshot:
            self._restore(msgspec.msgpack.decode(zlib.decompress(snapshot), type=_Snapshot))

    def _restore(self, snapshot: _Snapshot) -> None:
        self._windows.restore(snapshot.windows)
        self._profiles.restore(snapshot.references)

    def offsets(self) -> Mapping[str, int]:
        published = self._windows.published
        return {} if published is None else {INFERENCE: published.rewind_to}

    @property
    def waiting(self) -> Sequence[str]:
        return [INFERENCE] if self._windows.waiting else []

    def watermarks(self) -> Mapping[str, float]:
        return {INFERENCE: self._windows.watermark} if self._windows.watermark > -inf else {}


class Profiles(Product):
    """Predictions to profiles."""

    event_type = EventType.INFERENCE
    by = ("service", "model", "model_version")
    wanted = wire.Wanted((*by, "features", "prediction"))
    writes_letters = False

    def __init__(self, partition: int, size_s: float, models: Models) -> None:
        self._partition, self._size_s, self._models = partition, size_s, models
        self._references = References(models, partition, size_s)
        self.published = ReferencesMemory()

    def restore(self, references: ReferencesMemory) -> None:
        self._references.restore(references)
        self.published = self._references.memory()

    def series(self, values: Series) -> Series:
        """Names are in the keys of records: those with longer ones are only counted."""
        return values if len(self.key(values)) <= MAX_SERIES_BYTES else (OTHER,) * len(values)

    def counting(self, number: int) -> ProfileCounting:
        return ProfileCounting(number, self._policy, self._references.of)

    def _policy(self, series: Series) -> DriftPolicy:
        return self._models.policy(series[0], series[1]).drift

    def key(self, series: Series | None) -> bytes:
        return msgspec.json.encode(series)

    def tell(self, tick: Record, newest: float) -> None:
        self._references.tell(tick, newest)

    def is_due(self, closed: float) -> bool:
        return self._references.is_due(closed)

    @property
    def is_waiting(self) -> bool:
        return self._references.is_waiting

    def publish(self, closed: float, oldest: float, newest: float) -> Iterator[Outgoing]:
        yield from self._references.publish(closed, oldest, newest)
        self.published = self._references.memory()

    def record(
        self, number: int, series: Series | None, revision: int, counters: Completeness, fields: dict[str, Any]
    ) -> Outgoing:
        sample = fields.pop("sample", None)
        if sample is not None and series is not None and not revision:
            self._references.collect(series, sample)
        service, model, version = series or ("", "", None)
        profile = Profile(
            service=service,
            model=model,
            model_version=version,
            part="late" if revision else "main",
            revision=revision,
            start_unix_s=number * self._size_s,
            end_unix_s=(number + 1) * self._size_s,
            size_s=self._size_s,
            partition=self._partition,
            completeness=counters,
            **({"targets": {}} | fields),
        )
        key = record_key(EventType.INFERENCE, (service, model))
        return Outgoing(PROFILES, key, encode_profile(profile), (SCHEMA_HEADER,), self._partition)


def encode_profile(profile: Profile) -> bytes:
    """The value of its record; its largest targets are left out while no record can hold them."""
    value = msgspec.json.encode(profile)
    while len(value) > MAX_RECORD_BYTES:
        sizes = {name: len(msgspec.json.encode(target)) for name, target in profile.targets.items()}
        for name in sorted(sizes, key=lambda name: (-sizes[name], name))[: len(sizes) // 10 + 1]:
            del profile.targets[name]
            profile.left_out += 1
        value = msgspec.json.encode(profile)
    return value
