"""Predictions and labels to join, and what must come of it, worked out the slow and obvious way."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from math import floor, inf
from typing import Any

import msgspec

from streammon.broker import Outgoing, Record
from streammon.config import LabelSettings, Settings, WindowSettings
from streammon.events import EventType
from streammon.models import LabelPolicy, ModelPolicy, Models
from streammon.outcomes import CONFIDENCE_BINS, OUTCOMES, Cohort, Outcomes, bounded_text, decode
from streammon.results import OTHER
from streammon.tick import TICK
from streammon_processors.contract import JUNK, PARTITION, Logs, Stored, random_log
from streammon_processors.join import JoinTask
from tests.oracle import Event, read

T0 = 1_700_000_000.0
KINDS = ("label", "score", "rating")
SHOP = LabelPolicy(horizon="30s", window="10s", slices=("tenant", "features.country"))
OTHERS = LabelPolicy(horizon="20s", window="5s")
MODELS = Models((ModelPolicy(service="shop", labels=SHOP), ModelPolicy(labels=OTHERS)))
SETTINGS = Settings(windows=WindowSettings(max_late_s=60.0), labels=LabelSettings(max_predictions=1000))


def join_task(partition: int = PARTITION, settings: Settings = SETTINGS) -> JoinTask:
    return JoinTask(partition, MODELS, settings)


def policy(service: str) -> LabelPolicy:
    return SHOP if service == "shop" else OTHERS


# --- logs -------------------------------------------------------------------------------------------------------


@cache
def join_logs(seed: int, size: int = 150) -> Logs:
    """Predictions over some minutes, with labels of before, soon, late, too late, and of nothing."""
    rng = random.Random(seed)
    predictions = [_prediction(rng, number) for number in range(size)]
    labels = [label for number in range(size) for label in _labels(rng, predictions[number])]
    predictions += [dict(each, time_unix_s=each["time_unix_s"] + rng.uniform(0, 70)) for each in predictions[::15]]
    return {
        "inference": ended(random_log(EventType.INFERENCE, _by_arrival(rng, predictions), rng)),
        "labels": ended(random_log(EventType.LABEL, _by_arrival(rng, labels), rng)),
    }


def ended(log: Sequence[Stored]) -> list[Stored]:
    """With an event of the future in it, and a tick long after it: everything is told then."""
    half = len(log) // 2
    ahead = {"time_unix_s": T0 + 1e6, "service": "shop", "model": "ranker", "event_id": "id-7", "label": 1.0}
    future = msgspec.json.encode({"schema": 1, **ahead, "duration_s": 0.1, "status": "ok"})
    values = [(record.value, record.timestamp) for record in log]
    values.insert(half, (future, log[half].timestamp))
    values.append((TICK, max(stamp for _, stamp in values) + 1_000_000))
    return [Stored(value, offset, stamp) for offset, (value, stamp) in enumerate(values)]


def _prediction(rng: random.Random, number: int) -> Event:
    event: Event = {
        "time_unix_s": T0 + number + rng.random(),
        "service": rng.choice(("shop", "search")),
        "model": rng.choice(("ranker", "other")),
        "duration_s": 0.1,
        "status": "ok",
    }
    optional = {
        "event_id": f"id-{number}" if rng.random() < 0.9 else "",
        "model_version": rng.choice("12"),
        "prediction": rng.choice((1.0, 0.25, True, "cat", "1", "x" * 300)),
        "confidence": rng.choice((rng.random(), 1.0, 0.0, 1.5)),
        "tenant": rng.choice("ab"),
        "features": {"country": rng.choice(("de", 1.0, True)), "age": 3.0},
    }
    return event | {name: value for name, value in optional.items() if rng.random() < 0.85}


def _labels(rng: random.Random, prediction: Event) -> Iterator[Event]:
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        known = {name: prediction[name] for name in ("service", "model")}
        said = {
            "label": rng.choice((1.0, True, "cat", "x" * 300)),
            "score": rng.random(),
            "rating": float(rng.randint(1, 5)),
        }
        yield {
            "time_unix_s": prediction["time_unix_s"] + rng.choice((-40.0, -10.0, 0.0, 5.0, 29.0, 31.0, 80.0)),
            **known,
            "event_id": rng.choice((prediction.get("event_id", ""), prediction.get("event_id", ""), "nobody")),
            **{name: value for name, value in said.items() if rng.random() < 0.5},
        }


def _by_arrival(rng: random.Random, events: Sequence[Event]) -> list[Event]:
    """About by their times; some late, some far too late."""
    delays = [rng.choice((0.0, 0.0, 0.0, 3.0, 20.0, 90.0)) for _ in events]
    arrivals = [event["time_unix_s"] + delay for event, delay in zip(events, delays, strict=True)]
    return [events[index] for index in sorted(range(len(events)), key=arrivals.__getitem__)]


# --- what must come of it ---------------------------------------------------------------------------------------

Window = tuple[str, str, float]
"""A service, a model, and the start of a window."""


@dataclass
class Joined:
    """Pairs, what cohorts add up to, and what became of labels that are in no pair."""

    pairs: Counter[tuple[Any, ...]] = field(default_factory=Counter)
    cohorts: Counter[tuple[Any, ...]] = field(default_factory=Counter)
    """By version, slice, window, part, and what is counted."""
    unmatched: Counter[Window] = field(default_factory=Counter)
    relabelled: Counter[Window] = field(default_factory=Counter)
    forgotten: Counter[tuple[str, str]] = field(default_factory=Counter)


@dataclass
class _Came:
    """An event, and when the broker got it."""

    event: Event
    ms: int
    kinds: set[str] = field(default_factory=set)
    """Of a label: those that are not repeated."""
    partners: dict[str, _Came] = field(default_factory=dict)
    """By kind."""

    @property
    def id(self) -> tuple[str, str, str]:
        return self.event["service"], self.event["model"], self.event.get("event_id") or ""

    @property
    def window(self) -> Window:
        size = policy(self.id[0]).window_s
        return *self.id[:2], floor(self.ms / 1000 / size) * size


def expected(logs: Mapping[str, Sequence[Record]], settings: WindowSettings = SETTINGS.windows) -> Joined:
    """What these logs must give, if time passes at their ends."""
    joined = Joined()
    predictions = _predictions(logs["inference"], settings, joined)
    labels = _labels_that_count(logs["labels"], settings, joined)
    for kind in KINDS:
        for prediction in predictions:
            for label in labels:
                if kind not in prediction.partners and _fit(prediction, label, kind):
                    prediction.partners[kind] = label
                    label.partners[kind] = prediction
    for label in labels:
        joined.pairs.update(_pairs(label))
        joined.unmatched[label.window] += bool(label.kinds) and not label.partners
    joined.unmatched = +joined.unmatched
    return joined


def _fit(prediction: _Came, label: _Came, kind: str) -> bool:
    free = kind in label.kinds and kind not in label.partners
    return free and label.id == prediction.id and abs(prediction.ms - label.ms) <= _horizon_ms(label)


def _horizon_ms(came: _Came) -> float:
    return policy(came.id[0]).horizon_s * 1000


def _pairs(label: _Came) -> Iterator[tuple[Any, ...]]:
    for prediction in {id(each): each for each in label.partners.values()}.values():
        told = prediction.event
        said = [label.event[kind] if label.partners.get(kind) is prediction else None for kind in KINDS]
        yield (
            *label.id, told.get("model_version"), told["time_unix_s"], label.event["time_unix_s"],
            told.get("confidence"), *map(_typed, (told.get("prediction"), *said)), _slices(told),
        )  # fmt: skip


def _typed(value: Any) -> tuple[type, Any]:
    """True is not 1.0."""
    return type(value), bounded_text(value) if isinstance(value, str) else value


def _slices(event: Event) -> tuple[tuple[str, str | None], ...]:
    given = {"tenant": event.get("tenant"), "features.country": event.get("features", {}).get("country")}
    return tuple((name, _text(given[name])) for name in policy(event["service"]).slices)


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"


def _class(value: Any) -> str | None:
    """As quality calls it: a number and the text of it are one class, and so are true and 1."""
    text = _text(value)
    return {"true": "1", "false": "0", "True": "1", "False": "0"}.get(text or "", text)


def _batches(records: Sequence[Record]) -> Iterator[tuple[Record, int, list[Event]]]:
    """Each record, the newest time of the broker so far, and its events, but for those that were sent again."""
    newest, seen = 0, set[Any]()
    for record in records:
        newest = max(newest, record.timestamp)
        events = []
        for batch in read(record.value) if record.value not in (*JUNK, TICK) and record.value is not None else ():
            if batch.identity is None or batch.identity not in seen:
                seen.add(batch.identity)
                events += batch.events
        yield record, newest, events


def _predictions(records: Sequence[Record], settings: WindowSettings, joined: Joined) -> list[_Came]:
    """Those that are waited for; all are counted."""
    newest, broker_ms, waiting = -inf, 0, list[_Came]()
    for record, ms, events in _batches(records):
        if record.value == TICK and broker_ms:
            newest += max(0, record.timestamp - broker_ms) / 1000
        broker_ms = record.timestamp
        for event in events:
            time, watermark = event["time_unix_s"], newest - settings.lateness_s
            if time <= record.timestamp / 1000 + settings.max_future_s:
                newest = max(newest, time)
                if time >= watermark - settings.max_late_s:
                    came = _Came(event, ms)
                    repeated = any(each.id == came.id and ms - each.ms <= _horizon_ms(came) for each in waiting)
                    waiting += [came] if came.id[2] and not repeated else []
                    _count(came, watermark, joined, repeated=repeated)
    return waiting


def _count(came: _Came, watermark: float, joined: Joined, *, repeated: bool) -> None:
    service, model, name = came.id
    event, size = came.event, policy(service).window_s
    start = floor(event["time_unix_s"] / size) * size
    part = "late" if start + size <= watermark else "main"
    confidence = event.get("confidence", -1.0)
    text = _class(event.get("prediction"))
    sliced = [((key, value),) for key, value in _slices(event) if value is not None]
    for own in [(), *sliced]:
        series = (service, model, event.get("model_version"), own, start, size, part)
        joined.cohorts[*series, "count"] += 1
        joined.cohorts[*series, "repeated" if repeated else "with_id"] += bool(name)
        if 0 <= confidence <= 1:
            bin_ = min(int(confidence * CONFIDENCE_BINS), CONFIDENCE_BINS - 1)
            joined.cohorts[*series, OTHER if text is None else bounded_text(text), bin_] += 1
    joined.cohorts = +joined.cohorts


def _labels_that_count(records: Sequence[Record], settings: WindowSettings, joined: Joined) -> list[_Came]:
    labels: list[_Came] = []
    for record, ms, events in _batches(records):
        for event in events:
            came = _Came(event, ms)
            if event["time_unix_s"] <= record.timestamp / 1000 + settings.max_future_s and came.id[2]:
                for kind in KINDS:
                    before = (each for each in labels if kind in each.kinds and each.id == came.id)
                    if event.get(kind) is None:
                        continue
                    if any(ms - each.ms <= _horizon_ms(came) for each in before):
                        joined.relabelled[came.window] += 1
                    else:
                        came.kinds.add(kind)
                labels.append(came)
    return labels


# --- what came of it --------------------------------------------------------------------------------------------


def joined(outputs: Iterable[Outgoing]) -> Joined:
    """What the task has published."""
    found = Joined()
    for output in outputs:
        if output.topic == OUTCOMES:
            record = decode(output.value or b"")
            if isinstance(record, Cohort):
                _add_cohort(record, found)
            else:
                found.pairs.update(_published_pairs(record))
    return found


def _published_pairs(record: Outcomes) -> Iterator[tuple[Any, ...]]:
    names = tuple(record.slices)
    for row in zip(
        record.event_id, record.model_version, record.predicted_unix_s, record.labelled_unix_s, record.confidence,
        record.prediction, record.label, record.score, record.rating, *record.slices.values(), strict=True,
    ):  # fmt: skip
        slices = tuple(zip(names, row[9:], strict=True))
        yield record.service, record.model, *row[:5], *map(_typed, row[5:9]), slices


def _add_cohort(record: Cohort, found: Joined) -> None:
    window = (record.service, record.model, record.start_unix_s)
    series = (
        record.service, record.model, record.model_version, tuple(record.slice.items()), record.start_unix_s,
        record.size_s, record.part,
    )  # fmt: skip
    counts = {"count": record.count, "with_id": record.with_id, "repeated": record.repeated}
    found.cohorts += Counter({(*series, name): count for name, count in counts.items()})
    for name, bins in record.confidence.items():
        found.cohorts += Counter({(*series, name, number): count for number, count in enumerate(bins)})
    found.unmatched += Counter({window: record.unmatched_labels})
    found.relabelled += Counter({window: record.relabelled})
    found.forgotten += Counter({window[:2]: record.forgotten})
