"""What the pages of one target add up to: pages of cumulative values in, events with increases out.

- **Counters**, and ``_sum`` and ``_count`` of summaries, become ``counters``: what was added since the page before.
- **Histograms**, classic and native, become ``histograms``: the distribution of what was added, with the exact sum.
- All else (gauges, unknown, quantiles of summaries, info, state sets, gauge histograms) becomes ``metrics``, as it is.

What was added
  A value that fell, or a newer ``_created``, says that the series began anew: all of its value was added since. So it
  is with a series that is new on a target whose pages were seen before. The first page of a target tells nothing,
  unless ``_created`` says that the series is younger than our watching: it might have been counted by an agent before.
  Of a series that is not on a page the value is kept for `FORGET_S`, because exporters lose theirs for a while.

A sample without a finite value is absent. A page that says the same twice is taken at its first word. One event is made
for each label set and moment; labels that an event has a field for (``host``) are renamed as Prometheus renames labels
that are taken (``exported_host``).
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from itertools import pairwise
from math import floor, inf, isfinite, isnan, nan
from typing import Any, Final, NamedTuple

from streammon.histograms import from_buckets
from streammon.sketch import Sketch, SketchError
from streammon_agents.scrape.native import Native
from streammon_agents.scrape.pages import Fault, Page, PageError, Series, Type

FORGET_S: Final = 3600.0
"""A series that has not been on a page for this long is forgotten."""
AHEAD_S: Final = 30.0
BEHIND_S: Final = 600.0
"""Times that pages give their samples are believed if they are not further from ours."""
TAKEN: Final = frozenset({"host", "entity", "id", "labels"})
"""Labels of this name would hide what the event itself is about."""

Labels = Mapping[str, str]
Relabel = Callable[[dict[str, str]], dict[str, str] | None]
Part = str | float
"""What a sample is of its account; the upper bound of a bucket is a number."""
VALUE: Final = "value"
SUM: Final = "sum"
COUNT: Final = "count"
CREATED: Final = "created"
NATIVE: Final = "native"
BUCKET: Final = "le"


class Oddity(StrEnum):
    """Why a sample of a page that was taken is absent. The values are labels: add, never rename."""

    NOT_FINITE = "not_finite"
    NEGATIVE = "negative"  # a counter, or what was added to one, below zero
    DUPLICATE = "duplicate_sample"
    WRONG_TYPE = "wrong_type"  # a bucket without a bound, and other samples that do not fit their type
    BAD_HISTOGRAM = "bad_histogram"
    WRONG_TIME = "wrong_time"  # taken, but at the time of the scrape


class Identity(NamedTuple):
    """Whose samples they are: the host that scrapes, and the labels of the target without those in two underscores."""

    host: str
    labels: Labels

    def thing(self, labels: Labels) -> tuple[str, dict[str, str]]:
        """The id and the labels of an event: the service as relabelling names it, else the job."""
        name = "service" if self.labels.get("service") else "job"
        kept = {
            f"exported_{key}" if key in TAKEN else key: value
            for key, value in labels.items()
            if value and not key.startswith("__")
        }
        return kept.pop(name, None) or self.labels.get(name, ""), kept


class Taken(NamedTuple):
    """What a page came to. ``samples`` are those that relabelling has left."""

    events: list[dict[str, Any]]
    samples: int
    series_added: int
    oddities: Counter[StrEnum]


class Accounts:
    """Of one target, for as long as it is one."""

    def __init__(
        self,
        identity: Identity,
        *,
        watching_since_unix_s: float,
        relabel: Relabel = lambda labels: labels,
        honor_labels: bool = False,
        honor_timestamps: bool = True,
        max_series: int = 20_000,
    ) -> None:
        self._identity, self._since = identity, watching_since_unix_s
        self._relabel, self._honor_labels, self._honor_timestamps = relabel, honor_labels, honor_timestamps
        self._max_series = max_series or sys.maxsize
        self._types: Mapping[str, Type] = {}
        self._slots: _Slots = {}
        self._accounts: dict[_Key, _Account] = {}
        self._pages = self._taken = 0

    def take(self, page: Page, at_unix_s: float) -> Taken:
        """What a page that was fetched then comes to.

        Raises:
            PageError: relabelling leaves more than ``max_series`` samples; the page is as if it had not been there.
        """
        self._pages += 1
        scrape, known = _Scrape(self._identity.host, at_unix_s), len(self._accounts)
        touched, samples = self._sort(page, scrape)
        if samples > self._max_series:
            raise PageError(Fault.TOO_MANY_SAMPLES, f"relabelling leaves more than {self._max_series} samples")
        self._taken += 1
        for account in touched:
            account.settle(scrape)
        added = len(self._accounts) - known
        self._forget(len(touched), at_unix_s)
        return Taken(scrape.published(), samples, added, +scrape.oddities)

    def of_scrape(self, at_unix_s: float, metrics: Mapping[str, float]) -> dict[str, Any]:
        """The event of what is to be said of a scrape itself, such as ``up``."""
        scrape = _Scrape(self._identity.host, at_unix_s)
        scrape.event(self._thing(self._identity.labels), at_unix_s)["metrics"].update(metrics)
        return scrape.published()[0]

    def _sort(self, page: Page, scrape: _Scrape) -> tuple[list[_Account], int]:
        """Give each sample to its account; the accounts that got any, and how many samples were not dropped."""
        before = self._slots
        slots = before if page.types == self._types else {}  # what a series is may have changed
        self._types, self._slots = page.types, {}
        touched, dropped, absent = list[_Account](), 0, scrape.oddities
        for series, value, time_s in page.samples:
            slot = slots[series] if series in slots else self._slot(series, series in before)
            self._slots[series] = slots[series] = slot
            if slot is None:
                dropped += 1
            elif isinstance(slot, Oddity):
                absent[slot] += 1
            elif (slot.part is NATIVE) != isinstance(value, Native):
                absent[Oddity.WRONG_TYPE] += 1
            else:
                account = slot.account
                if account.page != self._pages:
                    account.begin(self._pages, scrape.at_unix_s)
                    touched.append(account)
                if slot.part in account.now:
                    absent[Oddity.DUPLICATE] += 1
                    continue
                account.now[slot.part] = value
                if time_s is not None and self._honor_timestamps:
                    account.time_s = time_s
        return touched, len(page.samples) - dropped

    def _forget(self, present: int, at_unix_s: float) -> None:
        """Those that have been on no page for long; if there are too many that are on none, those of the longest."""
        absent = len(self._accounts) - present
        if not absent:
            return
        oldest = sorted(
            (account.seen_unix_s, key) for key, account in self._accounts.items() if account.page != self._pages
        )
        for number, (seen_unix_s, key) in enumerate(oldest):
            if seen_unix_s >= at_unix_s - FORGET_S and absent - number <= self._max_series:
                break
            del self._accounts[key]

    def _slot(self, series: Series, was_there: bool) -> _Slot | Oddity | None:
        """Where samples of a series go; None: relabelling drops them."""
        labels = self._relabel(self._labels(series))
        if labels is None:
            return None
        role = role_of(series.name, self._types)
        part: Part | None = _bound(labels.pop("le", "")) if role.part == BUCKET else role.part
        if part is None:
            return Oddity.WRONG_TYPE
        name = labels.pop("__name__", "").removesuffix(role.suffix) + role.added
        key = _Key(role.kind, name, self._thing(labels))
        account = self._accounts.get(key)
        if account is None:
            is_new = self._taken > 0 and not was_there
            account = self._accounts[key] = _ACCOUNTS[role.kind](name, key.thing, self._since, is_new)
        return _Slot(account, part)

    def _labels(self, series: Series) -> dict[str, str]:
        """Those of the series and of its target. Where both have one, one of them is renamed or left out."""
        labels = {"__name__": series.name, **self._identity.labels}
        for name, value in series.labels.items():
            if self._honor_labels or name not in self._identity.labels:
                labels[name] = value
            elif value:
                labels[_exported(name, series.labels)] = value
        return labels

    def _thing(self, labels: Labels) -> _Thing:
        id_, kept = self._identity.thing(labels)
        return _Thing(id_, tuple(sorted(kept.items())))


def _bound(le: str) -> float | None:
    """The upper bound of a bucket."""
    try:
        bound = float(le)
    except ValueError:
        return None
    return None if isnan(bound) else bound


def _exported(name: str, taken: Labels) -> str:
    name = f"exported_{name}"
    return _exported(name, taken) if name in taken else name


# --- what a sample is of its family -----------------------------------------------------------------------


class Kind(StrEnum):
    METRIC = "metric"
    COUNTER = "counter"
    SUMMARY = "summary"
    HISTOGRAM = "histogram"


class Role(NamedTuple):
    """``suffix`` is what the name of the account lacks of that of the sample, ``added`` what it has more."""

    kind: Kind
    part: Part
    suffix: str = ""
    added: str = ""


_METRIC: Final = Role(Kind.METRIC, VALUE)
_TOLD_BY: Final = {
    Type.SUMMARY: {"_sum": Role(Kind.SUMMARY, SUM, "_sum"), "_count": Role(Kind.SUMMARY, COUNT, "_count")},
    Type.HISTOGRAM: {
        "_bucket": Role(Kind.HISTOGRAM, BUCKET, "_bucket"),
        "_sum": Role(Kind.HISTOGRAM, SUM, "_sum"),
        "_count": Role(Kind.HISTOGRAM, COUNT, "_count"),
    },
    Type.COUNTER: {"_total": Role(Kind.COUNTER, VALUE)},
}
_CREATED: Final = "_created"


def role_of(name: str, types: Mapping[str, Type]) -> Role:
    """What samples of this name are, by the types that their page declares."""
    own = types.get(name)
    if own is Type.COUNTER:
        return Role(Kind.COUNTER, VALUE)
    if own is Type.HISTOGRAM:
        return Role(Kind.HISTOGRAM, NATIVE)
    if name.endswith(_CREATED):
        return _created(name.removesuffix(_CREATED), own, types) or _METRIC
    if own is None and "_" in name:
        base, _, end = name.rpartition("_")
        return _TOLD_BY.get(types.get(base, Type.UNKNOWN), {}).get(f"_{end}", _METRIC)
    return _METRIC


def _created(base: str, own: Type | None, types: Mapping[str, Type]) -> Role | None:
    """In OpenMetrics a sample of the family; in Prometheus' format a gauge beside it, whose counter ends in _total."""
    of = types.get(base)
    if of in (Type.SUMMARY, Type.HISTOGRAM):
        return Role(Kind(of), CREATED, _CREATED)
    if types.get(f"{base}_total") is Type.COUNTER or (of is Type.COUNTER and own is None):
        return Role(Kind.COUNTER, CREATED, _CREATED, "_total")
    return Role(Kind.COUNTER, CREATED, _CREATED) if of is Type.COUNTER else None


# --- accounts ---------------------------------------------------------------------------------------------


class _Thing(NamedTuple):
    id: str
    labels: tuple[tuple[str, str], ...]


class _Key(NamedTuple):
    kind: Kind
    name: str
    thing: _Thing


class _Scrape:
    """The events of one page while they are made."""

    def __init__(self, host: str, at_unix_s: float) -> None:
        self.host, self.at_unix_s = host, at_unix_s
        self.oddities: Counter[StrEnum] = Counter()
        self._events: dict[tuple[_Thing, float], dict[str, Any]] = {}

    def event(self, thing: _Thing, at_unix_s: float) -> dict[str, Any]:
        event = self._events.get((thing, at_unix_s))
        if event is None:
            event = self._events[thing, at_unix_s] = {
                "time_unix_s": at_unix_s,
                "host": self.host,
                "entity": "service",
                "id": thing.id,
                "labels": dict(thing.labels),
                "metrics": {},
                "counters": {},
                "histograms": {},
            }
        return event

    def time_of(self, account: _Account) -> float:
        """The time of the page, if it gives one that can be."""
        if account.time_s is None:
            return self.at_unix_s
        if -BEHIND_S <= account.time_s - self.at_unix_s <= AHEAD_S:
            return account.time_s
        self.oddities[Oddity.WRONG_TIME] += 1
        return self.at_unix_s

    def published(self) -> list[dict[str, Any]]:
        """Those that say something, without the fields in which they say nothing."""
        for event in self._events.values():
            for field in ("counters", "histograms"):
                if not event[field]:
                    del event[field]
        return [event for event in self._events.values() if event["metrics"] or len(event) > 6]


class _Account:
    """What one thing is known to have come to."""

    __slots__ = ("_before", "_created_unix_s", "_since", "name", "now", "page", "seen_unix_s", "thing", "time_s")

    def __init__(self, name: str, thing: _Thing, since_unix_s: float, is_new: bool) -> None:
        self.name, self.thing = name, thing
        self.page, self.seen_unix_s = 0, 0.0
        self.now: dict[Part, Any] = {}
        self.time_s: float | None = None
        self._since = since_unix_s
        self._before: dict[Part, Any] | None = {} if is_new else None
        self._created_unix_s: float | None = None

    def begin(self, page: int, at_unix_s: float) -> None:
        """Be ready for the samples of a page."""
        self.page, self.seen_unix_s, self.now, self.time_s = page, at_unix_s, {}, None

    def settle(self, scrape: _Scrape) -> None:
        """Say what the page has brought."""
        raise NotImplementedError

    def _base(self, at_unix_s: float) -> dict[Part, Any] | None:
        """What the page is to be held against: {} if all of it is new, None if that is not known."""
        created, last = self.now.pop(CREATED, None), self._created_unix_s
        if created is not None and isfinite(created):
            self._created_unix_s = created
            if last is not None and created > last:
                return {}
            if self._before is None and self._since <= created <= at_unix_s:
                return {}
        return self._before


class _Metric(_Account):
    """A value as it is. ``_before`` holds the last time that a page gave it."""

    __slots__ = ()

    def settle(self, scrape: _Scrape) -> None:
        value = self.now[VALUE]
        if not isfinite(value):
            scrape.oddities[Oddity.NOT_FINITE] += 1
            return
        at = scrape.time_of(self)
        if at == self.time_s:
            if self._before and at <= self._before[VALUE]:
                return  # it was told already: it would count twice
            self._before = {VALUE: at}
        scrape.event(self.thing, at)["metrics"][self.name] = value


class _Sums(_Account):
    """A counter, or the sum and the count of a summary."""

    __slots__ = ()

    def settle(self, scrape: _Scrape) -> None:
        before = self._base(scrape.at_unix_s)
        now = {part: value for part, value in self.now.items() if isfinite(value)}
        monotone = [part for part in now if part != SUM or len(now) == 1]  # of negative values, a sum may fall
        scrape.oddities[Oddity.NOT_FINITE] += len(self.now) - len(now)
        if any(now[part] < 0 for part in monotone):
            scrape.oddities[Oddity.NEGATIVE] += 1
            return
        if before and any(now[part] < before.get(part, 0) for part in monotone):
            before = {}
        self._before = {**(before or {}), **now}
        if before is not None:
            self._say(scrape, {part: value - before.get(part, 0) for part, value in now.items()})

    def _say(self, scrape: _Scrape, added: Mapping[Part, float]) -> None:
        at = scrape.time_of(self)
        for part, value in added.items():
            if value < 0:  # a sum of values below zero: it cannot be a counter
                scrape.oddities[Oddity.NEGATIVE] += 1
            else:
                counters = scrape.event(self.thing, at)["counters"]
                counters[self.name if part == VALUE else f"{self.name}_{part}"] = value


class _Histogram(_Sums):
    """Classic or native; a client may show both, of which the native one is taken.

    One without any bounds tells as much as a summary does. So do native ones in formats that have no room for them.
    """

    __slots__ = ("_shape",)
    _shape: Part

    def settle(self, scrape: _Scrape) -> None:
        shape = self._turn_into(_shape(self.now))
        if shape == COUNT:
            self.now.pop(inf, None)
            super().settle(scrape)
            return
        try:
            added = (self._native if shape == NATIVE else self._classic)(self._base(scrape.at_unix_s))
        except (SketchError, ValueError, OverflowError):
            scrape.oddities[Oddity.BAD_HISTOGRAM] += 1
            return
        if added is not None:
            histograms = scrape.event(self.thing, scrape.time_of(self))["histograms"]
            histograms[self.name] = {"sum": added.sum, "sketch": added.sketch.to_wire()}

    def _turn_into(self, shape: Part) -> Part:
        """What was known of another shape says nothing about this one."""
        if self._before and shape != self._shape:
            self._before = None
        self._shape = shape
        return shape

    def _native(self, before: dict[Part, Any] | None) -> _Added | None:
        now: Native = self.now[NATIVE]
        self._before = {NATIVE: now}
        if before is None:
            return None
        then: Native | None = before.get(NATIVE)
        added = (now.since(then) if then else None) or now
        return _Added(added.sketch(), _finite(added.sum)) if added.holds_any else None

    def _classic(self, before: dict[Part, Any] | None) -> _Added | None:
        now = _classic(self.now)
        self._before = {BUCKET: now}
        if before is None:
            return None
        then: _Classic | None = before.get(BUCKET)
        added = (now.since(then) if then else None) or now
        each, all_ = added.by_bucket(), now.by_bucket()
        earlier = [count - more for count, more in zip(all_, each, strict=True)]
        return _Added(from_buckets(now.bounds, each, earlier), added.sum) if any(each) else None


class _Added(NamedTuple):
    sketch: Sketch
    sum: float


def _shape(now: Mapping[Part, Any]) -> Part:
    """What it can be told by: native buckets, classic ones, or its count and sum alone."""
    if NATIVE in now:
        return NATIVE
    return BUCKET if any(isinstance(part, float) and part < inf for part in now) else COUNT


def _finite(value: float) -> float:
    if not isfinite(value):
        raise ValueError("a sum is not finite")
    return value


class _Classic(NamedTuple):
    """A classic histogram: upper bounds, the last infinity, and how many values are not above each."""

    bounds: list[float]
    counts: list[int]
    sum: float

    def since(self, before: _Classic) -> _Classic | None:
        """What was added; None where it began anew."""
        then = before.counts if before.bounds == self.bounds else before.at(self.bounds)
        added = [now - last for now, last in zip(self.counts, then, strict=True)]
        fell = added[0] < 0 or any(low > high for low, high in pairwise(added))
        return None if fell else _Classic(self.bounds, added, self.sum - before.sum)

    def by_bucket(self) -> list[int]:
        """How many values are in each."""
        return [high - low for low, high in pairwise([0, *self.counts])]

    def at(self, bounds: Iterable[float]) -> list[int]:
        """The counts at other bounds: those of the next lower ones, as some exporters leave out empty buckets."""
        counts = [0, *self.counts]
        return [counts[bisect_right(self.bounds, bound)] for bound in bounds]


def _classic(now: Mapping[Part, float]) -> _Classic:
    """Complete and sound. Fractions are rounded down, so that increases still add up.

    Raises:
        ValueError: it cannot be one, or lacks its sum or the number of all values.
        OverflowError: it has infinitely many.
    """
    bounds = sorted(part for part in now if isinstance(part, float))
    counts = [floor(now[bound]) for bound in bounds]
    if bounds[-1] < inf:
        bounds, counts = [*bounds, inf], [*counts, floor(now.get(COUNT, nan))]
    if counts[0] < 0 or counts != sorted(counts):
        raise ValueError("the counts of the buckets fall")
    return _Classic(bounds, counts, _finite(now.get(SUM, nan)))


_ACCOUNTS: Final[Mapping[Kind, type[_Account]]] = {
    Kind.METRIC: _Metric,
    Kind.COUNTER: _Sums,
    Kind.SUMMARY: _Sums,
    Kind.HISTOGRAM: _Histogram,
}


class _Slot(NamedTuple):
    """Where the samples of a series go."""

    account: _Account
    part: Part


_Slots = dict[Series, _Slot | Oddity | None]
