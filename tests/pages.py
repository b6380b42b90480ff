"""Logs of alerts, commands and pages: alerts that come, get worse, are acknowledged and end, silences, and trouble."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import msgspec

from streammon.commands import Acknowledge, AnyCommand, Silence, Unsilence, matcher
from streammon.notifications import Delivery, Notification
from streammon.results import Alert, Cause, Evidence
from streammon.tick import TICK
from streammon_processors.contract import JUNK, PARTITION, Logs, Stored
from streammon_processors.notifier import DecideTask, Plan, load_plan

T0 = 1_700_000_000.0
PLAN = """
channels: {chat: {type: x}, page: {type: x}, boss: {type: x}}
route:
  to: [chat]
  group_wait: 2s
  group_interval: 10s
  repeat_interval: 60s
  routes:
    - {matchers: ['service="shop"'], to: [page], continue: true, mute: [odd]}
    - {matchers: ['severity="critical"'], to: [page, chat], escalate: [{after: 20s, to: [boss]}], fallback: boss}
time_intervals: {odd: [{times: ["22:15-22:16", "22:17-22:18"]}]}
inhibit: [{source: ['rule="down"'], target: ['rule=~"slow|hot"'], equal: [service]}]
"""


@cache
def plan() -> Plan:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "notify.yaml"
        file.write_text(PLAN)
        return load_plan(file)


def records(values: Sequence[tuple[float, bytes | None]]) -> list[Stored]:
    return [Stored(value, offset, round((T0 + at) * 1000)) for offset, (at, value) in enumerate(values)]


def encoded(
    values: Iterator[tuple[float, Alert | AnyCommand | Delivery | Evidence]],
) -> Iterator[tuple[float, bytes | None]]:
    return ((at, msgspec.json.encode(value)) for at, value in values)


def alerts(rng: random.Random, count: int) -> Iterator[tuple[float, Alert]]:
    """Transitions of a few series, now and then repeated."""
    live: list[Alert] = []
    now = 0.0
    for number in range(count):
        now += rng.expovariate(1.0)
        if live and rng.random() < 0.6:
            before = live.pop(rng.randrange(len(live)))
            state = rng.choice(["firing", "acknowledged", "resolved", "resolved", "no_data"])
            changed = {"state": state, "transition": before.transition + 1, "updated_unix_s": T0 + now}
            severity = "critical" if rng.random() < 0.2 else before.severity
            alert = msgspec.structs.replace(before, severity=severity, **changed)
        else:
            alert = _begun(rng, f"{number:032x}", now)
        yield now, alert
        if rng.random() < 0.1:
            yield now, alert
        live += [alert] if alert.state != "resolved" else []


def _begun(rng: random.Random, id_: str, now: float) -> Alert:
    pending = rng.random() < 0.2
    ago = rng.choice([0.0, 0.0, 0.0, 2000.0])
    return Alert(
        id=id_,
        rule=rng.choice(["slow", "hot", "down"]),
        rule_version="1",
        state="pending" if pending else "firing",
        severity=rng.choice(["warning", "critical", "info"]),
        labels={"service": rng.choice(["shop", "bank", "post"])},
        value=1.0,
        condition="p99 > 1 s",
        summary="slow",
        started_unix_s=T0 + now - ago,
        updated_unix_s=T0 + now - ago,
        transition=0 if pending else 1,
        evidence={"window": {"count": 7}},
    )


def evidence(rng: random.Random, count: int) -> Iterator[tuple[float, Evidence]]:
    """Of the alerts above, now and then before them, and of others."""
    now = 0.0
    for _ in range(count):
        now += rng.expovariate(0.5)
        for _ in range(rng.choice([1, 1, 2])):
            what, why = rng.choice(["deploy of shop 3", "disk full on h1"]), "20 s before the onset"
            cause = Cause(what=what, why=why, kind="deploy", score=0.9, at_unix_s=T0 + now, lag_s=20.0)
            yield (
                now,
                Evidence(
                    alert_id=f"{rng.randrange(count):032x}",
                    transition=rng.choice([1, 1, 2]),
                    onset_unix_s=T0 + now,
                    made_unix_s=T0 + now,
                    window={"count": 7},
                    causes=[cause] * rng.choice([0, 1, 5]),
                ),
            )


def commands(rng: random.Random, count: int) -> Iterator[tuple[float, AnyCommand]]:
    now = 0.0
    for number in range(count):
        now += rng.expovariate(0.2)
        by = {"time_unix_s": T0 + now, "by": "ann"}
        kind = rng.random()
        if kind < 0.5:
            matchers = [matcher(rng.choice(['service="shop"', 'severity!="critical"', "rule=~slow|hot"]))]
            times = {"starts_unix_s": T0 + now, "ends_unix_s": T0 + now + rng.choice([5.0, 30.0])}
            yield now, Silence(id=f"c{number}", matchers=matchers, **times, **by)  # type: ignore[arg-type]
        elif kind < 0.8:
            yield now, Unsilence(id=f"c{number}", silence_id=f"c{rng.randrange(number + 1)}", **by)  # type: ignore[arg-type]
        else:
            yield now, Acknowledge(id=f"c{number}", alert_id="x", transition=1, **by)  # type: ignore[arg-type]


@cache
def gathered_logs(seed: int) -> Logs:
    rng = random.Random(seed)
    logs = {}
    topics = {
        "alerts": encoded(alerts(rng, 60)),
        "commands": encoded(commands(rng, 15)),
        "evidence": encoded(evidence(rng, 30)),
    }
    for topic, values in topics.items():
        listed = list(values)
        junk = [(listed[-1][0], rng.choice(JUNK)), (listed[-1][0], TICK)]
        logs[topic] = records([*listed, *junk])
    return logs


@cache
def page_log(seed: int) -> list[Stored]:
    """Pages and ticks in one order, and what became of some of the messages that follow from them."""
    rng = random.Random(seed)
    values = [*encoded(alerts(rng, 120)), *encoded(commands(rng, 15)), *encoded(evidence(rng, 60))]
    end = max(at for at, _ in values)
    values += [(tick * 0.5, TICK) for tick in range(round(2 * end) + 300)]
    values += [(rng.uniform(0, end), rng.choice(JUNK)) for _ in range(3)]
    values.sort(key=lambda each: each[0])
    task, log = DecideTask(plan(), PARTITION), list[Stored]()

    def write(at: float, value: bytes | None) -> None:
        log.append(Stored(value, len(log), round((T0 + at) * 1000)))
        for output in task.process("pages", log[-1:]):
            if output.topic == "notifications" and rng.random() < 0.15:
                told = msgspec.json.decode(output.value or b"", type=Notification)
                write(
                    at + 1.0, msgspec.json.encode(_delivery(told, rng.choice(["failing", "refused", "recovered"]), at))
                )

    for at, value in values:
        write(at, value)
    return log


def _delivery(told: Notification, outcome: str, at: float) -> Delivery:
    return Delivery(
        id=told.id,
        channel=told.channel,
        group=told.group,
        outcome=outcome,  # type: ignore[arg-type]
        time_unix_s=T0 + at,
        notification=told,
    )
