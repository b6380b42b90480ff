"""What the log holds around alerts of about the same time: read once for all of them, and bounded.

Windows: half an hour before the onset, or `HISTORY` windows of the rule's length if those are longer, up to three
hours, and as long after it at most; of these at most the newest `MAX_WINDOWS` records. Changes, pipeline runs and
drift: three days, at most `MAX_EVENTS` records of each topic. Reading ends after `READ_S`, with what there is by then.
What was left out is said in the notes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Any, Final

import msgspec

from streammon.broker import Broker, Record, TopicPartition
from streammon.broker.reading import read
from streammon.errors import Rejected
from streammon.events import STRUCTS, EventType
from streammon.results import Alert, Drift
from streammon.tick import TICK
from streammon.topics import DAY_S
from streammon.wire import decode
from streammon_sinks.diagnosis.alerted import HISTORY, Fired, began_unix_s, ends_unix_s, lookback_s, tripping
from streammon_sinks.diagnosis.diagnose import Surroundings
from streammon_sinks.diagnosis.happenings import Happenings
from streammon_sinks.diagnosis.tracks import Grid, Seen, Tracks, decode_seen

MAX_WINDOWS: Final = 300_000
MAX_EVENTS: Final = 20_000
READ_S: Final = 20.0
EVENTS_S: Final = 3 * DAY_S
BINS: Final = 180
AFTER_S: Final = 120.0
"""How much is looked at of what came after the alert, when it is diagnosed late."""

_decode_drift: Final = msgspec.json.Decoder(Drift).decode


async def gather(broker: Broker, fired: Sequence[Fired]) -> Surroundings:
    """What was around these alerts, which should be of about the same time.

    Raises `Retryable` when the broker is away.
    """
    seen = Around([each.alert for each in fired])
    since = min(each.from_unix_s for each in fired)
    until = max(each.until_unix_s for each in fired) + AFTER_S
    try:
        async with asyncio.timeout(READ_S):
            await _read(broker, ["windows"], since, until, MAX_WINDOWS, seen)
            await _read(broker, ["changes", "pipelines", "drift"], since - EVENTS_S, until, MAX_EVENTS, seen)
    except TimeoutError:
        seen.notes.append(f"reading was ended after {READ_S:g} s")
    return seen.surroundings()


async def _read(broker: Broker, topics: Sequence[str], since: float, until: float, at_most: int, seen: Around) -> None:
    """The records of each topic in that time, at most the newest ``at_most``."""
    ends = await _ends(broker, topics, until)
    starts = dict(await _places(broker, topics, since))
    for topic in topics:
        mine = [each for each in ends if each.topic == topic]
        if sum(ends[each] - starts.get(each, 0) for each in mine) > at_most:
            seen.notes.append(f"of {topic}, only the newest {at_most:,} records were read")
            share = at_most // len(mine)
            starts |= {each: max(starts.get(each, 0), ends[each] - share) for each in mine}
    wanted = {each: starts[each] for each in ends if starts[each] < ends[each]}
    if not wanted:
        return
    async with aclosing(read(broker, topics, wanted, {each: ends[each] for each in wanted})) as batches:
        async for where, records in batches:
            seen.add_all(where, records)
            await asyncio.sleep(0)  # others run in this process, too


async def _places(broker: Broker, topics: Sequence[str], unix_s: float) -> Mapping[TopicPartition, int]:
    reader = await broker.reader(topics, max(0.0, unix_s))
    try:
        return dict(reader.positions())
    finally:
        await reader.close()


async def _ends(broker: Broker, topics: Sequence[str], until: float) -> Mapping[TopicPartition, int]:
    return await _places(broker, topics, until)


class Around:
    """Takes in records until it is asked for the `Surroundings`."""

    def __init__(self, alerts: Sequence[Alert]) -> None:
        back_s = max(map(lookback_s, alerts))
        step_s = back_s / BINS
        first = min(map(began_unix_s, alerts)) - back_s
        self._now = max(map(ends_unix_s, alerts))
        last = self._now + 4 * step_s
        start = first // step_s * step_s
        self._grid = Grid(start, step_s, int((last - start) // step_s) + 1)
        self._tracks = Tracks(self._grid, [alert.labels for alert in alerts])
        self._happenings = Happenings()
        self._history = {alert.id: _History(alert) for alert in alerts}
        self._by_series: dict[tuple[Any, ...], list[_History]] = {}
        for each in self._history.values():
            self._by_series.setdefault(each.key, []).append(each)
        self.notes = list[str]()

    def add_all(self, where: TopicPartition, records: Sequence[Record]) -> None:
        """What cannot be read is passed over: whoever owns the topic reports it."""
        add: Callable[[bytes], None] = {
            "windows": self._add_window,
            "changes": lambda value: self._add_events(EventType.CHANGE, self._happenings.add_change, value),
            "pipelines": lambda value: self._add_events(EventType.PIPELINE, self._happenings.add_pipeline, value),
            "drift": lambda value: self._happenings.add_drift(_decode_drift(value)),
        }[where.topic]
        for record in records:
            if record.value is not None and record.value != TICK:
                with suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError, Rejected):
                    add(record.value)

    def _add_window(self, value: bytes) -> None:
        seen = decode_seen(value)
        self._tracks.add(seen)
        for history in self._by_series.get(_key(seen.source, seen.series), ()):
            history.add(seen, value)

    def _add_events(self, type_: EventType, add: Callable[[Any], None], value: bytes) -> None:
        for batch in decode(type_, value):
            for row in range(len(batch.rows)):
                add(msgspec.convert(batch.rows.event(row), STRUCTS[type_]))

    def surroundings(self) -> Surroundings:
        notes = list(self.notes)
        if self._tracks.left_out:
            notes.append("there were too many series: those that share no label with the alert were left out")
        history = {id_: list(each.windows) for id_, each in self._history.items()}
        happened = self._happenings.until(self._now)
        return Surroundings(self._grid, self._tracks.all(), happened, history, notes)


def _key(source: str, series: Mapping[str, str]) -> tuple[Any, ...]:
    return source, *sorted(series.items())


class _History:
    """The last windows of an alert's own series that are of the length its rule looks at."""

    def __init__(self, alert: Alert) -> None:
        self._like = tripping(alert)
        self.key = _key(self._like.source or "inference", self._like.series or alert.labels)
        self._until = alert.updated_unix_s
        self.windows: deque[dict[str, Any]] = deque(maxlen=HISTORY)

    def add(self, seen: Seen, value: bytes) -> None:
        if (
            self._like.size_s in (None, seen.size_s)
            and seen.kind == self._like.kind
            and seen.part == "main"
            and seen.end_unix_s <= self._until
        ):
            self.windows.append(msgspec.json.decode(value))
