"""The join: predictions and what their labels say, by event id, within a horizon, whichever comes first.

* Topics `inference` and `labels`, the same partition of both, and so of the same models. Whichever is read first, the
  pairs are the same, and so are the sums of cohorts: which prediction goes with which label is decided by the broker's
  times of their records (`entries`).
* A pair is published as soon as both are known. Score and rating are joined like the label, each by itself: the first
  of each kind counts.
* What waits is in the `memory`, and in the journal; the snapshot holds only what is small. A restart reads on where it
  was: nothing of the input is read again.
* Predictions are counted in cohorts by their event time (`cohorts`), labels that find nothing by when they came
  (`label_windows`).
* A prediction that the windows task refuses, as a duplicate, too late, or of the future, is left out here, too; the
  dead letter of it is written there. Of labels, they are written here.

Bounded by ``labels.max_predictions``, and the bounds of each part. Only beyond that does it matter which topic is read
first: the oldest predictions are forgotten then, and counted.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from math import floor, isnan
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from streammon import wire
from streammon.broker import Outgoing, Record
from streammon.broker.records import Records
from streammon.config import Settings
from streammon.deadletter import dead_letter
from streammon.events import EventType, record_key
from streammon.models import Models
from streammon.outcomes import OUTCOMES, Cohort, Outcomes
from streammon.results import OTHER, bounded
from streammon.telemetry import log
from streammon.tick import TICK
from streammon.topics import MAX_RECORD_BYTES, journal_topic
from streammon.wire import SCHEMA_HEADER, Density
from streammon_processors.chunk import Chunk, Fate, Ints
from streammon_processors.dedupe import Dedupe, Stream
from streammon_processors.join import entries
from streammon_processors.join.cohorts import Cohorts, CohortsMemory, Place, Predictions, Series
from streammon_processors.join.entries import Entry, Label, Match, Prediction
from streammon_processors.join.journal import Alone, Page, pages
from streammon_processors.join.label_windows import LabelWindow, LabelWindows
from streammon_processors.join.memory import Memory
from streammon_processors.join.models import KnownModels, Model
from streammon_processors.join.rows import LabelRows, PredictionRows, wanted
from streammon_processors.journal import BEGINNING, Link, Trail, Turn
from streammon_processors.task import Step, outputs_of

Mask = NDArray[np.bool_]

JOIN = "join"
TOPICS = {"inference": EventType.INFERENCE, "labels": EventType.LABEL}
CHUNK_RECORDS, CHUNK_ROWS = 4000, 50_000
GENERATIONS = 3
"""A generation is begun after this part of the longest horizon, or of ``labels.max_predictions``: many generations
make a look-up dear, few keep for long what has expired."""
MAX_GENERATIONS = 8
"""With these, because one topic is read far behind the other, no more are begun before the newest is full."""
CLOCKS_S = 600.0
"""How far the clocks of brokers may be apart."""
HEADS = np.dtype([("came_ms", "<i8"), ("time", "<f8"), ("confidence", "<f8"), ("number", "<f8")])
"""`entries.HEAD`, of many."""
MAX_OUTCOMES = 1000
"""Pairs in one record, at most."""
MAX_FORGOTTEN_BYTES = 32 * 1024
"""Of the names of models whose predictions are counted apart, in case they are forgotten; of each generation."""


class Generation(Struct, array_like=True):
    """What was put into the memory in some time: it is forgotten together."""

    number: int
    began_ms: int
    newest_ms: int
    entries: int = 0
    predictions: dict[str, dict[str, int]] = {}
    """How many, by service and model."""


class _Topic(Struct, array_like=True):
    """How far a topic is read."""

    next_offset: int = 0
    heard_ms: int = 0
    """The newest time of the broker."""
    broker_ms: int = 0
    """The last."""


class _Snapshot(Struct, array_like=True):
    place: Link
    topics: dict[str, _Topic]
    streams: dict[str, list[Stream]]
    cohorts: CohortsMemory
    label_windows: list[LabelWindow]
    generations: list[Generation]


class JoinTask:
    """One partition number of `inference` and `labels`."""

    def __init__(self, partition: int, models: Models, settings: Settings) -> None:
        self._partition = partition
        self._settings = settings.windows
        self._models = KnownModels(models)
        self._most = settings.labels.max_predictions
        self._journal = journal_topic(JOIN)
        self._horizon_ms = round(self._models.longest_s * 1000)
        self._wanted = {topic: wanted(kind, self._models.slices) for topic, kind in TOPICS.items()}
        self._topics: dict[str, _Topic] = {}
        self._dedupe = {topic: Dedupe() for topic in TOPICS}
        self._cohorts = Cohorts(
            partition,
            lateness_s=self._settings.lateness_s,
            max_late_s=self._settings.max_late_s,
            sizes_s=self._models.windows_s,
            told_after_s=max(self._settings.max_late_s, self._models.longest_s),
        )
        self._label_windows = LabelWindows(self._models)
        self._generations: list[Generation] = []
        self._memory = Memory()
        self._place = self._sealed = BEGINNING  # in the journal: of the last record, and of the last in a snapshot
        self._sealed_s = 0.0
        self._trail: Trail | None = None

    # --- the story of a record ----------------------------------------------------------------------------------

    def process(self, topic: str, records: Sequence[Record]) -> list[Outgoing]:
        return list(outputs_of(self.steps(topic, records)))

    def steps(self, topic: str, records: Sequence[Record]) -> Iterator[Step]:
        """What is published because of some records, a chunk at a time."""
        left = Records.of(records)
        start = 0
        while start < len(left):
            here, first = self._topics.setdefault(topic, _Topic()), start
            if left.values[start] == TICK:
                start += 1
                outputs = list(self._tick(topic, here, left[start - 1]))
            else:
                some = left[start : start + CHUNK_RECORDS]
                chunk = Chunk(TOPICS[topic], some, CHUNK_ROWS, self._wanted[topic])
                start += chunk.records
                outputs = list(self._chunk(topic, here, chunk))
                here.broker_ms = int(left.timestamps[start - 1])
            here.next_offset = int(left.offsets[start - 1]) + 1
            here.heard_ms = max(here.heard_ms, int(left.timestamps[first:start].max()))
            yield Step([*outputs, *self._tell(), *self._turn()], start)

    def _tick(self, topic: str, here: _Topic, record: Record) -> Iterator[Outgoing]:
        passed_s = max(0, record.timestamp - here.broker_ms) / 1000 if here.broker_ms else 0.0
        here.broker_ms = record.timestamp
        if topic == "inference":
            yield from map(self._cohort, self._cohorts.pass_time(passed_s))

    def _chunk(self, topic: str, here: _Topic, chunk: Chunk) -> Iterator[Outgoing]:
        arguments = (chunk, here.heard_ms, self._dedupe[topic], self._settings, self._models)
        if not len(chunk):
            return
        if topic == "inference":
            yield from self._predictions(PredictionRows(*arguments))
        else:
            yield from self._labels(LabelRows(*arguments))

    # --- predictions --------------------------------------------------------------------------------------------

    def _predictions(self, rows: PredictionRows) -> Iterator[Outgoing]:
        newest = self._cohorts.newest_after(rows.time, rows.accepted)
        rows.accepted &= ~self._cohorts.is_too_late(rows.time, newest[:-1])
        counted = np.flatnonzero(rows.accepted)
        groups = [kind.group for kind in rows.kinds]
        size_s = np.array([group.window_s for group in groups])[rows.kind[counted]]
        late = self._cohorts.is_late(rows.time[counted], size_s, newest[counted])
        ids = rows.event_ids
        named = np.array([bool(ids[row]) for row in counted.tolist()], dtype=np.bool_)
        pairs = _Pairs(self._partition)
        repeated = np.zeros(len(counted), dtype=np.bool_)
        if named.any():
            repeated[named], records = self._remember(rows, counted[named], pairs)
            yield from records
        classes, label = rows.classes(counted)
        yield from pairs.records()
        predictions = Predictions(
            rows.time[counted], late, named & ~repeated, repeated, groups, rows.kind[counted],
            classes, label, rows.confidence[counted],
        )  # fmt: skip
        yield from map(self._cohort, self._cohorts.advance(predictions, counted, newest))

    def _remember(self, rows: PredictionRows, row: Ints, pairs: _Pairs) -> tuple[Mask, list[Outgoing]]:
        """Match predictions with labels that wait, and let the others wait; which of them are repeated."""
        ids, kind = rows.event_ids, rows.kind[row].tolist()
        models = [each.model for each in rows.kinds]
        keys = [models[each].key(ids[at]) for at, each in zip(row.tolist(), kind, strict=True)]
        found = self._memory.get(keys)
        first = _firsts(keys, found)
        alone = _alone(rows, row[first], [keys[index] for index in np.flatnonzero(first).tolist()])
        changed = dict(zip(alone.keys, alone.values(), strict=True))
        heard_ms = self._both_heard_ms()
        closer, repeated = dict[bytes, bytes](), np.zeros(len(row), dtype=np.bool_)
        for index in np.flatnonzero(~first).tolist():
            key, at, model = keys[index], int(row[index]), models[kind[index]]
            entry = entries.unpack(closer.get(key) or changed.get(key) or found[index])
            matches = entries.add_prediction(entry, _prediction(rows, at), model.horizon_ms)
            if matches is None:
                repeated[index] = True
                continue
            for match in matches:
                self._no_longer_waits(model, match.label)
                pairs.add(model, ids[at], match)
            closer[key] = entries.pack(entries.pruned(entry, heard_ms, model.horizon_ms))
        outputs = self._know(alone, changed, closer, int(rows.came_ms[row[-1]]))
        self._count_predictions(models, rows.kind[row[~repeated]])
        return repeated, outputs

    def _no_longer_waits(self, model: Model, label: Label) -> None:
        if not label.matched:
            label.matched = True
            self._label_windows.matched(model, label.window)

    def _count_predictions(self, models: Sequence[Model], kind: Ints) -> None:
        """By whose they are, in case that they have to be forgotten."""
        if not len(kind):
            return
        counts = self._generations[-1].predictions
        for number, count in enumerate(np.bincount(kind, minlength=len(models)).tolist()):
            if count:
                service, model = models[number].service, models[number].model
                if model not in counts.get(service, {}) and _names_bytes(counts, service, model) > MAX_FORGOTTEN_BYTES:
                    service = model = OTHER
                own = counts.setdefault(service, {})
                own[model] = own.get(model, 0) + count

    # --- labels -------------------------------------------------------------------------------------------------

    def _labels(self, rows: LabelRows) -> Iterator[Outgoing]:
        yield from self._dead_letters(rows)
        row = np.flatnonzero(rows.accepted)
        if not len(row):
            return
        ids = [rows.event_ids[at] for at in row.tolist()]
        models = [rows.models[number] for number in rows.model_of[row].tolist()]
        keys = [model.key(event_id) for model, event_id in zip(models, ids, strict=True)]
        found, heard_ms = self._memory.get(keys), self._both_heard_ms()
        changed: dict[bytes, bytes] = {}
        pairs = _Pairs(self._partition)
        for key, known, model, event_id, label in zip(keys, found, models, ids, rows.label_events(row), strict=True):
            entry = entries.unpack(changed.get(key) or known)
            self._label(model, event_id, label, entry, pairs)
            changed[key] = entries.pack(entries.pruned(entry, heard_ms, model.horizon_ms))
        yield from self._know(None, {}, changed, int(rows.came_ms[row[-1]]))
        yield from pairs.records()

    def _label(self, model: Model, event_id: str, label: Label, entry: Entry, pairs: _Pairs) -> None:
        matches, repeated = entries.add_label(entry, label, model.horizon_ms)
        for match in matches:
            label.matched = True
            pairs.add(model, event_id, match)
        if label.kinds and not label.matched:
            label.window = self._label_windows.wait(model, label.came_ms)
        if repeated:
            self._label_windows.relabelled(model, label.came_ms, repeated.bit_count())

    def _dead_letters(self, rows: LabelRows) -> Iterator[Outgoing]:
        """What cannot be used of a record and for one reason makes one dead letter."""
        refused = rows.refusals
        for (offset, reason), group in groupby(refused, lambda row: (int(rows.chunk.offset[row]), refused[row].reason)):
            members = list(group)
            detail = refused[members[0]].detail
            if len(members) > 1:
                detail += f" (the first of {len(members)} events)"
            yield dead_letter(
                reason,
                detail,
                topic="labels",
                value=_refused(rows.chunk, members),
                partition=self._partition,
                offset=offset,
                to_partition=self._partition,
            )

    # --- what is known ------------------------------------------------------------------------------------------

    def _heard_ms(self, topic: str) -> int:
        """All that is still to come of a topic came at this time, or later."""
        return self._topics[topic].heard_ms if topic in self._topics else 0

    def _both_heard_ms(self) -> int:
        return min(self._heard_ms(topic) for topic in TOPICS)

    def _know(
        self, alone: Alone | None, changed: Mapping[bytes, bytes], closer: Mapping[bytes, bytes], came_ms: int
    ) -> list[Outgoing]:
        """Know this from now on, and write it into the journal."""
        if not changed and not closer:
            return []
        if not self._generations:
            self._generations.append(Generation(1, came_ms, came_ms))
        newest = self._generations[-1]
        newest.newest_ms = max(newest.newest_ms, came_ms)
        newest.entries += len(changed) + len(closer)
        self._memory.put({**changed, **closer}, newest.number)
        records = []
        for place, value in pages(self._place, self._came_s(came_ms), newest.number, alone, closer):
            records.append(Outgoing(self._journal, None, value, (SCHEMA_HEADER,), self._partition))
            self._place = place
        self._memory.spill(self._place, self._came_s(came_ms))
        return records

    def _came_s(self, came_ms: int = 0) -> float:
        return max(came_ms, *(self._heard_ms(topic) for topic in TOPICS)) / 1000

    def _turn(self) -> Iterator[Outgoing]:
        """Begin another generation when it is time, and forget those that are over."""
        if not self._generations:
            return
        newest, now_ms = self._generations[-1], round(1000 * self._came_s())
        is_old = now_ms - newest.began_ms >= self._horizon_ms / GENERATIONS and len(self._generations) < MAX_GENERATIONS
        if is_old or newest.entries >= self._most // GENERATIONS:
            self._generations.append(Generation(newest.number + 1, now_ms, now_ms))
        while len(self._generations) > 1 and (self._is_over(self._generations[0]) or self._is_too_much):
            oldest = self._generations.pop(0)
            self._memory.forget(self._generations[0].number)
            if not self._is_over(oldest):
                yield from self._forgotten(oldest)

    def _is_over(self, generation: Generation) -> bool:
        """Nothing that is still to come, on either topic, can have to do with it."""
        return self._both_heard_ms() > self._over_ms(generation)

    def _over_ms(self, generation: Generation) -> int:
        return generation.newest_ms + self._horizon_ms

    @property
    def _is_too_much(self) -> bool:
        return sum(generation.entries for generation in self._generations) > self._most

    # --- what is told of what is not there ----------------------------------------------------------------------

    def _forgotten(self, generation: Generation) -> Iterator[Outgoing]:
        log.warning("predictions are forgotten before their labels had time to come", partition=self._partition)
        now_s = self._came_s()
        for service, models in sorted(generation.predictions.items()):
            for name, count in sorted(models.items()):
                size_s = self._models.of(service, name).window_s
                cohort = self._supplement(service, name, floor(now_s / size_s) * size_s, size_s)
                cohort.forgotten = count
                yield self._cohort(cohort)

    def _tell(self) -> Iterator[Outgoing]:
        for window in self._label_windows.due(self._heard_ms("inference"), self._heard_ms("labels")):
            cohort = self._supplement(window.service, window.model, window.start_s, window.size_s)
            cohort.unmatched_labels, cohort.relabelled = bounded(window.unmatched), bounded(window.relabelled)
            yield self._cohort(cohort)

    def _supplement(self, service: str, model: str, start_s: float, size_s: float) -> Cohort:
        return self._cohorts.supplement(Series(service, model, None), Place(start_s, size_s, late=True))

    def _cohort(self, cohort: Cohort) -> Outgoing:
        key = record_key(EventType.INFERENCE, (cohort.service, cohort.model))
        return Outgoing(OUTCOMES, key, msgspec.json.encode(cohort), (SCHEMA_HEADER,), self._partition)

    # --- the contract -------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> Sequence[str]:
        predictions_ms, labels_ms = self._heard_ms("inference"), self._heard_ms("labels")
        oldest_ms = self._over_ms(self._generations[0]) if len(self._generations) > 1 else None
        for_predictions = self._cohorts.waiting or self._label_windows.wait_for_predictions()
        for_labels = self._label_windows.wait_for_labels(predictions_ms, labels_ms)
        if oldest_ms is not None:
            for_predictions |= predictions_ms <= oldest_ms < labels_ms
            for_labels |= labels_ms <= oldest_ms < predictions_ms
        return [topic for topic, waits in zip(TOPICS, (for_predictions, for_labels), strict=True) if waits]

    def watermarks(self) -> Mapping[str, float]:
        """None: a pair is known when the later of two records is read, whatever the time of its events."""
        return {}

    def offsets(self) -> Mapping[str, int]:
        return {topic: here.next_offset for topic, here in self._topics.items()}

    def snapshot(self) -> bytes:
        self._memory.seal()
        self._sealed, self._sealed_s = self._place, self._came_s()
        memory = _Snapshot(
            self._place,
            self._topics,
            {topic: dedupe.streams() for topic, dedupe in self._dedupe.items()},
            self._cohorts.memory,
            self._label_windows.memory,
            self._generations,
        )
        return zlib.compress(msgspec.msgpack.encode(memory), 1)

    def restore(self, snapshot: bytes) -> None:
        memory = msgspec.msgpack.decode(zlib.decompress(snapshot), type=_Snapshot)
        self._place = self._sealed = memory.place
        self._topics = memory.topics
        self._dedupe = {topic: Dedupe(memory.streams.get(topic, ())) for topic in TOPICS}
        self._cohorts.restore(memory.cohorts)
        self._label_windows.restore(memory.label_windows)
        self._generations = memory.generations
        self._sealed_s = self._came_s()

    # --- the journal --------------------------------------------------------------------------------------------

    def keep_in(self, directory: Path) -> None:
        self._memory.keep_in(directory)

    def committed(self) -> None:
        self._memory.settle(self._sealed, self._sealed_s)

    def close(self) -> None:
        self._memory.close()

    def recover_from(self) -> float | None:
        mark = None if self._trail is not None else self._memory.known()  # what did not help is not tried again
        known = mark.place if mark is not None else BEGINNING
        since: float | None = None
        if mark is not None and 0 < known.number < self._place.number:
            self._trail, since = Trail(known, self._place), max(0.0, mark.came_s - CLOCKS_S)
        elif known != self._place or self._place == BEGINNING:
            self._memory.clear()
            self._trail, since = Trail(None, self._place), 0.0
        self._forget()
        return None if self._place == BEGINNING else since

    def _forget(self) -> None:
        if self._generations:
            self._memory.forget(self._generations[0].number)

    def recover(self, records: Sequence[Record]) -> None:
        assert self._trail is not None, "recover_from is asked before"
        for record in records:
            value = record.value or b""
            try:
                page = msgspec.msgpack.decode(value, type=Page)
            except msgspec.DecodeError:  # not of the chain; if it should be, that does not end
                continue
            turn = self._trail.follow(page.before, value)
            if turn is Turn.BEGIN:
                self._memory.clear()
                self._forget()
            if turn is not Turn.SKIP and self._generations and page.generation >= self._generations[0].number:
                self._memory.put(page.known(), page.generation)
                self._memory.seal()
                self._memory.settle(self._trail.at or BEGINNING, page.came_s)
                self._memory.spill(self._place, page.came_s)

    def recovered(self) -> bool:
        assert self._trail is not None, "recover_from is asked before"
        if self._trail.is_empty:
            log.warning("nothing is left of the journal: what was waited for is forgotten", partition=self._partition)
        return self._trail.is_done or self._trail.is_empty


# --- helpers ----------------------------------------------------------------------------------------------------------


def _names_bytes(counts: Mapping[str, Mapping[str, int]], *more: str) -> int:
    """The bytes of the names of what is counted, and some more."""
    names = (*more, *counts, *(name for models in counts.values() for name in models))
    return sum(len(name.encode(errors="surrogatepass")) for name in names)


def _firsts(keys: Sequence[bytes], found: Sequence[bytes | None]) -> Mask:
    """Which keys nothing is known of, at their first place."""
    seen: set[bytes] = set()
    first = np.array([value is None for value in found], dtype=np.bool_)
    if len(set(keys)) < len(keys):
        first &= np.array([not (key in seen or seen.add(key)) for key in keys], dtype=np.bool_)  # type: ignore[func-returns-value]  # None, and so false
    return first


def _alone(rows: PredictionRows, row: Ints, keys: Sequence[bytes]) -> Alone:
    """Predictions of which nothing else is known."""
    heads = np.empty(len(row), dtype=HEADS)
    heads["came_ms"] = rows.came_ms[row]
    heads["time"] = rows.time[row]
    heads["confidence"] = rows.confidence[row]
    heads["number"] = rows.predicted[2][row]
    tails, codes = rows.tails()
    return Alone(keys, heads.tobytes(), tails, codes[row])


def _prediction(rows: PredictionRows, at: int) -> Prediction:
    kind, confidence = rows.kinds[rows.kind[at]], float(rows.confidence[at])
    return Prediction(
        int(rows.came_ms[at]),
        float(rows.time[at]),
        rows.prediction(at),
        None if isnan(confidence) else confidence,
        kind.version,
        kind.slices,
    )


def _refused(chunk: Chunk, rows: list[int]) -> bytes | None:
    """These events of one record as an array; all of it where it cannot be read, or they are too many."""
    if chunk.fate[rows[0]] == Fate.UNREADABLE:
        return chunk.record(rows[0]).value
    [value] = wire.encode(EventType.LABEL, [chunk.event(row) for row in rows], Density.ARRAY)
    return value if len(value) <= MAX_RECORD_BYTES else chunk.record(rows[0]).value


class _Pairs:
    """Pairs that are published together."""

    def __init__(self, partition: int) -> None:
        self._partition = partition
        self._of: dict[Model, list[tuple[str, Match]]] = {}

    def add(self, model: Model, event_id: str, match: Match) -> None:
        self._of.setdefault(model, []).append((event_id, match))

    def records(self) -> Iterator[Outgoing]:
        for model, pairs in self._of.items():
            for start in range(0, len(pairs), MAX_OUTCOMES):
                yield from self._records(model, pairs[start : start + MAX_OUTCOMES])

    def _records(self, model: Model, pairs: Sequence[tuple[str, Match]]) -> Iterator[Outgoing]:
        value = msgspec.json.encode(self._outcomes(model, pairs))
        if len(value) > MAX_RECORD_BYTES:
            half = len(pairs) // 2
            yield from self._records(model, pairs[:half])
            yield from self._records(model, pairs[half:])
        else:
            yield Outgoing(OUTCOMES, model.record_key, value, (SCHEMA_HEADER,), self._partition)

    def _outcomes(self, model: Model, pairs: Sequence[tuple[str, Match]]) -> Outcomes:
        predictions = [match.prediction for _, match in pairs]
        label, score, rating = (list(column) for column in zip(*entries.rows(match for _, match in pairs), strict=True))
        return Outcomes(
            service=model.service,
            model=model.model,
            partition=self._partition,
            count=len(pairs),
            event_id=[event_id for event_id, _ in pairs],
            model_version=[each.version for each in predictions],
            predicted_unix_s=[each.time_unix_s for each in predictions],
            labelled_unix_s=[match.label.time_unix_s for _, match in pairs],
            prediction=[each.value for each in predictions],
            confidence=[each.confidence for each in predictions],
            label=label,
            score=score,
            rating=rating,
            slices={name: [each.slices.get(name) for each in predictions] for name in model.slices},
        )
