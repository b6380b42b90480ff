"""Why an alert may have fired: a pure function of the alert and of what was around it.

    evidence = diagnose(alert, surroundings)

1. *Onset.* The alert's own series is looked up, and since when it has been off its level: that may be before the rule
   was breached.
2. *Candidates.* Every other series that is off its level then, and every change, pipeline run and drift before it.
3. *Score.* ``weight × relation × timing × strength``, each from 0 to 1: what kind of thing it is (`signals`), how close
   it is to the alert (same series, host, service, or none), whether it began before the onset and how shortly, and how
   clear it is (a shift in units of its own noise, and the correlation of its ranks with the alert's series).
4. *One cause for one thing.* Of candidates about one thing (the disks of a host, say) the best stays.

No number in a score is learnt: each can be read in the reason. It says what to look at first, and can be wrong: two
things that begin in the same ten seconds cannot be told apart by time, and what is not in the log is never found.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from msgspec.structs import replace

from streammon.durations import roughly
from streammon.results import Alert, Cause, CoMoving, Evidence, Point
from streammon_sinks.diagnosis.alerted import HISTORY, began_unix_s, tripping, window_of
from streammon_sinks.diagnosis.happenings import Happening, words_of
from streammon_sinks.diagnosis.shifts import Shift, baseline_of, correlations, shift_of
from streammon_sinks.diagnosis.signals import ANYTHING, EVENTS, OTHER, OWN, RESOURCE, Signal, signal_of
from streammon_sinks.diagnosis.tracks import Floats, Grid, Track, track_of

MAX_CAUSES: Final = 10
MAX_COMOVING: Final = 10
MAX_WORDS: Final = 500
"""Characters of what others wrote: evidence has to fit into a record."""
MIN_CORRELATION: Final = 0.5
MIN_SCORE: Final = 0.05
_SKEW_BINS: Final = 1.5
"""By so much a cause may seem to come after its effect: bins are wide, and clocks differ."""

_SURE: Final = 0.9
"""A relation that is no guess."""
_FED_S: Final = 6 * 3600.0
_EXPLAINED: Final = 0.7
"""What is left of the suspicion of something that another suspect would explain."""


class Surroundings(NamedTuple):
    """What was read around one or several alerts of about the same time."""

    grid: Grid
    tracks: Sequence[Track]
    happenings: Sequence[Happening]
    history: Mapping[str, Sequence[Mapping[str, Any]]] = {}
    """By alert id, the last windows of its own series that are of the rule's length, as they travel."""
    notes: Sequence[str] = ()


class Own(NamedTuple):
    """The alert's own series, the field it is about, and its onset."""

    track: Track | None
    alert_bin: int
    onset: int
    shift: Shift | None
    began: bool
    """There was nothing of it before."""


def diagnose(alert: Alert, around: Surroundings, now_unix_s: float) -> Evidence:
    """What may be behind an alert that has fired."""
    window = window_of(alert)
    field = _field_of(alert, window)
    grid = around.grid
    own = _own(alert, field, around)
    onset_unix_s = grid.time_of(own.onset) if own.track else began_unix_s(alert)
    near = _Nearness(alert, around.tracks)
    compared = _compared(own, around.tracks)
    found = [
        *_of_series(own, near, around, compared),
        *_of_siblings(own, alert, around),
        *_of_happenings(onset_unix_s, own, alert, near, around),
    ]
    notes = [*around.notes, *_unsaid(own)]
    return Evidence(
        alert_id=alert.id,
        transition=alert.transition,
        onset_unix_s=onset_unix_s,
        made_unix_s=now_unix_s,
        field=field,
        window=window,
        history=[_point(each, field) for each in around.history.get(alert.id, ())][-HISTORY:],
        comoving=_comoving(own, near, around, compared),
        causes=_ranked(_without_followers(found)),
        notes=notes,
    )


def _unsaid(own: Own) -> Iterator[str]:
    """Why nothing was found, where that is no sign that there is nothing."""
    if own.track is None:
        yield "the alert's own series was not found among the windows that were read"
    elif baseline_of(own.track.values, own.alert_bin) is None:
        yield "the alert's own series is too young to say what is usual for it, and when it left that"


# -- the alert's own series ----------------------------------------------------------------------------


def _field_of(alert: Alert, window: Mapping[str, Any]) -> str | None:
    """The field that the alert is about: the number in its window that is the alert's value."""
    if alert.value is None:
        return None
    matching = [name for name, value in _numbers(window) if value == alert.value and name not in _NOT_MEASURED]
    mentioned = [name for name in matching if name in alert.condition]
    return next(iter(mentioned or matching), None)


_NOT_MEASURED: Final = {"schema", "revision", "partition", "size_s", "of_s", "every_s", "gap_s"}


def _numbers(part: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in part.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not name.endswith("unix_s"):
            yield prefix + name, value


def _own(alert: Alert, field: str | None, around: Surroundings) -> Own:
    at = min(max(around.grid.bin_of(began_unix_s(alert)), 0), around.grid.bins - 1)
    source = tripping(alert).source
    mine = [
        track
        for track in around.tracks
        if track.source == (source or track.source) and alert.labels.items() <= track.series.items()
    ]
    if field is not None:
        mine = [track for track in mine if track.field == track_of(field)] or mine
    if alert.state == "no_data" and mine:
        track = max(mine, key=lambda each: np.isfinite(each.values).sum())
        heard = np.flatnonzero(np.isfinite(track.values))
        return Own(track, at, min(int(heard[-1]) + 1, around.grid.bins - 1) if len(heard) else at, None, False)
    shifts = [(track, shift_of(track.values, at)) for track in mine]
    moved = [(track, shift) for track, shift in shifts if shift is not None]
    if moved:
        track, shift = max(moved, key=lambda each: abs(each[1].z))
        return Own(track, at, min(shift.onset, at), shift, False)
    if not mine:
        return Own(None, at, at, None, False)
    heard = np.flatnonzero(np.isfinite(mine[0].values))
    began = bool(len(heard)) and int(heard[0]) > 0 and int(heard[0]) >= at // 2
    return Own(mine[0], at, int(heard[0]) if began else at, None, began)


def _point(window: Mapping[str, Any], field: str | None) -> Point:
    numbers = dict(_numbers(window))
    return Point(
        start_unix_s=window["start_unix_s"],
        count=window["count"],
        value=numbers.get(field or ""),
        error_rate=window.get("error_rate"),
        p99_s=numbers.get("duration_s.p99"),
    )


# -- what belongs together -----------------------------------------------------------------------------


class _Nearness:
    """How close a series or an event is to the alert, learnt from labels that occur together in series."""

    def __init__(self, alert: Alert, tracks: Iterable[Track]) -> None:
        self.labels = alert.labels
        self._hosts = {alert.labels["host"]} if "host" in alert.labels else set()
        self._services = {alert.labels["service"]} if "service" in alert.labels else set()
        self._all_hosts = set()
        for track in tracks:
            host, service = track.series.get("host"), track.series.get("service")
            if host is None:
                continue
            self._all_hosts.add(host)
            if service is None:
                continue
            if "host" not in alert.labels and service in self._services and self._is_of_model(track.series):
                self._hosts.add(host)
            if "service" not in alert.labels and host == alert.labels.get("host"):
                self._services.add(service)
        self.knows_hosts = bool(self._hosts)

    def _is_of_model(self, series: Mapping[str, str]) -> bool:
        model = self.labels.get("model")
        return model is None or series.get("model") in (None, model)

    def of_host(self, host: str | None) -> tuple[float, str]:
        if host is not None and host in self._hosts:
            runs = "" if host == self.labels.get("host") else ", where it runs"
            return 0.95, f"on {host}{runs}"
        if not self.knows_hosts:
            return (0.9 if len(self._all_hosts) == 1 else 0.6), f"on {host}"
        return 0.15, f"on {host}, which is not known to have to do with it"

    def of_event(self, about: Mapping[str, str], words: frozenset[str]) -> tuple[float, str]:
        """Of a change, a run or drift."""
        service, model = about.get("service"), about.get("model")
        if service is not None and service not in self._services:
            return 0.12, "of another service"
        if model is not None and "model" in self.labels:
            same = model == self.labels["model"]
            return (1.0, "of this model") if same else (0.25, "of another model")
        if service is not None:
            return 0.95, "of this service"
        if model is not None:
            return 0.5, "of a model"
        mine = {word for value in self.labels.values() for word in words_of(value)}
        if shared := sorted(words & mine):
            return 1.0, f"its name says {shared[0]}"
        return 0.2, "not known to have to do with it"

    def is_own(self, series: Mapping[str, str]) -> bool:
        """Of the same service and model."""
        joined = [name for name in ("service", "model") if name in self.labels]
        return bool(joined) and all(series.get(name) == self.labels[name] for name in joined)

    def is_related(self, track: Track) -> bool:
        if track.source == "resource":
            return track.series.get("host") in self._hosts or len(self._all_hosts) <= 1
        return self.is_own(track.series) or track.series.get("service") in self._services


# -- candidates ----------------------------------------------------------------------------------------


class _Found(NamedTuple):
    thing: tuple[str, ...]
    cause: Cause


def _compared(own: Own, tracks: Sequence[Track]) -> tuple[Floats, Floats]:
    if own.track is None or not tracks:
        return np.zeros(len(tracks)), np.zeros(len(tracks))
    return correlations(own.track.values, np.stack([track.values for track in tracks]), own.onset)


def _of_series(own: Own, near: _Nearness, around: Surroundings, compared: tuple[Floats, Floats]) -> Iterator[_Found]:
    grid = around.grid
    for track, correlation, _ in zip(around.tracks, *compared, strict=True):
        if track is own.track:
            continue
        judged = _judged(track, own, near)
        if judged is None:
            continue
        signal, relation, where = judged
        shift = shift_of(track.values, own.alert_bin, spikes=signal.spikes)
        if shift is None or not _is_suspect(signal, shift):
            continue
        since = _hurting_since(track.values, signal, shift)
        lag_s = (own.onset - since) * grid.step_s
        timing = _timing(lag_s, grid.step_s)
        together = max(0.0, correlation * np.sign(shift.z) * (np.sign(own.shift.z) if own.shift else 1.0))
        strength = (1 - math.exp(-abs(shift.z) / 6)) * (0.5 + 0.5 * together)
        score = signal.weight * relation * timing * strength
        says = signal.says or _NAMED.sub("", track.field)
        turned = "rose" if shift.z > 0 else "fell"
        what = f"{says} {where} {turned} from {_told(shift.before)} to {_told(shift.after)}"
        alike = f", correlation {correlation:.2f}" if own.track else ""
        why = f"{_when(lag_s, grid.step_s)}; {abs(shift.z):.0f} × its noise{alike}"
        thing = _thing(track, signal)
        yield _Found(thing, _cause(what, why, signal.kind, float(score), grid.time_of(since), lag_s, track))


_NAMED = re.compile(r"^(gauges|counters|distributions)\.")


def _judged(track: Track, own: Own, near: _Nearness) -> tuple[Signal, float, str] | None:
    """What kind of signal a series is to this alert, how close, and where."""
    if track.source == "resource":
        name = f"{track.series.get('entity', '')} {track.series.get('id', '')} {track.field}"
        relation, where = near.of_host(track.series.get("host"))
        signal = signal_of(RESOURCE, name) or (ANYTHING if own.track else None)  # of no alert on a run, say
        return None if signal is None else (signal, relation, f"({track.series.get('id', '')}) {where}")
    if near.is_own(track.series):
        signal = signal_of(OWN, track.field)
        if signal is None or not (own.track is None or _agree(track.series, own.track.series)):
            return None
        return signal, 1.0, "of this series"
    if track.source != "inference":
        return None
    signal = signal_of(OTHER, track.field)
    name = "/".join(filter(None, (track.series.get("service"), track.series.get("model"))))
    shared = track.series.get("service") == near.labels.get("service")
    return None if signal is None else (signal, 0.45 if shared else 0.75, f"of {name}")


def _agree(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    return all(other.get(name, value) == value for name, value in one.items())


def _is_suspect(signal: Signal, shift: Shift) -> bool:
    right_way = signal.rises is None or signal.rises == (shift.z > 0)
    return right_way and (signal.least is None or shift.after >= signal.least)


def _hurting_since(values: Floats, signal: Signal, shift: Shift) -> int:
    """What fills up slowly hurts when it is full, not when it began."""
    if signal.least is None:
        return shift.onset
    full = np.flatnonzero(values[shift.onset :] >= signal.least)
    return shift.onset + (int(full[0]) if len(full) else 0)


def _timing(lag_s: float, step_s: float) -> float:
    """1 for what began shortly before the onset; less for what began long before, little for what came after."""
    slack_s = _SKEW_BINS * step_s
    if lag_s < -slack_s:
        return 0.5 * math.exp((lag_s + slack_s) / (3 * step_s))
    return 0.5 + 0.5 * math.exp(-max(0.0, lag_s) / 600)


def _when(lag_s: float, step_s: float) -> str:
    if abs(lag_s) < step_s:
        return "at the onset"
    return f"{roughly(abs(lag_s))} {'before' if lag_s > 0 else 'after'} the onset"


def _told(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 10_000 else f"{value:.3e}"


def _thing(track: Track, signal: Signal) -> tuple[str, ...]:
    where = track.series.get("host") if track.source == "resource" else track.series.get("service")
    return (track.source, where or "", signal.kind if signal is not ANYTHING else track.field)


def _cause(what: str, why: str, kind: str, score: float, at: float, lag_s: float, track: Track) -> Cause:
    return Cause(
        what=what,
        why=why,
        kind=kind,
        score=round(score, 3),
        at_unix_s=at,
        lag_s=lag_s,
        labels=dict(track.series),
        field=track.field,
    )


def _of_siblings(own: Own, alert: Alert, around: Surroundings) -> Iterator[_Found]:
    """One host of several is ill: the same service and model is well on all the others."""
    track = own.track
    if track is None or own.shift is None or "host" not in track.series:
        return
    rest = {name: value for name, value in track.series.items() if name != "host"}
    others = [
        each
        for each in around.tracks
        if each.source == track.source
        and each.field == track.field
        and each.series.get("host") not in (None, track.series["host"])
        and {name: value for name, value in each.series.items() if name != "host"} == rest
    ]
    if not others or any(shift_of(each.values, own.alert_bin) for each in others):
        return
    host = track.series["host"]
    what, why = f"{host} alone is ill", f"the same on {len(others)} other host{'s' * (len(others) != 1)} is as it was"
    at = around.grid.time_of(own.onset)
    yield _Found(("sibling", host), _cause(what, why, "host", 0.35, at, 0.0, track))


def _of_happenings(
    onset_unix_s: float, own: Own, alert: Alert, near: _Nearness, around: Surroundings
) -> Iterator[_Found]:
    feeding = _feeding(near, around.happenings)
    for each in around.happenings:
        if _is_told_of(each, alert):
            continue
        weight, fades_s = EVENTS[each.kind]
        lag_s = onset_unix_s - each.at_unix_s
        if lag_s < -_SKEW_BINS * around.grid.step_s:
            continue
        relation, related = near.of_event(each.about, each.words)
        version = each.about.get("model_version")
        if own.began and version is not None and version == alert.labels.get("model_version"):
            relation, related = 1.0, "and the series began with this version"
        score = weight * relation * math.exp(-max(0.0, lag_s) / fades_s)
        if each.kind == "drift" and (run := _fed_by(each, feeding)):
            score, related = score * _EXPLAINED, f"{related}; perhaps because {run.what}"
        cause = Cause(
            what=each.what[:MAX_WORDS],
            why=f"{_when(lag_s, 1.0)}, {related}"[:MAX_WORDS],
            kind=each.kind,
            score=round(score, 3),
            at_unix_s=each.at_unix_s,
            lag_s=lag_s,
            labels={name: value[:MAX_WORDS] for name, value in each.about.items()},
        )
        yield _Found((each.kind, *map(str, sorted(each.about.items()))), cause)


_RESULTS: Final = {"drift": ("drift",), "run": ("run_failed", "run_late")}
"""Of an alert on a result, the kinds of what it is about, by the name of the record in its evidence."""


def _is_told_of(happening: Happening, alert: Alert) -> bool:
    """Whether it is what the alert is about, and therefore no cause of it."""
    own = any(happening.kind in kinds for name, kinds in _RESULTS.items() if name in alert.evidence)
    return own and happening.about.items() <= alert.labels.items()


def _feeding(near: _Nearness, happenings: Sequence[Happening]) -> list[Happening]:
    """The runs in trouble that feed what the alert is about, in the order of time."""
    runs = (each for each in happenings if each.kind in ("run_failed", "run_late"))
    return [each for each in runs if near.of_event(each.about, each.words)[0] >= _SURE]


def _fed_by(drift: Happening, feeding: Sequence[Happening]) -> Happening | None:
    """The run that may have brought the drift about: data that are stale or not there have drifted, too."""
    first = bisect_left(feeding, drift.at_unix_s - _FED_S, key=lambda run: run.at_unix_s)
    return next((run for run in feeding[first : first + 1] if run.at_unix_s <= drift.at_unix_s), None)


def _without_followers(found: Sequence[_Found]) -> Iterator[_Found]:
    """A disk that is busy with swapping is less suspect than the memory that has run out."""
    full = {each.cause.labels.get("host") for each in found if each.cause.kind in ("memory", "swap")}
    for thing, cause in found:
        if cause.kind == "disk" and cause.labels.get("host") in full:
            why = f"{cause.why}; perhaps because memory is used up"
            yield _Found(thing, replace(cause, score=round(cause.score * _EXPLAINED, 3), why=why))
        else:
            yield _Found(thing, cause)


def _ranked(found: Iterable[_Found]) -> list[Cause]:
    """The best of each thing, the likeliest first; of equals, what is closest to the onset."""
    best: dict[tuple[str, ...], Cause] = {}
    for thing, cause in found:
        if cause.score >= MIN_SCORE and (thing not in best or best[thing].score < cause.score):
            best[thing] = cause
    return sorted(best.values(), key=lambda cause: (-cause.score, abs(cause.lag_s), cause.what))[:MAX_CAUSES]


def _comoving(own: Own, near: _Nearness, around: Surroundings, compared: tuple[Floats, Floats]) -> list[CoMoving]:
    """What is alike, and has left its level as well.

    Of some hundred series that wander, many are alike at one of 37 lags by chance; few leave their level just then.
    """
    found = [
        CoMoving(
            series=dict(track.series),
            field=track.field,
            correlation=round(float(correlation), 3),
            lag_s=float(lag) * around.grid.step_s,
        )
        for track, correlation, lag in zip(around.tracks, *compared, strict=True)
        if track is not own.track
        and abs(correlation) >= MIN_CORRELATION
        and near.is_related(track)
        and shift_of(track.values, own.alert_bin)
    ]
    found.sort(key=lambda each: (-abs(each.correlation), str(each.series), each.field))
    return found[:MAX_COMOVING]
