"""The quality task: one partition of `outcomes`, and how good the predictions in it were.

Promises
- Each pair counts once by label and once by prediction, in each series that it is in: all predictions of its version,
  and the slices that it belongs to. What cannot be counted is counted by why, `models.Skipped`.
- The same log gives the same results, byte for byte, wherever it is cut and a snapshot restored: time is that of the
  labels and predictions, and of the broker where those are silent.
- State is bounded: `MAX_SERIES` series, sums instead of pairs, and cohorts for as long as they fit into `MAX_BYTES`;
  the oldest ones are told for the last time before their horizon where they do not.
- The snapshot is of the last records that brought results, or of one of `MOST_RECORDS` before: `offsets` says which.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Final

import msgspec
from msgspec import Struct

from streammon import outcomes
from streammon.broker import Outgoing, Record
from streammon.deadletter import dead_letter_of
from streammon.errors import Reason, Rejected
from streammon.events import MAX_COUNT, EventType, record_key
from streammon.models import Models
from streammon.outcomes import CONFIDENCE_BINS, Cohort, Outcomes
from streammon.results import Quality
from streammon.tick import TICK
from streammon.wire import MAX_TIME_UNIX_S, SCHEMA_HEADER, read_message
from streammon_processors.quality.clock import LogTime
from streammon_processors.quality.models import KeptModel, Model, Names, Room, Skipped, skip

TOPIC: Final = "quality"
MAX_BYTES: Final = 800_000
"""What series and cohorts may take in a snapshot, before it is compressed."""
MOST_RECORDS: Final = 1000
"""Records after which there is another snapshot, if none of them brings a result."""
MAX_NAMES: Final = 1000
"""Characters of the names of a service and model together."""
SWEEP_MS: Final = 5000
"""How often is looked whether time alone makes something due, for models of which nothing comes."""
WEIGH_RECORDS: Final = 64
"""How often is looked whether everything still fits, beside whenever something has been told."""


class QualityTask:
    """Reads one partition of `outcomes`, and writes to the same partition of `quality`."""

    def __init__(
        self, models: Models, partition: int, *, max_future_s: float = 60.0, max_bytes: int = MAX_BYTES
    ) -> None:
        self._policies = models
        self._partition = partition
        self._max_future_s = max_future_s
        self._max_bytes = max_bytes
        self._time = LogTime()
        self._room = Room()
        self._models: dict[tuple[str, str], Model] = {}
        self._restored: set[Model] = set()  # and nothing has come of them since
        self._watermark = 0.0
        self._told = False  # whether the record at hand has brought a result
        self._next = 0
        self._kept_at = 0
        self._kept = self._snapshot()

    # --- the contract -----------------------------------------------------------------------------------------------

    def process(self, topic: str, records: Sequence[Record]) -> list[Outgoing]:
        """Take in outcomes; the results that follow, and dead letters of what is none."""
        outputs = [output for record in records for output in self._take_in(topic, record)]
        if outputs or self._next - self._kept_at >= MOST_RECORDS:
            self._kept_at, self._kept = self._next, self._snapshot()
        return outputs

    def snapshot(self) -> bytes:
        """What is remembered, as of the records that `offsets` begins after."""
        return self._kept

    def restore(self, snapshot: bytes) -> None:
        """Go on from a snapshot; the records from `offsets` on have to be given again."""
        kept = msgspec.msgpack.decode(zlib.decompress(snapshot), type=_Kept)
        self._next = self._kept_at = kept.next_offset
        self._time, self._watermark, self._kept = kept.time, kept.watermark, snapshot
        self._room = Room()
        models = [Model.restored(each, self._partition, self._room) for each in kept.models]
        self._models = {(model.names.service, model.names.model): model for model in models}
        self._restored = set(models)

    def offsets(self) -> Mapping[str, int]:
        return {"outcomes": self._kept_at} if self._kept_at else {}

    @property
    def waiting(self) -> Sequence[str]:
        """`outcomes`, while anything waits for its time to be over, or for labels."""
        return ["outcomes"] if self._models else []

    def watermarks(self) -> Mapping[str, float]:
        """How far the time of labels and predictions has come."""
        return {"outcomes": self._watermark} if self._watermark else {}

    # --- the story of a record --------------------------------------------------------------------------------------

    def _take_in(self, topic: str, record: Record) -> Iterator[Outgoing]:
        self._next, self._told = record.offset + 1, False
        before_ms = self._time.passed_ms
        self._time.pass_to(record.timestamp)
        if before_ms // SWEEP_MS != self._time.passed_ms // SWEEP_MS:
            for model in list(self._models.values()):
                yield from self._tell(model, model.advance(self._time.passed_ms))
                self._forget_idle(model)
        if record.value != TICK:
            try:
                yield from self._count(_read(record.value or b""), record)
            except Rejected as error:
                yield dead_letter_of(topic, record, error, to_partition=self._partition)
        if self._told or record.offset % WEIGH_RECORDS == 0:
            yield from self._make_room()

    def _count(self, message: outcomes.Record, record: Record) -> Iterator[Outgoing]:
        now_ms, latest = self._time.passed_ms, record.timestamp / 1000 + self._max_future_s
        model = self._model(message.service, message.model)
        if model is None:
            skip(Skipped.TOO_MANY_SERIES, message.count)
            return
        if model in self._restored:
            yield from self._follow(model)
        if isinstance(message, Cohort):
            yield from self._tell(model, model.count(message, now_ms, latest))
        elif message.count:
            yield from self._tell(model, model.take_in(message, now_ms, latest))
        self._forget_idle(model)

    def _follow(self, model: Model) -> Iterator[Outgoing]:
        """Go on with a model of which a snapshot has told, as it is to be understood now."""
        self._restored.discard(model)
        policy = self._policies.policy(model.names.service, model.names.model).labels
        if model.is_like(policy):
            model.follow(policy)
        else:
            yield from self._tell(model, model.begin_anew(policy, self._time.passed_ms))

    def _model(self, service: str, name: str) -> Model | None:
        model = self._models.get((service, name))
        if model is None and self._room.left:
            policy = self._policies.policy(service, name).labels
            model = self._models[service, name] = Model(Names(service, name, self._partition), policy, self._room)
        return model

    def _tell(self, model: Model, results: Iterator[Quality]) -> Iterator[Outgoing]:
        key = record_key(EventType.INFERENCE, (model.names.service, model.names.model))
        for result in results:
            self._told = True
            yield Outgoing(TOPIC, key, msgspec.json.encode(result), (SCHEMA_HEADER,), self._partition)
        self._watermark = max(self._watermark, model.newest_unix_s(self._time.passed_ms))

    def _forget_idle(self, model: Model) -> None:
        if model.is_idle:
            self._models.pop((model.names.service, model.names.model), None)

    def _make_room(self) -> Iterator[Outgoing]:
        """Wait no longer for the labels of the oldest cohorts, until the others fit."""
        while sum(model.weight for model in self._models.values()) > self._max_bytes:
            oldest = [(each, each.oldest(self._time.passed_ms)) for each in self._models.values()]
            waiting = [(number * each.cohort_s, number, each) for each, number in oldest if number is not None]
            if not waiting:
                return
            _, number, model = min(waiting, key=itemgetter(0))
            skip(Skipped.CLOSED_EARLY)
            yield from self._tell(model, model.finish(number + 1))
            self._forget_idle(model)

    def _snapshot(self) -> bytes:
        models = [model.keep() for model in self._models.values()]
        return zlib.compress(msgspec.msgpack.encode(_Kept(self._next, self._time, self._watermark, models)), 1)


class _Kept(Struct, array_like=True):
    next_offset: int
    time: LogTime
    watermark: float
    models: list[KeptModel]


def _read(value: bytes) -> outcomes.Record:
    """Raises Rejected."""
    message = read_message(outcomes.decode, value)
    if len(message.service) + len(message.model) > MAX_NAMES:
        raise Rejected(Reason.TOO_LARGE, f"the names of service and model have over {MAX_NAMES} characters")
    if isinstance(message, Cohort):
        _check_cohort(message)
    else:
        _check_outcomes(message)
    return message


def _check_outcomes(pairs: Outcomes) -> None:
    columns = {name: column for name in Outcomes.__struct_fields__ if isinstance(column := getattr(pairs, name), list)}
    for name, column in (columns | {f"slices.{name}": each for name, each in pairs.slices.items()}).items():
        if len(column) != pairs.count:
            raise Rejected(Reason.UNEQUAL_LENGTHS, f"{name} has {len(column)} values, count is {pairs.count}")
    for times in (pairs.predicted_unix_s, pairs.labelled_unix_s):
        if pairs.count and not (min(times) >= 0 and max(times) < MAX_TIME_UNIX_S):
            raise Rejected(Reason.BAD_TIME, f"the times are from {min(times):.15g} to {max(times):.15g}")


def _check_cohort(cohort: Cohort) -> None:
    if not 0 <= cohort.start_unix_s < cohort.end_unix_s < MAX_TIME_UNIX_S:
        raise Rejected(Reason.BAD_TIME, f"the cohort is [{cohort.start_unix_s}, {cohort.end_unix_s})")
    for name, counts in cohort.confidence.items():
        if len(counts) != CONFIDENCE_BINS or min(counts) < 0 or max(counts) > MAX_COUNT:
            raise Rejected(Reason.INVALID_EVENT, f"confidence of {name!r}: {CONFIDENCE_BINS} counts are needed")
