"""Retrainings as tests see them: a decision that is told of alerts, labels and deploys, and what it says of loops."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import msgspec
from msgspec.structs import replace

from streammon.broker import Outgoing
from streammon.events import Change, Event, EventType, Pipeline
from streammon.remediation import REMEDIES, Known, Policies, Policy, Remediation, Requests
from streammon.results import Alert, Loop, Quality, Run
from streammon.retraining import Confirm, Retrain
from streammon.tick import TICK
from streammon.topics import LOOPS, ROLLUP_HEADER, TOPIC_OF
from streammon_processors.contract import JUNK, Logs, Stored, random_log
from streammon_processors.remediation import RemedyTask
from tests.remedies import T0, alert, approval, decided_log, ended, executed, gathered_remedy_logs, stored

LABELS = {"service": "shop", "model": "ranker", "model_version": "7"}
RETRAIN = Retrain(
    service="shop",
    model="ranker",
    job="train-ranker",
    min_labels=100,
    labels_within="1h",
    run_within="1h",
    train_within="2h",
    deploy_within="3h",
    confirm=Confirm(min_labels=100, within="4h"),
)
LOOPING: Policies = {
    "retrain": Known(Policy(mode="auto", cool_down=0, retrain=RETRAIN), "v1"),
    "retrain-asking": Known(Policy(mode="approve", cool_down=0, retrain=RETRAIN), "v2"),
    "retrain-dry": Known(Policy(cool_down=0, retrain=RETRAIN), "v3"),
}
_KINDS = Loop | Remediation | Change
_DECODER: msgspec.json.Decoder[_KINDS] = msgspec.json.Decoder(_KINDS)


def drifted(id_: str = "a1", after_s: float = 0.0, **changes: Any) -> Alert:
    return alert(id_, after_s, **({"rule": "input-drift", "action": "retrain", "labels": LABELS} | changes))


def labelled(
    after_s: float, count: int, accuracy: float | None = 0.9, version: str | None = "7", **more: Any
) -> Quality:
    """Labels that came in the minute from then on."""
    plain: dict[str, Any] = {
        "service": "shop",
        "model": "ranker",
        "model_version": version,
        "by": "label",
        "start_unix_s": T0 + after_s,
        "end_unix_s": T0 + after_s + 60,
        "size_s": 60.0,
        "partition": 0,
        "labelled": count,
        "accuracy": accuracy,
    }
    return Quality(**(plain | more))


def predicted(after_s: float, count: int, version: str | None = "7", **more: Any) -> Quality:
    """Predictions made in the minute from then on, before labels came."""
    return labelled(after_s, 0, None, version, by="prediction", predictions=count, **more)


def requested(after_s: float, count: int, failed: int, version: str | None = "7", slow: int | None = None) -> Requests:
    return Requests(
        service="shop",
        model="ranker",
        model_version=version,
        start_unix_s=T0 + after_s,
        end_unix_s=T0 + after_s + 60,
        count=count,
        error_count=failed,
        slow_count=slow,
    )


def run(after_s: float, event: Any = "started", **changes: Any) -> Pipeline:
    plain: dict[str, Any] = {"time_unix_s": T0 + after_s, "job": "train-ranker", "run_id": "r1", "event": event}
    return Pipeline(**(plain | changes))


def deploy(after_s: float, version: str | None = "8", **changes: Any) -> Change:
    plain: dict[str, Any] = {"time_unix_s": T0 + after_s, "service": "shop", "kind": "deploy", "model": "ranker"}
    return Change(model_version=version, **(plain | changes))


class Looping:
    """A decision, and what it says."""

    def __init__(self, policies: Policies = LOOPING, labels: int = 500) -> None:
        self.task = RemedyTask(policies, 0)
        self.offset = 0
        self.loops: list[Loop] = []
        self.changes: list[Change] = []
        self.remediations: list[Remediation] = []
        if labels:
            self.at(0, predicted(-600, 1000), labelled(-600, labels))

    def at(self, after_s: float, *contents: Any) -> list[Loop]:
        """What is said of loops as these come; with none, as time passes."""
        values = [each if isinstance(each, bytes) else msgspec.json.encode(each) for each in contents or (TICK,)]
        records = [Stored(value, self.offset + i, round((T0 + after_s) * 1000), 0) for i, value in enumerate(values)]
        self.offset += len(records)
        before = len(self.loops)
        self._take(self.task.process(REMEDIES, records))
        return self.loops[before:]

    def _take(self, outputs: Iterable[Outgoing]) -> None:
        for output in outputs:
            if output.topic == "deadletter" or output.value is None:
                continue
            match _DECODER.decode(output.value):
                case Loop() as loop:
                    self.loops.append(loop)
                case Change() as change:
                    self.changes.append(change)
                case Remediation() as remediation:
                    self.remediations.append(remediation)

    @property
    def id(self) -> str:
        return self.loops[-1].id

    @property
    def states(self) -> list[str]:
        return [said(each) for each in self.loops]

    def done(self, after_s: float, state: Any = "done", **changes: Any) -> list[Loop]:
        """What the hook came to."""
        due = next(each for each in reversed(self.remediations) if each.state == "due")
        return self.at(after_s, executed(due, "started", after_s), executed(due, state, after_s, **changes))

    def approved(self, after_s: float = 0.0, **changes: Any) -> None:
        self.at(after_s, drifted(after_s=after_s, **changes))

    def deployed(self) -> None:
        """Up to a new version that serves, after 400 s."""
        self.approved(100)
        self.done(110)
        self.at(200, run(200))
        self.at(300, run(300, "finished"))
        self.at(400, deploy(400))


def said(loop: Loop) -> str:
    return loop.state + (f": {loop.outcome}" if loop.outcome else "") + (f" ({loop.why})" if loop.why else "")


# --- random logs ------------------------------------------------------------------------------------------------------


@cache
def loop_log(seed: int) -> Logs:
    """What a decision reads about retrainings."""
    return decided_log(LOOPING, seed, 200, 0.02, _random_value, over_s=30 * 86_400)


def _random_value(rng: random.Random, number: int, now: float, known: list[Remediation]) -> bytes | None:
    version = rng.choice(["7", "8", "9", None])
    start = now - now % 60
    accuracy = {"7": 0.7, "8": 0.9}.get(version or "", 0.8)
    choices: list[Any] = [
        TICK,
        rng.choice(JUNK),
        *[labelled(start, rng.randrange(1, 200), accuracy, version)] * 4,
        *[
            labelled(start, 50, None, version, mae=0.5, rmse=0.6),
            predicted(start, 300, version, estimated_accuracy=0.8),
        ],
        requested(start, 100, rng.randrange(20), version),
        run(now, rng.choice(["started", "finished", "failed"]), run_id=f"r{number // 40}"),
        Run(job="train-ranker", run_id=known[-1].id if known else "x", state="running", started_unix_s=T0 + now),
        *[deploy(now, rng.choice(["7", "8", "9"]), kind=rng.choice(["deploy", "rollback"]))] * 2,
        *[drifted(f"a{rng.randrange(number + 1)}", now, action=rng.choice([*LOOPING]))] * 3,
        ended(f"a{rng.randrange(number + 1)}", now),
    ]
    if known:
        one = rng.choice(known)
        choices += [approval(one.id, approved=rng.random() < 0.8, id=f"c{number}", time_unix_s=T0 + now)] * 2
        choices += [executed(known[-1], rng.choice(["started", "done", "done", "failed", "unknown"]), now)] * 3
    chosen = rng.choice(choices)
    return chosen if chosen is None or isinstance(chosen, bytes) else msgspec.json.encode(chosen)


@cache
def gathered_loop_logs(seed: int) -> Logs:
    """What is gathered for retrainings: of this model and of others, in every density."""
    rng = random.Random(seed)
    gathered = gathered_remedy_logs(seed)
    qualities = [
        replace(each, model=rng.choice(["ranker", "other"]), slice=rng.choice([{}, {"tenant": "a"}]))
        for n in range(15)
        for each in (labelled(n, 10), predicted(n, 30, revision=rng.randrange(2)))
    ]
    runs = [Run(job="j", run_id=f"r{n}", state="running", started_unix_s=T0 + n) for n in range(10)]
    changes = [deploy(n, kind=rng.choice(["deploy", "config"]), service=rng.choice(["shop", "x"])) for n in range(20)]
    pipelines = [run(n, rng.choice(["started", "finished"]), error={"text": "long"}) for n in range(20)]
    plain: list[tuple[EventType, Sequence[Event]]] = [(EventType.CHANGE, changes), (EventType.PIPELINE, pipelines)]
    events = {TOPIC_OF[of]: random_log(of, [event_fields(each) for each in found], rng) for of, found in plain}
    windows = [window(n, rng.randrange(1, 50), model=rng.choice(["ranker", "other"])) for n in range(10)]
    shaped = [
        each._replace(headers=((ROLLUP_HEADER, b"60s"),) * (n % 3 > 0)) for n, each in enumerate(stored(rng, windows))
    ]
    return {**gathered, "quality": stored(rng, qualities), "runs": stored(rng, runs), "windows": shaped, **events}


def event_fields(event: Event) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(event)
    return {name: value for name, value in fields.items() if name not in ("type", "schema")}


def window(after_s: float, count: int, *, model: str = "ranker", version: str = "7", failed: int = 1) -> dict[str, Any]:
    """As much of one as is looked at."""
    return {
        "schema": 1,
        "type": "window",
        "source": "inference",
        "series": {"service": "shop", "model": model, "model_version": version},
        "start_unix_s": T0 + after_s,
        "end_unix_s": T0 + after_s + 60,
        "count": count,
        "error_count": failed,
    }


def told(outputs: Iterable[Outgoing]) -> list[str]:
    return [said(msgspec.json.decode(each.value or b"", type=Loop)) for each in outputs if each.topic == LOOPS]
