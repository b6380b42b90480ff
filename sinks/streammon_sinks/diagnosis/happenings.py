"""What happened around an alert that is no series: changes, pipeline runs that were late or failed, drift.

Each becomes a `Happening`, with a time, what it is about, and a sentence. Bounded: the newest `MAX_HAPPENINGS` of each
topic, and `MAX_RUNS` pipeline runs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from statistics import median
from typing import Final, NamedTuple

from streammon.durations import roughly
from streammon.events import Change, Pipeline
from streammon.results import Drift

MAX_HAPPENINGS: Final = 2000
MAX_RUNS: Final = 2000
LATE_S: Final = 120.0
"""A run that starts, or ends beyond what is usual, by less than this is not late."""
OVERDUE: Final = 1.5
"""A run is late when it takes this many times as long as is usual for its job."""


class Happening(NamedTuple):
    """``about``: labels such as service, model, job; ``words``: names in it that may be those of a service or model."""

    at_unix_s: float
    kind: str
    about: Mapping[str, str]
    what: str
    words: frozenset[str] = frozenset()


def of_change(change: Change) -> Happening:
    about = {
        name: value for name in ("service", "model", "model_version") if (value := getattr(change, name)) is not None
    }
    version = f" {change.model_version}" if change.model_version else ""
    target = "/".join(filter(None, (change.service, change.model))) + version
    by = f" by {change.actor}" if change.actor else ""
    ref = f" ({change.ref})" if change.ref else ""
    return Happening(change.time_unix_s, change.kind, about, f"{change.kind} of {target}{by}{ref}")


def of_drift(drift: Drift) -> Happening:
    what = f"{drift.target} of {drift.model} drifted ({drift.detector} {drift.statistic:.3g} > {drift.threshold:.3g})"
    about = {"model": drift.model, "target": drift.target} | ({"service": drift.service} if drift.service else {})
    return Happening(drift.start_unix_s, "drift", about, what)


class Run:
    """One pipeline run, as far as it is known."""

    def __init__(self, job: str, run_id: str) -> None:
        self.job, self.run_id = job, run_id
        self.nominal: float | None = None
        self.started: float | None = None
        self.ended: float | None = None
        self.failed: float | None = None
        self.words: set[str] = set()

    def add(self, event: Pipeline) -> None:
        self.words |= words_of(event.job)
        self.words |= {word for each in (event.outputs or [])[:50] for word in words_of(each.name)}
        self.nominal = event.nominal_time_unix_s if event.nominal_time_unix_s is not None else self.nominal
        if event.event == "started":
            self.started = event.time_unix_s
        elif event.event == "finished":
            self.ended = event.time_unix_s
        elif event.event == "failed":
            self.failed = self.ended = event.time_unix_s


def words_of(name: str) -> set[str]:
    """The words of a name, and the whole of it: ``ranker-features_v2`` is about ``ranker``."""
    parts = "".join(letter if letter.isalnum() else " " for letter in name.lower()).split()
    return {name.lower(), *(part for part in parts if len(part) > 2)}


class Happenings:
    """Takes in events and drift one by one."""

    def __init__(self) -> None:
        self._changes: deque[Happening] = deque(maxlen=MAX_HAPPENINGS)
        self._drift: deque[Happening] = deque(maxlen=MAX_HAPPENINGS)
        self._runs: dict[tuple[str, str], Run] = {}

    def add_change(self, change: Change) -> None:
        self._changes.append(of_change(change))

    def add_drift(self, drift: Drift) -> None:
        if drift.drifted:
            self._drift.append(of_drift(drift))

    def add_pipeline(self, event: Pipeline) -> None:
        run = self._runs.setdefault((event.job, event.run_id), Run(event.job, event.run_id))
        run.add(event)
        if len(self._runs) > MAX_RUNS:
            del self._runs[next(iter(self._runs))]

    def until(self, now_unix_s: float) -> list[Happening]:
        """All that had happened by then; what a run did later is not known yet."""
        runs = _troubled(self._runs.values(), now_unix_s)
        found = [each for each in (*self._changes, *self._drift, *runs) if each.at_unix_s <= now_unix_s]
        return sorted(found, key=lambda each: (each.at_unix_s, each.kind, each.what, sorted(each.about.items())))


def _troubled(runs: Iterable[Run], now_unix_s: float) -> Iterator[Happening]:
    by_job: dict[str, list[Run]] = {}
    for run in runs:
        by_job.setdefault(run.job, []).append(run)
    usual = {job: _usual_s(known) for job, known in by_job.items()}
    for run in chain(*by_job.values()):
        about, words = {"job": run.job}, frozenset(run.words)
        if run.failed is not None and run.failed <= now_unix_s:
            yield Happening(run.failed, "run_failed", about, f"run {run.run_id} of {run.job} failed", words)
        elif (late := _late(run, usual[run.job], now_unix_s)) is not None:
            since, why = late
            yield Happening(since, "run_late", about, f"run {run.run_id} of {run.job} is late: {why}", words)


def _usual_s(runs: Iterable[Run]) -> float | None:
    whole = [run for run in runs if run.failed is None]
    lasted = [run.ended - run.started for run in whole if run.started is not None and run.ended is not None]
    return median(lasted) if lasted else None


def _late(run: Run, usual_s: float | None, now_unix_s: float) -> tuple[float, str] | None:
    """Since when, and why it is said to be."""
    if run.nominal is not None and run.started is not None and run.started - run.nominal > LATE_S:
        return run.nominal, f"it began {roughly(run.started - run.nominal)} after its time"
    if run.started is None or usual_s is None:
        return None
    allowed_s = max(OVERDUE * usual_s, usual_s + LATE_S)
    ended = run.ended if run.ended is not None and run.ended <= now_unix_s else now_unix_s
    if ended - run.started <= allowed_s:
        return None
    return run.started + allowed_s, f"it took or takes {roughly(ended - run.started)}, usually {roughly(usual_s)}"
