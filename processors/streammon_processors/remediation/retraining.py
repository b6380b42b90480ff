"""The loop: what becomes of a retraining, from the alert that asks for it to whether it has helped.

    awaiting_approval ─► approved ─► started ─► training ─► trained ─► deployed ─► confirming ─► closed
       a person says yes   hook done   a run is seen   it ended   a new version serves   it has labels

It is part of the decision about remediation (`decide`), because a retraining is a remediation: the same order, the same
approval, the same limits. This follows what comes after the hook, from what others tell of runs, deploys and quality.

Promises
- One retraining of a model is open at a time; what else asks for it meanwhile is one more reason for the same.
- It asks for nothing that could not be learnt: labels and their coverage are counted, by the records of `quality`.
- A ``retrain`` change is published once, when it is approved or automatic; not for a dry run.
- It ends: every state has its time, and what is over is closed with an outcome and a reason.
- What was approved holds to the end: a changed file is for the next one.
- State is bounded: `MOST_LOOPS` open ones, `MOST_MODELS` models with `MOST_VERSIONS` versions each.

What it cannot see: a run that nobody tells of, a deploy without a ``model_version``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Any, Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from streammon.broker import Outgoing
from streammon.events import Change, EventType, Pipeline, record_key
from streammon.remediation import MOST_MODELS, Policies, Policy, Remediation, Requests, Why
from streammon.results import Alert, Loop, LoopState, Outcome, Quality, RetrainReason, Run
from streammon.retraining import Measure, Retrain
from streammon.topics import LOOPS, TOPIC_OF
from streammon.wire import SCHEMA_HEADER
from streammon_processors.remediation.comparing import (
    NOTHING,
    SETTLE_S,
    Moments,
    Side,
    Sums,
    Watch,
    is_worse,
    measured,
    requested,
    verdict,
)

AGENT: Final = "streammon.remedy"
"""Who says so, in the changes that are published here."""
MOST_LOOPS: Final = 40
MOST_CLOSED: Final = 500
"""So many that have ended are kept on `loops`; older ones are forgotten there."""
MOST_REASONS: Final = 4
MOST_ASKING: Final = 20
"""Alerts that ask for one, of which is known whether they have ended."""
MOST_KNOWN: Final = 8
MOST_RUNS: Final = 40
"""Runs of retrainings that have ended, which are no other's."""
MOST_VERSIONS: Final = 3
BUCKETS: Final = 8
"""Into so many parts the time is divided in which labels count."""
MOST_NAME: Final = 300
"""Characters of a version, or of a job and its run; whatever has longer ones is not looked at."""
SKEW_S: Final = 5.0
"""So much earlier than the broker others may say that something began."""
_MOST_CHARACTERS: Final = 120
_MOST_DETAIL: Final = 300
_WAITING: Final = ("approved", "started")
_BEFORE_DEPLOY: Final = (*_WAITING, "training", "trained")
_WATCHED: Final = ("deployed", "confirming")
_BEGAN: Final = frozenset({"started", "running"})
_ENDED: Final = frozenset({"finished", "succeeded"})
_FAILED: Final = frozenset({"failed", "missed", "lost"})
Told = Quality | Requests | Run | Pipeline | Change
"""What others say of models that are trained anew."""


class LoopWhy(StrEnum):
    """Why a loop was closed as it was, beside a `Why`. The values go over the wire: add, never rename."""

    MEASURED = "measured"  # the interval says so
    EQUIVALENT = "equivalent"  # the interval allows no difference that matters
    UNDECIDED = "undecided"  # in all the time, the interval did not leave zero out
    TOO_LITTLE_DATA = "too_little_data"  # there were fewer labels of either version than asked for
    ERRORS = "errors"  # more requests fail
    SLOW = "slow"  # more requests are slow
    ROLLED_BACK = "rolled_back"  # the old version was deployed again
    ANOTHER_VERSION = "another_version"  # a third version was deployed before this one was judged
    HOOK = "hook"  # what should start the training failed
    RUN = "run"  # the training failed
    NO_RUN = "no_run"  # nothing was heard of a run
    NO_END = "no_end"  # the run did not end
    NO_DEPLOY = "no_deploy"  # nobody deployed a new version


_GUARDED: Final = {"error_rate": LoopWhy.ERRORS, "slow_rate": LoopWhy.SLOW}


class _Tally(Struct, array_like=True):
    """What is known of a part of the time."""

    predictions: int = 0
    labelled: int = 0
    measures: dict[str, Moments] = {}


class _Model(Struct, kw_only=True):
    """What is known of a model before it is trained anew."""

    bucket_s: float
    total: dict[int, _Tally] = {}
    """Of all versions, by number of the bucket: how many labels there are."""
    versions: dict[str, dict[int, _Tally]] = {}
    """By version (the empty text: of none) and number of the bucket."""
    deployed: str | None = None
    """The newest version of which somebody said so."""


class _Open(Struct, kw_only=True):
    loop: Loop
    retrain: Retrain
    """As it was approved."""
    known: list[str]
    """Versions that are not new, the newest last."""
    asking: list[str] = []
    """Ids of the alerts that ask for it and have not ended, those that are no longer among its reasons, too."""
    told: int = 0
    """Records of it that were published."""
    watch: Watch | None = None


class Memory(Struct, kw_only=True):
    """What the snapshot holds of it."""

    models: dict[str, _Model] = {}
    loops: dict[str, _Open] = {}
    """Those that are open, the oldest first."""
    closed: dict[str, None] = {}
    """Ids of those on the topic that have ended, the oldest first."""
    runs: dict[str, None] = {}
    """Runs of those that have ended, the oldest first."""


class Retrainings:
    """All that are followed; ``memory`` is the caller's, who keeps it."""

    def __init__(self, policies: Policies, memory: Memory) -> None:
        self._memory = memory
        retrains = (known.policy.retrain for known in policies.values())
        self._models = {each.key: each for each in retrains if each is not None}

    @property
    def is_waiting(self) -> bool:
        """Whether the passing of time alone would close one."""
        return bool(self._memory.loops)

    # --- may it be asked for? -----------------------------------------------------------------------------------------

    def of_another_model(self, alert: Alert, retrain: Retrain) -> bool:
        """An action trains the model that the file names, whatever alert asks for it."""
        names = {"service": retrain.service, "model": retrain.model}
        return any(alert.labels.get(label, name) != name for label, name in names.items())

    def attached(self, alert: Alert, retrain: Retrain, now: float) -> Iterator[Outgoing] | None:
        """One more reason for what is open already; None if nothing is."""
        found = next((each for each in self._memory.loops.values() if each.retrain.key == retrain.key), None)
        return None if found is None else self._attach(found, alert, now)

    def _attach(self, found: _Open, alert: Alert, now: float) -> Iterator[Outgoing]:
        if alert.id in found.asking or len(found.asking) >= MOST_ASKING:
            return
        found.asking = [*found.asking, alert.id]
        first, *others = found.loop.reasons
        newest = [
            *(each for each in others if each.alert_id != alert.id),
            _reason(alert.id, alert.rule, alert.summary, now),
        ]
        if first.alert_id == alert.id:  # it asks again
            first, newest = replace(first, ended_unix_s=None), others
        if len(newest) >= MOST_REASONS:
            newest.remove(next((each for each in newest if each.ended_unix_s is not None), newest[0]))
        yield self._told(found, reasons=[first, *newest], time_unix_s=now)

    def too_little(self, retrain: Retrain, now: float) -> Why | None:
        """Whether there are too few labels to learn from."""
        if len(self._memory.loops) >= MOST_LOOPS:
            return Why.TOO_MANY
        tallies = list(self._since(retrain, now - retrain.labels_within_s))
        labelled = sum(each.labelled for each in tallies)
        predictions = sum(each.predictions for each in tallies)
        if labelled < retrain.min_labels:
            return Why.TOO_FEW_LABELS
        return Why.LOW_COVERAGE if labelled < retrain.min_coverage * predictions else None

    def _since(self, retrain: Retrain, since: float) -> Iterator[_Tally]:
        model = self._memory.models.get(retrain.key)
        if model is not None:
            first = int(since // model.bucket_s)
            yield from (tally for number, tally in model.total.items() if number > first)

    # --- the remediation goes on --------------------------------------------------------------------------------------

    def follow(self, remediation: Remediation, policy: Policy | None) -> Iterator[Outgoing]:
        """What a transition of the remediation means; ``policy``: of its action, as the file is now."""
        found = self._memory.loops.get(remediation.id)
        if found is None and policy and policy.retrain and remediation.state in ("awaiting_approval", "due"):
            found = self._opened(remediation, policy.retrain)
            if remediation.state == "awaiting_approval":
                yield self._told(found, deadline_unix_s=remediation.time_unix_s + policy.approve_within_s)
        if found is not None:
            yield from self._followed(found, remediation)

    def _followed(self, found: _Open, remediation: Remediation) -> Iterator[Outgoing]:
        now, detail = remediation.time_unix_s, remediation.detail and remediation.detail[:_MOST_DETAIL]
        by = remediation.approval.by if remediation.approval else None
        match remediation.state:
            case "due":
                yield self._moved(found, "approved", now, by=by)
                if not remediation.dry_run:
                    yield _change(found.loop)
            case "done" if remediation.dry_run:
                yield from self._closed(found, "dry_run", None, now, detail=detail)
            case "done" | "unknown":
                if found.loop.state in _WAITING:
                    yield self._moved(found, "started", now, detail=detail)
            case "failed":
                if found.loop.state in _WAITING:
                    yield from self._closed(found, "failed", remediation.reason or LoopWhy.HOOK, now, detail=detail)
            case "refused" | "skipped" | "withdrawn" | "expired" as outcome:
                yield from self._closed(found, outcome, remediation.reason, now, by=by, detail=detail)

    def _opened(self, remediation: Remediation, retrain: Retrain) -> _Open:
        versions = self._versions(retrain)
        old = (
            remediation.labels.get("model_version", "")[:MOST_NAME]
            or self._deployed(retrain)
            or (versions[-1] if versions else None)
        )
        now = remediation.time_unix_s
        loop = Loop(
            id=remediation.id,
            service=retrain.service,
            model=retrain.model,
            action=remediation.action,
            state="awaiting_approval",
            time_unix_s=now,
            requested_unix_s=now,
            times={"awaiting_approval": now} if remediation.state == "awaiting_approval" else {},
            reasons=[_reason(remediation.alert_id, remediation.rule, remediation.summary, now)],
            old_version=old or None,
            job=retrain.job,
        )
        known = [*dict.fromkeys(filter(None, (*versions, self._deployed(retrain), old)))]
        found = self._memory.loops[loop.id] = _Open(
            loop=loop, retrain=retrain, known=known, asking=[remediation.alert_id]
        )
        return found

    def _deployed(self, retrain: Retrain) -> str | None:
        model = self._memory.models.get(retrain.key)
        return model.deployed if model else None

    def _versions(self, retrain: Retrain) -> list[str]:
        """Those that have served of late, the newest last."""
        model = self._memory.models.get(retrain.key)
        return sorted(model.versions, key=lambda each: _newest(model.versions[each])) if model else []

    # --- alerts end ---------------------------------------------------------------------------------------------------

    def ended(self, alert_id: str, now: float) -> Iterator[Outgoing]:
        """An alert that was a reason has ended."""
        for found in list(self._memory.loops.values()):
            found.asking = [each for each in found.asking if each != alert_id]
            if any(each.alert_id == alert_id and each.ended_unix_s is None for each in found.loop.reasons):
                reasons = [
                    replace(each, ended_unix_s=now) if each.alert_id == alert_id else each
                    for each in found.loop.reasons
                ]
                yield self._told(found, reasons=reasons, time_unix_s=now)

    def is_wanted(self, remediation_id: str) -> bool | None:
        """Whether there still is a reason for it, or it was approved; None: it is no retraining."""
        found = self._memory.loops.get(remediation_id)
        if found is None:
            return None
        return found.loop.state != "awaiting_approval" or bool(found.asking)

    # --- others tell --------------------------------------------------------------------------------------------------

    def learn(self, told: Told, now: float) -> Iterator[Outgoing]:
        """What that means for those that are open, and for what is known of models; nothing if a name is endless."""
        match told:
            case Run() | Pipeline() if len(told.job) + len(told.run_id) > MOST_NAME:
                return
            case Quality() | Requests() | Change() if len(told.model_version or "") > MOST_NAME:
                return
            case Quality():
                found = measured(told, self._measure(f"{told.service}/{told.model}"))
                labelled = told.labelled if told.by == "label" else 0  # those of a cohort come by label, too
                yield from self._measured(told, found, told.predictions, labelled, now)
            case Requests():
                yield from self._measured(told, requested(told), 0, 0, now)
            case Run():
                yield from self._ran(told.job, told.run_id, told.state, told.started_unix_s or told.time_unix_s, now)
            case Pipeline():
                yield from self._ran(told.job, told.run_id, told.event, told.time_unix_s, now)
            case Change(kind="deploy" | "rollback"):
                yield from self._changed(told, now)

    def _measure(self, key: str) -> Measure | None:
        """By which a model is judged: the one that was approved, while it is being followed."""
        found = next((each.retrain for each in self._memory.loops.values() if each.retrain.key == key), None)
        retrain = found or self._models.get(key)
        return retrain.confirm.measure if retrain else None

    def _ran(self, job: str, run_id: str, event: str, began: float | None, now: float) -> Iterator[Outgoing]:
        found = self._whose_run(job, run_id, began)
        if found is None:
            return
        if found.loop.state in _WAITING and event in _BEGAN | _ENDED | _FAILED:
            yield self._moved(found, "training", now, job=job, run_id=run_id)
        if found.loop.state == "training" and event in _ENDED:
            yield self._moved(found, "trained", now)
        elif found.loop.state == "training" and event in _FAILED:
            yield from self._closed(found, "failed", LoopWhy.RUN, now, detail=f"run {run_id} of {job} is {event}")

    def _whose_run(self, job: str, run_id: str, began: float | None) -> _Open | None:
        """A run is of one: whose id it has in its own, else of the first that waits for one of its job."""
        for each in self._memory.loops.values():
            if (each.loop.job, each.loop.run_id) == (job, run_id):
                return each
        waiting = [each for each in self._memory.loops.values() if each.loop.state in _WAITING]
        named = next((each for each in waiting if each.loop.id in run_id), None)
        if named or began is None or _run_key(job, run_id) in self._memory.runs:
            return named
        asked = (each for each in waiting if each.retrain.job == job)
        return next((each for each in asked if began >= each.loop.times["approved"] - SKEW_S), None)

    def _changed(self, change: Change, now: float) -> Iterator[Outgoing]:
        version = change.model_version
        if version is None:
            return
        for found in list(self._memory.loops.values()):
            if _is_of(change, found.retrain):
                yield from self._deploy(found, change, version, now)
        for key, retrain in self._models.items():
            if _is_of(change, retrain):
                self._model(key).deployed = version

    def _deploy(self, found: _Open, change: Change, version: str, now: float) -> Iterator[Outgoing]:
        if found.loop.state in _WATCHED:
            yield from self._replaced(found, change, version, now)
        elif _is_new(found, change, version):
            at, settle_s = min(change.time_unix_s, now), min(SETTLE_S, found.retrain.confirm.within_s / 4)
            before = self._before(found)
            found.watch = Watch(since_unix_s=at, until_unix_s=at, settled_unix_s=at + settle_s, sums=before)
            yield self._moved(found, "deployed", now, new_version=version)
        else:
            found.known = [*(each for each in found.known if each != version), version][-MOST_KNOWN:]
            since = change.time_unix_s >= found.loop.requested_unix_s - SKEW_S
            if since and version != found.loop.old_version:  # it is the one that will be replaced
                yield self._told(found, old_version=version, time_unix_s=now)

    def _replaced(self, found: _Open, change: Change, version: str, now: float) -> Iterator[Outgoing]:
        """Another version was deployed while the new one is watched."""
        if version != found.loop.new_version and change.time_unix_s > _since(found):
            back = version in found.known
            outcome: Outcome = "failed" if back else "overtaken"
            why = LoopWhy.ROLLED_BACK if back else LoopWhy.ANOTHER_VERSION
            yield from self._closed(found, outcome, why, now, detail=f"{version} was deployed")

    def _before(self, found: _Open) -> dict[str, Sums]:
        """What the old version was like."""
        model = self._memory.models.get(found.retrain.key)
        sums = dict[str, Sums]()
        for tally in (model.versions.get(found.loop.old_version or "", {}) if model else {}).values():
            for measure, values in tally.measures.items():
                kept = sums.setdefault(measure, Sums())
                kept.before += values
        return sums

    # --- measuring ----------------------------------------------------------------------------------------------------

    def _measured(
        self, of: Quality | Requests, found: Mapping[str, Moments], made: int, labelled: int, now: float
    ) -> Iterator[Outgoing]:
        key, version = f"{of.service}/{of.model}", of.model_version or ""
        if key in self._models and (found or made or labelled):
            self._tally(key, version, of.end_unix_s, found, made, labelled)
        for each in list(self._memory.loops.values()):
            if each.retrain.key == key and each.watch is not None:
                served = of.count if isinstance(of, Requests) else made
                yield from self._watch(each, each.watch, of, version, found, served, now)

    def _tally(self, key: str, version: str, at: float, found: Mapping[str, Moments], made: int, labelled: int) -> None:
        model = self._model(key)
        number = int(at // model.bucket_s)
        for buckets in (model.total, model.versions.setdefault(version, {})):
            tally = buckets.setdefault(number, _Tally())
            tally.predictions += made
            tally.labelled += labelled
        for measure, values in found.items():
            tally.measures[measure] = tally.measures.get(measure, NOTHING) + values
        newest = _newest(model.total)
        for each in (model.total, *model.versions.values()):
            for old in [old for old in each if old <= newest - BUCKETS]:
                del each[old]
        model.versions = {name: each for name, each in model.versions.items() if each}
        if len(model.versions) > MOST_VERSIONS:
            del model.versions[min(reversed(model.versions), key=lambda each: _weight(model.versions[each]))]

    def _model(self, key: str) -> _Model:
        models, bucket_s = self._memory.models, self._models[key].labels_within_s / BUCKETS
        if key not in models or models[key].bucket_s != bucket_s:
            models[key] = _Model(bucket_s=bucket_s, deployed=models[key].deployed if key in models else None)
            for gone in [each for each in models if each not in self._models][: max(0, len(models) - MOST_MODELS)]:
                del models[gone]
        return models[key]

    def _watch(
        self,
        found: _Open,
        watch: Watch,
        of: Quality | Requests,
        version: str,
        values: Mapping[str, Moments],
        served: int,
        now: float,
    ) -> Iterator[Outgoing]:
        side = _side(found.loop, version)
        if side is None:
            return
        watch.add(side, of.start_unix_s, of.end_unix_s, values, served)
        if side == "new" and values and isinstance(of, Quality) and found.loop.state == "deployed":
            yield self._moved(found, "confirming", now)
        if values:
            yield from self._judged(found, watch, now)

    def _judged(self, found: _Open, watch: Watch, now: float) -> Iterator[Outgoing]:
        confirm = found.retrain.confirm
        measure = watch.measure(confirm)
        compared = watch.compare(measure, confirm.min_labels) if measure else None
        guards = [each for name in confirm.guards if (each := watch.compare(name, confirm.min_labels))]
        if (compared, guards) == (found.loop.comparison, found.loop.guards):
            return
        said: dict[str, Any] = {"comparison": compared, "guards": guards}
        outcome = verdict(compared, confirm.smallest) if compared else None
        if worse := [each for each in guards if is_worse(each, confirm.smallest)]:
            yield from self._closed(found, "worse", _GUARDED[worse[0].measure], now, **said)
        elif outcome == "equivalent":
            yield from self._closed(found, "no_change", LoopWhy.EQUIVALENT, now, **said)
        elif outcome is not None:
            yield from self._closed(found, outcome, LoopWhy.MEASURED, now, **said)
        else:
            yield self._told(found, time_unix_s=now, **said)

    # --- time passes --------------------------------------------------------------------------------------------------

    def expire(self, now: float) -> Iterator[Outgoing]:
        """Those whose time is over; approval has its own, with the remediation."""
        for found in list(self._memory.loops.values()):
            loop = found.loop
            if loop.state != "awaiting_approval" and loop.deadline_unix_s is not None and now >= loop.deadline_unix_s:
                yield from self._closed(found, *_given_up(loop), now)

    # --- what is told -------------------------------------------------------------------------------------------------

    def _moved(self, found: _Open, state: LoopState, now: float, **changes: Any) -> Outgoing:
        times = found.loop.times | {state: now}
        deadline = now + found.retrain.within_s(state) if state != "confirming" else found.loop.deadline_unix_s
        return self._told(found, state=state, times=times, time_unix_s=now, deadline_unix_s=deadline, **_given(changes))

    def _told(self, found: _Open, **changes: Any) -> Outgoing:
        """The record of a transition, counted from 0."""
        found.loop = replace(found.loop, transition=found.told, **changes)
        found.told += 1
        return Outgoing(LOOPS, found.loop.id.encode(), msgspec.json.encode(found.loop), (SCHEMA_HEADER,), 0)

    def _closed(
        self, found: _Open, outcome: Outcome, why: str | None, now: float, **changes: Any
    ) -> Iterator[Outgoing]:
        del self._memory.loops[found.loop.id]
        self._memory.closed[found.loop.id] = None
        self._remember_run(found.loop)
        times = found.loop.times | {"closed": now}
        yield self._told(
            found,
            state="closed",
            outcome=outcome,
            why=None if why is None else str(why),
            times=times,
            time_unix_s=now,
            deadline_unix_s=None,
            **_given(changes),
        )
        if len(self._memory.closed) > MOST_CLOSED:
            oldest = next(iter(self._memory.closed))
            del self._memory.closed[oldest]
            yield Outgoing(LOOPS, oldest.encode(), None, (), 0)

    def _remember_run(self, loop: Loop) -> None:
        runs = self._memory.runs
        if loop.job is not None and loop.run_id is not None:
            runs[_run_key(loop.job, loop.run_id)] = None
        if len(runs) > MOST_RUNS:
            del runs[next(iter(runs))]


def _given(changes: Mapping[str, Any]) -> dict[str, Any]:
    """What is not known takes nothing away that was."""
    return {name: value for name, value in changes.items() if value is not None}


def _reason(alert_id: str, rule: str, summary: str, now: float) -> RetrainReason:
    return RetrainReason(alert_id=alert_id, rule=rule, summary=summary[:_MOST_CHARACTERS], time_unix_s=now)


def _newest(numbers: Iterable[int]) -> int:
    return max(numbers, default=0)


def _weight(buckets: Mapping[int, _Tally]) -> tuple[int, int]:
    """Of versions that serve at once, those with the fewest predictions and labels are forgotten first."""
    return _newest(buckets), sum(each.predictions + each.labelled for each in buckets.values())


def _is_of(change: Change, retrain: Retrain) -> bool:
    """A change that names no model is of all of its service."""
    return change.service == retrain.service and change.model in (None, retrain.model)


def _since(found: _Open) -> float:
    return found.watch.since_unix_s if found.watch else 0.0


def _side(loop: Loop, version: str) -> Side | None:
    if version == loop.new_version:
        return "new"
    return "old" if version == (loop.old_version or "") else None


def _is_new(found: _Open, change: Change, version: str) -> bool:
    """Whether it may be what came of the training."""
    loop = found.loop
    if loop.state not in _BEFORE_DEPLOY or change.kind != "deploy" or version in found.known:
        return False
    return change.time_unix_s >= loop.times["approved"] - SKEW_S


def _run_key(job: str, run_id: str) -> str:
    return f"{job}/{run_id}"


def _given_up(loop: Loop) -> tuple[Outcome, LoopWhy]:
    match loop.state:
        case "training":
            return "timed_out", LoopWhy.NO_END
        case "trained":
            return "timed_out", LoopWhy.NO_DEPLOY
        case "deployed" | "confirming":
            return "no_change", LoopWhy.UNDECIDED if loop.comparison else LoopWhy.TOO_LITTLE_DATA
        case _:
            return "timed_out", LoopWhy.NO_RUN


def _change(loop: Loop) -> Outgoing:
    """That a model is trained anew, for whoever looks at changes."""
    change = Change(
        time_unix_s=loop.time_unix_s,
        agent=AGENT,
        service=loop.service,
        kind="retrain",
        model=loop.model,
        actor=loop.by or f"rule {loop.reasons[0].rule}",
        ref=loop.id,
    )
    key = record_key(EventType.CHANGE, (loop.service,))
    return Outgoing(TOPIC_OF[EventType.CHANGE], key, msgspec.json.encode(change), (SCHEMA_HEADER,))


def change_time(value: bytes) -> float | None:
    """The time of a change that was published here; None of one that is somebody else's."""
    try:
        change = msgspec.json.decode(value, type=Change)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return change.time_unix_s if change.agent == AGENT and change.kind == "retrain" else None
