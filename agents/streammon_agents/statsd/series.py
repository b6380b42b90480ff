"""Lines added up: one event for each service and set of tags, at every flush.

========================  ====================================================================================
counter                   ``counters``: the sum of its values over their sample rates; one below 0 is refused
timer, histogram,         ``histograms``: sum, least, greatest, and the sketch of the values, each counted as often
distribution              as its sample rate says
gauge, service check      ``metrics``: the last value; ``+1`` and ``-1`` change what was before, 0 at first
set                       ``metrics``: how many different values there were since the flush before
========================  ====================================================================================

Memory is bounded: by ``max_series``, beyond which counters and timings are added up by name alone in the service
`OTHER`, and gauges and sets, which do not add, are refused; by `MAX_MEMBERS` of a set; by `MAX_VALUES` kept as they
are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from math import isfinite
from typing import Any, NamedTuple

from streammon.config import StatsdSettings
from streammon.lazy_numpy import np
from streammon.sketch import EMPTY, Floats, Sketch, SketchBag, SketchError, merge
from streammon_agents.statsd.lines import Check, Happened, Key, Kind, NotUnderstood, Refusal, check_of, happened, parse

OTHER = "__other__"
MAX_MEMBERS = 10_000
MAX_RATES = 16
"""Sample rates of one timing at one time: each is a sketch of its own until the flush."""
MEMBER_BYTES = 16
"""Of a longer member a hash is kept, so that a packet of 64 KiB is not."""
MAX_VALUES = 65_536
"""Values of timings kept as they are; more are turned into sketches before the flush."""
MAX_WEIGHT = 64
"""Names of one event, each of which may have 1 kB; a histogram counts as several. So the largest event is still smaller
than a record may be: one that is not would be lost."""
HISTOGRAM_WEIGHT = 4
LOOKS = 10
"""How often within ``expire_s`` series are looked through for silent ones."""
CHANGES = frozenset({"deploy", "rollback", "config", "retrain", "scale"})

Event = dict[str, Any]
Add = Callable[[bytes], None]


class Flushed(NamedTuple):
    """What one interval gave."""

    resources: list[Event]
    changes: list[Event]
    refused: Counter[Refusal]


class Series:
    """The values of one name since the last flush; the gauge, for longer."""

    __slots__ = ("gauge", "key", "members", "remainder", "silent_since", "sketch", "sums", "touched", "values")

    def __init__(self, key: Key, now: float) -> None:
        self.key = key
        self.touched = False
        self.silent_since = now
        self.gauge = 0.0
        self.sums: dict[float, float] = {}  # by sample rate: what is divided once is exact more often
        self.values: dict[float, list[float]] = {}
        self.sketch: _Timing | None = None
        self.members: set[bytes] = set()
        self.remainder = 0.0

    def clear(self) -> None:
        self.touched = False
        self.sums, self.values, self.sketch, self.members = {}, {}, None, set()


class _Timing(NamedTuple):
    sketch: Sketch
    sum: float
    min: float
    max: float

    def plus(self, other: _Timing) -> _Timing:
        return _Timing(
            merge((self.sketch, other.sketch)),
            self.sum + other.sum,
            min(self.min, other.min),
            max(self.max, other.max),
        )


class Aggregate:
    """What came since the last flush. ``clock``: Unix time in seconds."""

    def __init__(self, settings: StatsdSettings, host: str, clock: Callable[[], float]) -> None:
        self._settings, self._host, self._clock = settings, host, clock
        self._series: dict[Key, Series] = {}
        self._adds: dict[tuple[bytes, bytes], Add] = {}
        self._other_names: set[str] = set()
        self._changes: list[Event] = []
        self._touched: list[Series] = []
        self._values = 0
        self._forgotten_at = clock()
        self.refused: Counter[Refusal] = Counter()

    def packet(self, data: bytes) -> None:
        """Every line of a packet, each judged by itself."""
        for line in data.split(b"\n"):
            if line:
                try:
                    self._line(line)
                except NotUnderstood as error:
                    self.refused[error.reason] += 1
                except ValueError:  # a value that is no number
                    self.refused[Refusal.GARBAGE] += 1

    def _line(self, line: bytes) -> None:
        name, _, rest = line.partition(b":")
        values, _, tail = rest.partition(b"|")
        add = self._adds.get((name, tail))
        if add is None:
            if line.startswith(b"_sc|"):
                return self._check(check_of(line))
            if line.startswith(b"_e{"):
                return self._happened(happened(line))
            add = self._known(name, tail)
        return add(values)

    def _known(self, name: bytes, tail: bytes) -> Add:
        """How values of such lines are added, found out once."""
        key, rate = parse(name, tail)
        add = self._add(self._place(key), rate)
        if len(self._adds) >= 2 * self._settings.max_series:
            self._adds.clear()  # tails that differ, although their series do not; those in use come back
        if key.time_unix_s is None:
            self._adds[name, tail] = add
        return add

    def _place(self, key: Key) -> Series:
        key = key._replace(service=key.service or self._service(key.name))
        series = self._series.get(key)
        if series is not None:
            return series
        if len(self._series) - len(self._other_names) < self._settings.max_series:
            return self._series.setdefault(key, Series(key, self._clock()))
        return self._other(key)

    def _other(self, key: Key) -> Series:
        if key.kind not in (Kind.COUNTER, Kind.TIMING):
            raise NotUnderstood(Refusal.SERIES)
        other = Key(key.name, key.kind, OTHER, ())
        if other not in self._series:
            if len(self._other_names) >= self._settings.max_names:
                raise NotUnderstood(Refusal.NAMES)
            self._other_names.add(f"{key.kind} {key.name}")
            self._series[other] = Series(other, self._clock())
        return self._series[other]

    def _service(self, name: str) -> str:
        return self._settings.service or name.partition(".")[0] or OTHER

    def _touch(self, series: Series) -> None:
        if not series.touched:
            series.touched = True
            self._touched.append(series)

    # --- values -------------------------------------------------------------------------------------------

    def _add(self, series: Series, rate: float) -> Add:
        adds = {
            Kind.COUNTER: self._count,
            Kind.GAUGE: self._gauge,
            Kind.TIMING: self._time,
            Kind.SET: self._member,
        }
        add = adds[series.key.kind](series, rate)
        if series.key.service != OTHER:
            return add

        def counted(values: bytes) -> None:
            self.refused[Refusal.SERIES] += 1
            add(values)

        return counted

    def _count(self, series: Series, rate: float) -> Add:
        def add(values: bytes) -> None:
            total = _amount(values) if b":" not in values else sum(map(_amount, values.split(b":")))
            series.sums[rate] = series.sums.get(rate, 0.0) + total
            self._touch(series)

        return add

    def _time(self, series: Series, rate: float) -> Add:
        def add(values: bytes) -> None:
            more = [_number(values)] if b":" not in values else [_number(value) for value in values.split(b":")]
            if rate not in series.values and len(series.values) >= MAX_RATES:
                raise NotUnderstood(Refusal.RATES)
            series.values.setdefault(rate, []).extend(more)
            self._touch(series)
            self._values += len(more)
            if self._values >= MAX_VALUES:
                self._sketch_all()

        return add

    def _gauge(self, series: Series, rate: float) -> Add:
        def add(values: bytes) -> None:
            for value in values.split(b":"):
                number = _number(value)
                series.gauge = series.gauge + number if value[:1] in b"+-" else number
            self._touch(series)

        return add

    def _member(self, series: Series, rate: float) -> Add:
        def add(values: bytes) -> None:
            self._touch(series)
            member = values if len(values) <= MEMBER_BYTES else blake2b(values, digest_size=MEMBER_BYTES).digest()
            if len(series.members) < MAX_MEMBERS or member in series.members:
                series.members.add(member)
            else:
                self.refused[Refusal.MEMBERS] += 1

        return add

    def _check(self, check: Check) -> None:
        series = self._place(check.key)
        series.gauge = check.status
        self._touch(series)

    def _happened(self, event: Happened) -> None:
        """An event with a tag such as ``change:deploy`` is a change; of others nothing is made."""
        labels = event.tags.labels
        if labels.get("change") not in CHANGES or len(self._changes) >= self._settings.max_series:
            raise NotUnderstood(Refusal.IGNORED)
        change = {
            "time_unix_s": self._clock() if event.time_unix_s is None else event.time_unix_s,
            "service": event.tags.service or self._settings.service or OTHER,
            "kind": labels["change"],
            "model": labels.get("model"),
            "model_version": labels.get("version"),
            "ref": event.title,
        }
        self._changes.append({name: value for name, value in change.items() if value is not None})

    # --- flush --------------------------------------------------------------------------------------------

    def flush(self) -> Flushed:
        """The events of what came since, and begin anew."""
        now = self._clock()
        self._sketch_all()
        touched, self._touched = self._touched, []
        flushed = Flushed(list(self._events(touched, now)), self._changes, self.refused)
        for series in touched:
            series.clear()
            series.silent_since = now
        self._forget(touched, now)
        self._changes, self.refused = [], Counter()
        return flushed

    def _events(self, touched: Iterable[Series], now: float) -> Iterable[Event]:
        filling: dict[tuple[Any, ...], Event] = {}
        events: list[Event] = []
        for series in touched:
            key = series.key
            event = filling.get(key[2:])
            if event is None or _weight(event) >= MAX_WEIGHT:
                event = filling[key[2:]] = {
                    "time_unix_s": now if key.time_unix_s is None else key.time_unix_s,
                    "host": self._host,
                    "entity": "service",
                    "id": key.service,
                    "labels": dict(key.labels),
                    "metrics": {},
                    "counters": {},
                    "histograms": {},
                }
                events.append(event)
            self._write(series, event)
        for event in events:
            yield {name: value for name, value in event.items() if value or name == "metrics"}

    def _write(self, series: Series, event: Event) -> None:
        name = series.key.name
        if series.key.kind is Kind.COUNTER:
            self._put(event["counters"], name, sum(total / rate for rate, total in series.sums.items()))
        elif series.key.kind is Kind.GAUGE:
            self._put(event["metrics"], name, series.gauge)
        elif series.key.kind is Kind.SET:
            event["metrics"][name] = float(len(series.members))
        elif (timing := series.sketch) is not None:
            if not isfinite(timing.sum):
                self.refused[Refusal.NON_FINITE] += 1
                return
            event["histograms"][name] = {
                "sum": timing.sum,
                "sketch": timing.sketch.to_wire(),
                "min": timing.min,
                "max": timing.max,
            }

    def _put(self, values: dict[str, float], name: str, value: float) -> None:
        if isfinite(value):
            values[name] = value
        else:
            self.refused[Refusal.NON_FINITE] += 1

    def _forget(self, touched: Iterable[Series], now: float) -> None:
        """The series of one moment; and now and then, those that were silent for long."""
        for series in touched:
            if series.key.time_unix_s is not None:
                del self._series[series.key]
        if now < self._forgotten_at + self._settings.expire_s / LOOKS:
            return
        self._forgotten_at = now
        silent = now - self._settings.expire_s
        gone = [key for key, series in self._series.items() if series.silent_since < silent]
        for key in gone:
            del self._series[key]
            if key.service == OTHER:
                self._other_names.discard(f"{key.kind} {key.name}")
        if gone:
            self._adds.clear()  # they point to what is forgotten

    def _sketch_all(self) -> None:
        """Turn the values of all timings into sketches, in one go, because each call of numpy has its price."""
        if not self._values:
            return
        bag, parts = SketchBag(), list[tuple[Series, float, int, Floats]]()
        slot = 0
        for series in self._touched:
            for rate, values in series.values.items():
                for weight, share in _weighted(series, np.array(values), rate):
                    bag.add(np.full(len(share), slot), share)
                    parts.append((series, rate, weight, share))
                    slot += 1
            series.values = {}
        sketches = bag.sketches()
        for number, (series, rate, weight, share) in enumerate(parts):
            self._add_sketch(series, rate, weight, share, sketches.get(number, EMPTY))
        self._values = 0

    def _add_sketch(self, series: Series, rate: float, weight: int, share: Floats, sketch: Sketch) -> None:
        try:
            with np.errstate(over="ignore"):
                total = float(share.sum()) / rate
            more = _Timing(sketch.times(weight), total, float(share.min()), float(share.max()))
            series.sketch = more if series.sketch is None else series.sketch.plus(more)
        except SketchError:  # more of them than can be counted
            self.refused[Refusal.NON_FINITE] += 1


def _weight(event: Event) -> int:
    """About how much of `MAX_WEIGHT` an event takes."""
    return len(event["metrics"]) + len(event["counters"]) + HISTOGRAM_WEIGHT * len(event["histograms"])


def _weighted(series: Series, values: Floats, rate: float) -> Iterator[tuple[int, Floats]]:
    """The values in shares that count equally often: 1 / ``rate`` times. Where that is no whole number, some count once
    more than the others; what remains is left for the next time, so that over time they are as many as they were.
    """
    often = 1 / rate
    low = int(often + 1e-9)
    more = len(values) * (often - low) + series.remainder
    extra = min(max(round(more), 0), len(values))
    series.remainder = more - extra
    once_more = np.zeros(len(values), dtype=np.bool_)
    once_more[np.arange(extra) * len(values) // max(extra, 1)] = True
    for weight, share in ((low + 1, values[once_more]), (low, values[~once_more])):
        if len(share):
            yield weight, share


def _amount(value: bytes) -> float:
    """What a counter grew by: one that falls could not be told from one that began anew."""
    number = _number(value)
    if number < 0:
        raise NotUnderstood(Refusal.NEGATIVE)
    return number


def _number(value: bytes) -> float:
    """Raises ValueError for what is none, or not finite."""
    number = float(value)
    if not isfinite(number) or b"_" in value:
        raise ValueError(value)
    return number
