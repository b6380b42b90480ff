"""The contract of every pure task, on ours: the log decides their output, whatever is cut, restored or crashed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import msgspec

from streammon.broker import Outgoing
from streammon.commands import Acknowledge
from streammon.config import Settings, WindowSettings
from streammon.results import Completeness, Drift, Gauge, Run, Window
from streammon.tick import TICK
from streammon.topics import ROLLUP_HEADER
from streammon_processors.builtin import (
    gather_processor,
    group_processor,
    notify_processor,
    regroup_processor,
    remedies_processor,
    remedy_processor,
    rollups_processor,
    rules_processor,
    slos_processor,
    windows_processor,
)
from streammon_processors.contract import PARTITION, Logs, ProcessorContract, Stored, run
from streammon_processors.notifier import DecideTask
from streammon_processors.remediation import GatherRemediesTask, RemedyTask
from streammon_processors.remediation.gather import inputs
from streammon_processors.rollups import RollupTask
from streammon_processors.rules import Rule, Rules, RulesTask
from streammon_processors.rules.description import Worse
from streammon_processors.rules.group import GroupTask
from streammon_processors.rules.regroup import RegroupTask
from streammon_processors.shapes import Asked, hopping, session
from streammon_processors.slos import SloTask
from tests import slos
from tests.groups import copied_log, grouped_log, parts_log
from tests.logs import HOT, SLOW, TYPES, RandomLog, stored
from tests.loops import LOOPING, gathered_loop_logs, loop_log
from tests.pages import gathered_logs, page_log, plan
from tests.remedies import POLICIES, gathered_remedy_logs, remedy_log
from tests.rollup_oracle import windows_log

SETTINGS = Settings(windows=WindowSettings(max_late_s=60.0, max_series=3))
ROLLUPS = Settings(windows=WindowSettings(max_late_s=60.0, max_series=3, rollups_s=(4, 12, 36)))


@cache
def event_logs(seed: int) -> Logs:
    return {topic: stored(RandomLog(seed + i, 25, topic).entries) for i, topic in enumerate(TYPES)}


@cache
def window_logs(seed: int) -> Logs:
    """Real windows with supplements, and records that are none."""
    windows = windows_processor(SETTINGS).task(PARTITION)
    outputs = [each for some in run(windows, event_logs(seed)).values() for each in some if each.topic == "windows"]
    broken = [Outgoing("windows", None, b"{"), Outgoing("windows", None, None)]
    records = [*outputs[:10], *broken, *outputs[10:]]
    return {"windows": [Stored(output.value, offset, _broker_ms(output)) for offset, output in enumerate(records)]}


def _broker_ms(window: Outgoing) -> int:
    """The broker gets a window a little after its end."""
    start = windows_processor(SETTINGS).time_of("windows", window.value)
    return round(((start or 0.0) + 4.0) * 1000)


class TestWindows(ProcessorContract):
    processor = windows_processor(SETTINGS)

    def logs(self, seed: int) -> Logs:
        return event_logs(seed)


def rollups_task(partition: int) -> RollupTask:
    shapes = (hopping(12, 4), session(6))
    return RollupTask(partition, ROLLUPS.windows, [Asked(shape, "inference", "a rule") for shape in shapes])


@cache
def rollup_logs(seed: int) -> Logs:
    records = windows_log(seed, ROLLUPS.windows, rollups_task(PARTITION), batches=25)
    broken = Stored(b"{", len(records), records[-1].timestamp)
    return {"windows": [*records, broken]}


class TestRollups(ProcessorContract):
    processor = replace(rollups_processor(ROLLUPS), task=rollups_task)

    def logs(self, seed: int) -> Logs:
        return rollup_logs(seed)


@cache
def rule_logs(seed: int) -> Logs:
    """Real windows, and commands that are about no alert of theirs: what those change depends on when they come."""
    ack = Acknowledge(id="1", time_unix_s=1.0, by="somebody", alert_id="none of these", transition=1)
    commands = [msgspec.json.encode(ack), b"{", TICK, None]
    return {**window_logs(seed), "commands": [Stored(value, at, 1000) for at, value in enumerate(commands)]}


class TestRules(ProcessorContract):
    processor = replace(rules_processor(SETTINGS), task=lambda number: RulesTask(Rules((SLOW, HOT)), number))

    def logs(self, seed: int) -> Logs:
        return rule_logs(seed)


def rule(name: str, expr: str, **fields: Any) -> Rule:
    source = fields.pop("source", "inference")
    return Rule(name=name, source=source, expr=expr, severity="warning", summary="{value}", **fields)


RECENT = (
    rule(
        "mean", 'avg_over(duration_s.mean, "8s") > 0.2', ladder=(Worse(severity="critical", expr="duration_s.p99 > 1"),)
    ),
    rule("tail", 'quantile(0.9, "10s") > duration_s.p50', keep_firing_for="4s"),
    rule("burnt", 'burn_rate(duration_s, 0.2, 0.9, "6s") > 1 && labels.model != "x"'),
    rule("gone", "error_rate > 0.3", no_data="fire", no_data_for="6s", warm_up="2s", for_="2s"),
    rule("grown", 'delta(gauges.temperature.max, "12s") > 0.1', source="resource", no_data="resolve", no_data_for="8s"),
)
LONG = (
    rule("mean-of-long", 'avg_over(throughput_per_s, "2h") > 0.5', window=36.0, where={"service": "shop"}),
    rule("gone-for-long", "count > 3", window=12.0, no_data="fire", no_data_for="2h"),
)


LEARNING = (
    rule("unusual", "anomaly(throughput_per_s) > 1", window="30m", keep_firing_for="1h"),
    rule("unusually-few", 'anomaly(throughput_per_s * 2, "below", 20) > 0.5', window="30m", no_data="fire"),
    rule("too-many-soon", 'forecast(throughput_per_s, "8h", "16h") > 12', window="30m"),
    rule(
        "full-soon",
        'time_until(gauges.used.last, 1, "16h") < 86400 && anomaly(gauges.used.last) < 1',
        source="resource",
        window="30m",
        ladder=(Worse(severity="critical", expr='time_until(gauges.used.last, 1, "16h") < 7200'),),
    ),
)


@cache
def learned_log(seed: int) -> list[Stored]:
    """Two days of longer windows of some series: with gaps, windows that come again, ticks and junk."""
    rng = random.Random(seed)
    values: list[tuple[float, bytes | None]] = []
    for start in range(0, 2 * 86_400, 1800):
        values += [(start + 1803.0, value) for value in _learned_windows(start, rng)]
        values += [(start + 1900.0 + rng.random(), rng.choice((TICK, b"{", None)))] if rng.random() < 0.1 else []
    return [Stored(value, offset, round(at * 1000)) for offset, (at, value) in enumerate(values)]


def _learned_windows(start: float, rng: random.Random) -> Iterator[bytes]:
    spike = rng.choice((0.1, 5.0)) if rng.random() < 0.1 else 1.0
    throughput, used = spike * rng.lognormvariate(2, 0.1), min(1.0, start / 2e5)
    for model in "ab":
        window = _learned_window(start, "inference", {"model": model}, throughput_per_s=throughput)
        yield from [window] * rng.choice((0, 1, 1, 1, 1, 1, 1, 2))
    yield _learned_window(
        start, "resource", {"host": "a"}, gauges={"used": Gauge(min=used, max=used, mean=used, last=used)}
    )


def _learned_window(start: float, source: str, series: dict[str, str], **fields: Any) -> bytes:
    fields = {"throughput_per_s": 0.0, **fields}
    return msgspec.json.encode(
        Window(
            source=source, part="main", revision=0, series=series, start_unix_s=start, end_unix_s=start + 1800.0,
            size_s=1800.0, of_s=300.0, partition=PARTITION, count=1, completeness=Completeness(), **fields,
        )
    )  # fmt: skip


class TestRulesThatReadTheLogAgain(ProcessorContract):
    processor = replace(rules_processor(SETTINGS), task=lambda number: RulesTask(Rules(RECENT), number))

    def logs(self, seed: int) -> Logs:
        return rule_logs(seed)


class TestRulesThatKeepTheirPast(ProcessorContract):
    processor = replace(rules_processor(SETTINGS), task=lambda number: RulesTask(Rules((*LONG, *RECENT)), number))

    def logs(self, seed: int) -> Logs:
        return {**rule_logs(seed), "windows": rollup_logs(seed)["windows"]}


class TestSlo(ProcessorContract):
    processor = replace(
        slos_processor(SETTINGS),
        task=lambda number: SloTask(
            [slos.level(), slos.slow(under=0.2, where={"service": "shop"})], number, step_s=4.0
        ),
    )

    def logs(self, seed: int) -> Logs:
        records = rollup_logs(seed)["windows"]
        broken = Stored(b"{", len(records), records[-1].timestamp, headers=((ROLLUP_HEADER, b"4s"),))
        return {"windows": [*records, broken]}


class TestRulesThatLearn(ProcessorContract):
    seeds = range(3)
    processor = replace(rules_processor(SETTINGS), task=lambda number: RulesTask(Rules((*LEARNING, *LONG)), number))

    def logs(self, seed: int) -> Logs:
        return {**rule_logs(seed), "windows": learned_log(seed)}


BY = Rules(
    (
        rule("busy", "count > 4", window=4.0, by=("service",), for_="4s"),
        rule("all", 'avg_over(duration_s.mean, "36s") > 0.2', window=12.0, by=()),
        rule("one", "error_rate > 0.3", window=12.0, by=("endpoint",), where={"model": "ranker"}),
        rule("host", 'gauges.temperature.max > 2 && labels.host == "h1"', source="resource", window=4.0, by=("host",)),
        rule("left", "count > 9", window=4.0, by=("endpoint", "model"), no_data="fire", no_data_for="8s", warm_up="2s"),
    )
)


class TestRegroup(ProcessorContract):
    processor = replace(
        regroup_processor(SETTINGS), inputs=("windows",), task=lambda number: RegroupTask(BY.groupings, number)
    )

    def logs(self, seed: int) -> Logs:
        return {"windows": copied_log(seed, ROLLUPS.windows)}


class TestGroup(ProcessorContract):
    processor = replace(
        group_processor(SETTINGS),
        inputs=("regrouped",),
        task=lambda number: GroupTask(BY.groupings, number, max_groups=2, max_sums=12),
    )

    def logs(self, seed: int) -> Logs:
        return {"regrouped": group_logs(seed)}


@cache
def group_logs(seed: int) -> Sequence[Stored]:
    return parts_log(seed, BY, ROLLUPS.windows)


class TestRulesByGroups(ProcessorContract):
    processor = replace(
        rules_processor(SETTINGS),
        inputs=("windows", "grouped", "commands"),
        task=lambda number: RulesTask(Rules((*BY, *RECENT)), number),
    )

    def logs(self, seed: int) -> Logs:
        return {**rule_logs(seed), "grouped": grouped_log(group_logs(seed), BY)}


ON_RESULTS = Rules(
    (
        rule("drifted", "drifted && sample_size > 10", source="drift", for_="3h", where={"service": "shop"}),
        rule("not-tested", "statistic > 0.2", source="drift", no_data="fire", no_data_for="2h", warm_up="1h"),
        rule("failed", 'state in ["failed", "lost"]', source="run", clear='state == "succeeded"'),
        rule(
            "long", "duration_s > 600", source="run", keep_firing_for="1h", no_data="resolve", no_data_for="6h",
            ladder=(Worse(severity="critical", expr='duration_s > 3000 && state != "succeeded"'),),
        ),
    )
)  # fmt: skip


@cache
def result_log(seed: int, topic: str) -> list[Stored]:
    """Two days of results of a few series: late ones, some of one instant, too far ahead, ticks, silences and junk."""
    rng = random.Random(f"{seed} {topic}")
    found, now = list[Stored](), 1_700_000_000.0
    while len(found) < 250:
        now += rng.choice((0.0, 5.0, 5.0, 300.0, 900.0, 4000.0))
        late_s = rng.choice((0.0, 0.0, 0.0, 60.0, 7200.0, -30.0, -300.0))
        made = _drift if topic == "drift" else _run
        value = rng.choice((TICK, TICK, b"{", b'{"type":"window"}', None)) if rng.random() < 0.3 else None
        value = value or made(now - late_s, rng)
        found.append(Stored(value, len(found), round(now * 1000)))
    return found


def _drift(at: float, rng: random.Random) -> bytes:
    lasted, statistic = rng.choice((0.0, 600.0, 3600.0, 86_400.0)), rng.random() / 2
    return msgspec.json.encode(
        Drift(
            service=rng.choice(("shop", "else", None)), model="ranker", target=rng.choice("ab"), detector="psi",
            statistic=statistic, threshold=0.2, drifted=statistic > 0.2, sample_size=rng.choice((5, 500)),
            start_unix_s=at - lasted, end_unix_s=at,
        )
    )  # fmt: skip


def _run(at: float, rng: random.Random) -> bytes:
    state = rng.choice(("running", "succeeded", "succeeded", "failed", "lost"))
    started = rng.choice((None, at - rng.choice((10.0, 1000.0, 5000.0))))
    run = Run(job=rng.choice("ab"), run_id=f"{at}", state=state, started_unix_s=started)
    return msgspec.json.encode(msgspec.structs.replace(run, updated_unix_s=at))


class TestRulesOnResults(ProcessorContract):
    processor = replace(
        rules_processor(SETTINGS),
        inputs=("windows", "drift", "runs", "commands"),
        task=lambda number: RulesTask(Rules((*ON_RESULTS, *RECENT)), number),
    )

    def logs(self, seed: int) -> Logs:
        return {**rule_logs(seed), "drift": result_log(seed, "drift"), "runs": result_log(seed, "runs")}

    def test_the_logs_have_every_kind_of_trouble_and_every_rule_of_results_fires(self) -> None:
        outputs = [output for _, topic, some in self._undisturbed() if topic != "windows" for output in some]
        alerts = [msgspec.json.decode(each.value or b"") for each in outputs if each.topic == "alerts"]
        firing = {each["rule"] for each in alerts if each["state"] in ("firing", "no_data")}
        assert firing == {each.name for each in ON_RESULTS}
        reasons = {dict(each.headers)["reason"] for each in outputs if each.topic == "deadletter"}
        assert reasons == {b"too_late", b"future", b"invalid_json", b"invalid_event"}


class TestGather(ProcessorContract):
    processor = gather_processor(SETTINGS)

    def logs(self, seed: int) -> Logs:
        return gathered_logs(seed)


class TestNotify(ProcessorContract):
    processor = replace(notify_processor(SETTINGS), task=lambda number: DecideTask(plan(), number))

    def logs(self, seed: int) -> Logs:
        return {"pages": page_log(seed)}


class TestRemedies(ProcessorContract):
    processor = remedies_processor(SETTINGS)

    def logs(self, seed: int) -> Logs:
        return gathered_remedy_logs(seed)


class TestRetrainingRemedies(ProcessorContract):
    processor = replace(
        remedies_processor(SETTINGS),
        inputs=inputs(LOOPING),
        task=lambda number: GatherRemediesTask(number, LOOPING, "60s"),
    )

    def logs(self, seed: int) -> Logs:
        return gathered_loop_logs(seed)


class TestRemedy(ProcessorContract):
    processor = replace(
        remedy_processor(SETTINGS),
        task=lambda number: RemedyTask(POLICIES, number),
        outputs=remedy_processor(SETTINGS).outputs[:1],  # these train nothing
    )

    def logs(self, seed: int) -> Logs:
        return remedy_log(seed)


class TestRetraining(ProcessorContract):
    processor = replace(remedy_processor(SETTINGS), task=lambda number: RemedyTask(LOOPING, number))

    def logs(self, seed: int) -> Logs:
        return loop_log(seed)
