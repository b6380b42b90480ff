"""Logs of remedies: alerts that ask for actions, people who approve, and what whoever executes says."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import msgspec

from streammon.commands import Acknowledge, Approve
from streammon.remediation import (
    REMEDIATIONS,
    REMEDIES,
    AtMost,
    Execution,
    Known,
    Policies,
    Policy,
    Remediation,
    remediation_id,
)
from streammon.results import Alert
from streammon.tick import TICK
from streammon_processors.contract import JUNK, PARTITION, Logs, Stored
from streammon_processors.remediation import RemedyTask

T0 = 1_700_000_000.0
POLICIES: Policies = {
    "restart": Known(Policy(mode="auto", cool_down="5s", at_most=AtMost(count=3, per="60s")), "v1"),
    "undo": Known(Policy(mode="approve", cool_down="10s", approve_within="30s"), "v2"),
    "scale": Known(Policy(), "v3"),
    "wake": Known(Policy(mode="auto", when="no_data", cool_down=0), "v4"),
}


def alert(id_: str = "a1", after_s: float = 0.0, **changes: Any) -> Alert:
    plain: dict[str, Any] = {
        "rule": "slow",
        "rule_version": "1",
        "state": "firing",
        "severity": "critical",
        "labels": {"service": "shop"},
        "value": 1.0,
        "condition": "p99 > 1 s",
        "summary": "shop is slow",
        "started_unix_s": T0 + after_s,
        "updated_unix_s": T0 + after_s,
        "transition": 1,
        "action": "restart",
    }
    return Alert(id=id_, **(plain | changes))


def ended(id_: str = "a1", after_s: float = 0.0, **changes: Any) -> Alert:
    return alert(id_, after_s, **({"state": "resolved", "transition": 2, "ended_unix_s": T0 + after_s} | changes))


def approval(target_id: str, *, approved: bool = True, **changes: Any) -> Approve:
    plain: dict[str, Any] = {"id": f"c-{target_id}", "time_unix_s": T0, "by": "ann", "note": "go"}
    return Approve(target_id=target_id, approved=approved, **(plain | changes))


def executed(remediation: Remediation, state: Any, after_s: float = 0.0, **said: Any) -> Execution:
    return Execution(remediation=remediation, state=state, time_unix_s=T0 + after_s, **said)


def id_of(action: str, alert_id: str = "a1", transition: int = 1) -> str:
    return remediation_id(alert_id, transition, action)


class Decision:
    """A task, and the log that it is given record by record; with it, what it decides."""

    def __init__(self, policies: Policies = POLICIES) -> None:
        self.task = RemedyTask(policies, 0)
        self.offset = 0

    def at(self, after_s: float, *contents: Alert | Approve | Execution | bytes) -> list[Remediation]:
        """What is decided as these come; with none, as time passes."""
        values = [each if isinstance(each, bytes) else msgspec.json.encode(each) for each in contents or (TICK,)]
        records = [Stored(value, self.offset + i, round((T0 + after_s) * 1000), 0) for i, value in enumerate(values)]
        self.offset += len(records)
        outputs = self.task.process(REMEDIES, records)
        return [msgspec.json.decode(each.value or b"", type=Remediation) for each in outputs]

    def executed(self, after_s: float, remediation: Remediation, state: Any, **said: Any) -> list[Remediation]:
        return self.at(after_s, executed(remediation, state, after_s, **said))


def states(remediations: Iterable[Remediation]) -> list[str]:
    return [each.state + (f": {each.reason}" if each.reason else "") for each in remediations]


RandomValue = Callable[[random.Random, int, float, list[Remediation]], bytes | None]
"""A random record: its number, the seconds since the first, and what has been decided so far."""


# --- random logs ------------------------------------------------------------------------------------------------------


@cache
def remedy_log(seed: int) -> Logs:
    """What the decision reads; nobody is waited for in the end."""
    return decided_log(POLICIES, seed, 120, 0.5, _random_value, over_s=3600)


def decided_log(policies: Policies, seed: int, count: int, per_s: float, value_of: RandomValue, *, over_s: int) -> Logs:
    """Random records, made by running a decision beside them, so that answers fit; time has passed after the last."""
    rng, beside = random.Random(seed), RemedyTask(policies, PARTITION)
    log: list[Stored] = []
    known: list[Remediation] = []
    now = 0.0
    for number in range(count):
        now += rng.expovariate(per_s)
        record = Stored(value_of(rng, number, now, known), len(log), round((T0 + now) * 1000))
        log.append(record)
        told = [each.value or b"" for each in beside.process(REMEDIES, [record]) if each.topic == REMEDIATIONS]
        known += [msgspec.json.decode(each, type=Remediation) for each in told]
    return {REMEDIES: [*log, Stored(TICK, len(log), log[-1].timestamp + 1000 * over_s)]}


def _random_value(rng: random.Random, number: int, now: float, known: Sequence[Remediation]) -> bytes | None:
    kind = rng.random()
    if kind < 0.1:
        return rng.choice([TICK, *JUNK])
    if kind < 0.3 and known:
        return msgspec.json.encode(approval(rng.choice(known).id, approved=rng.random() < 0.8, id=f"c{number}"))
    if kind < 0.5 and known:
        due = rng.choice(known)
        state = rng.choice(["started", "done", "failed", "expired", "unknown"])
        return msgspec.json.encode(Execution(remediation=due, state=state, time_unix_s=T0 + now))  # type: ignore[arg-type]
    id_ = f"alert-{rng.randrange(number + 1)}"
    age_s = rng.choice([0.0, 0.0, 0.0, 2000.0])
    if kind < 0.65:
        return msgspec.json.encode(ended(id_, now))
    action = rng.choice([*POLICIES, "other", None])
    state = rng.choice(["firing", "firing", "no_data"])
    return msgspec.json.encode(alert(id_, now - age_s, action=action, state=state, transition=rng.randrange(1, 4)))


@cache
def gathered_remedy_logs(seed: int) -> Logs:
    rng = random.Random(seed)
    states_ = ["pending", "firing", "acknowledged", "resolved"]
    alerts = [
        alert(f"a{n}", n, state=rng.choice(states_), transition=rng.randrange(3), action=rng.choice(["undo", None]))
        for n in range(30)
    ]
    acknowledged = Acknowledge(id="x", time_unix_s=T0, by="ann", alert_id="a1", transition=1)
    commands = [approval(f"r{n}") if rng.random() < 0.5 else acknowledged for n in range(20)]
    return {"alerts": stored(rng, alerts), "commands": stored(rng, commands)}


def stored(rng: random.Random, contents: Sequence[Any]) -> list[Stored]:
    values: list[bytes | None] = [msgspec.json.encode(each) for each in contents]
    values[rng.randrange(len(values)) : 0] = [TICK, *JUNK]
    return [Stored(value, offset, round((T0 + offset) * 1000)) for offset, value in enumerate(values)]
