"""Rules by groups: what four partitions say together is what one would say that held all of it."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client import REGISTRY

from streammon.broker import Outgoing, connect
from streammon.config import Settings, WindowSettings
from streammon.errors import ConfigError
from streammon.results import OTHER, Alert
from streammon.tick import TICK
from streammon_processors.builtin import group_processor, regroup_processor, rules_processor
from streammon_processors.contract import Stored
from streammon_processors.replay import Range
from streammon_processors.rollups import RollupTask
from streammon_processors.rules import Rule, Rules, RulesTask
from streammon_processors.rules.group import PATIENCE_S, GroupTask
from streammon_processors.rules.groups import Grouping, GroupWindow, read_part
from streammon_processors.rules.regroup import RegroupTask
from streammon_processors.rules.sources import SourceName
from streammon_processors.shapes import tumbling
from streammon_processors.verification import verify
from streammon_processors.windows import WindowTask, encode_window, series_key
from tests.groups import PARTITIONS, by_key, rolled_log, stored
from tests.logs import T0
from tests.processors.test_rules import window
from tests.rollup_oracle import Loop, Total, labels, parts_of, windows_in

SETTINGS = WindowSettings(rollups_s=(4,), max_series=100)
MODELS = tuple(f"model-{number}" for number in range(7))


def rule(name: str, expr: str, by: tuple[str, ...] | None, **fields: Any) -> Rule:
    given = {"source": "inference", "severity": "warning", "summary": "{value}"} | fields
    return Rule(name=name, expr=expr, by=by, **given)


# --- sums -----------------------------------------------------------------------------------------------------------


SHOP = {"service": "shop"}


@pytest.mark.parametrize(
    ("source", "where", "by"),
    [
        *(("inference", SHOP, by) for by in ((), ("service",), ("model",), ("endpoint", "model"))),
        ("resource", {"host": "h1"}, ("entity",)),
    ],
)
@pytest.mark.parametrize("seed", range(4))
def test_the_window_of_a_group_is_the_sum_of_the_windows_of_its_series_in_all_partitions(
    seed: int, source: SourceName, where: dict[str, str], by: tuple[str, ...]
) -> None:
    rules = Rules((rule("a", "count > 1", by, window=4.0, where=where, source=source),))
    logs = {number: rolled_log(10 * seed + number, SETTINGS) for number in range(PARTITIONS)}
    expected: dict[tuple[Any, ...], Total] = {}
    for each in (each for log in logs.values() for each in windows_in(log)):
        mine = each.source == source and where.items() <= each.series.items()
        if mine and each.of_s and each.part == "main":
            key = tuple(sorted((k, v) for k, v in each.series.items() if k in by)), round(each.start_unix_s / 4)
            expected.setdefault(key, Total()).add(each)

    found = parts_of(grouped(rules, logs), 4)
    assert {(series, start) for _, series, start in found} == expected.keys()
    for _, series, start in found:
        found[source, series, start].check(expected[series, start])


def grouped(rules: Rules, logs: Mapping[int, Sequence[Stored]]) -> list[GroupWindow]:
    return [read_part(each.value or b"") for log in grouped_logs(rules, logs).values() for each in log]


def grouped_logs(rules: Rules, logs: Mapping[int, Sequence[Stored]]) -> dict[int, list[Stored]]:
    """By partition, what the two tasks make of partitions of `windows` whose windows come within `PATIENCE_S`."""
    rng = random.Random(len(logs[0]))
    copies = [
        each for number, log in logs.items() for each in RegroupTask(rules.groupings, number).process("windows", log)
    ]
    timed = [(read_part(each.value or b"").end_unix_s + rng.uniform(0, PATIENCE_S - 1), each) for each in copies]
    made = {}
    for number, records in by_key((round(1000 * at), each) for at, each in sorted(timed, key=itemgetter(0))).items():
        task = GroupTask(rules.groupings, number)
        outputs = task.process("regrouped", stored(records, [5000] * 8))
        assert not task.waiting
        made[number] = stored([(round(1000 * T0), each) for each in outputs])
    return made


# --- alerts ---------------------------------------------------------------------------------------------------------


def events(seed: int) -> list[dict[str, Any]]:
    """Two minutes of requests in order, of seven models, with bad times; durations that floats add exactly.

    The rules are about one version: a label that the group does not keep.
    """
    rng, found = random.Random(seed), list[dict[str, Any]]()
    for number in range(1200):
        bad = (number // 200) % 2
        found.append(
            {
                "time_unix_s": T0 + number / 10,
                "service": rng.choice(("shop", "bank")),
                "model": rng.choice(MODELS),
                "model_version": rng.choice(("1", "2")),
                "duration_s": rng.randrange(1, 512 << bad) / 1024,
                "status": "error" if rng.random() < 0.1 + 0.4 * bad else "ok",
            }
        )
    return found


def windows_of(found: Iterable[Mapping[str, Any]], number: int) -> list[Stored]:
    """A partition of `windows`, of these events."""
    windows, log = WindowTask(number, SETTINGS), Loop(RollupTask(number, SETTINGS))
    values = [
        (event["time_unix_s"], msgspec.json.encode({**event, "type": "inference", "schema": 1})) for event in found
    ]
    for offset, (at, value) in enumerate([*values, *((T0 + 130 + second, TICK) for second in range(5))]):
        for output in windows.process("inference", [Stored(value, offset, round(1000 * at) + 50)]):
            log.append(output, round(1000 * at) + 100)
        log.read_back()
    log.settle()
    return log.records


EXPRESSIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("error_rate > 0.3", {}),
    ("error_rate > 0.3 && count > 5", {"for_": "8s", "keep_firing_for": "12s"}),
    ("duration_s.p99 > 0.6", {"clear": "duration_s.p99 < 0.5"}),
    ('quantile(0.9, "20s") > 0.55', {}),
    ('avg_over(duration_s.mean, "12s") > 0.35', {"for_": "4s"}),
    ('burn_rate(duration_s, 0.5, 0.9, "20s") > 2', {}),
)


@pytest.mark.parametrize("seed", range(3))
def test_the_alerts_of_a_group_are_those_of_one_series_with_all_its_requests(seed: int) -> None:
    all_events = events(seed)
    spread = [[each for each in all_events if MODELS.index(each["model"]) % PARTITIONS == n] for n in range(PARTITIONS)]
    together = [
        {name: value for name, value in each.items() if name != "model"} | {"model": "any"} for each in all_events
    ]
    asked = [(expr, {"window": 4.0, "where": {"model_version": "1"}, **fields}) for expr, fields in EXPRESSIONS]
    by = Rules(tuple(rule(f"r{n}", expr, ("service",), **fields) for n, (expr, fields) in enumerate(asked)))
    alone = Rules(tuple(rule(f"r{n}", expr, None, **fields) for n, (expr, fields) in enumerate(asked)))

    logs = {number: windows_of(found, number) for number, found in enumerate(spread)}
    assert all(any(each.of_s for each in windows_in(log)) for log in logs.values())
    found = [told(by, "grouped", log) for log in grouped_logs(by, logs).values()]
    expected = told(alone, "windows", windows_of(together, 0))
    assert sorted(each for some in found for each in some) == sorted(expected)
    assert {name for name, *_ in expected} == set(by.by_name), "every rule fires"


def told(rules: Rules, topic: str, log: Sequence[Stored]) -> list[tuple[Any, ...]]:
    """The transitions, apart from the names of rules and labels that are not kept."""
    alerts = [msgspec.json.decode(each.value or b"", type=Alert) for each in RulesTask(rules, 3).process(topic, log)]
    return [
        (
            alert.rule,
            alert.labels["service"],
            alert.started_unix_s,
            alert.transition,
            alert.state,
            alert.value,
            alert.summary,
            alert.condition,
            alert.updated_unix_s,
        )
        for alert in alerts
    ]


def test_the_alert_of_a_group_has_its_labels_and_goes_to_the_partition_of_its_window() -> None:
    rules = Rules((rule("r", "count > 1", ("service",), window=4.0),))
    [grouping] = rules.groupings
    [output] = RulesTask(rules, 2).process("grouped", stored([(1000, part(grouping, 0))]))[-1:]
    assert (output.topic, output.partition) == ("alerts", 2)
    assert msgspec.json.decode(output.value or b"", type=Alert).labels == {"service": "shop"}


def test_windows_of_another_grouping_are_not_looked_at() -> None:
    rules = Rules((rule("r", "count > 1", ("service",), window=4.0),))
    [other] = Rules((rule("r", "count > 1", ("service",), window=4.0, where={"model": "x"}),)).groupings
    assert RulesTask(rules, 2).process("grouped", stored([(1000, part(other, 0))])) == []


# --- closing --------------------------------------------------------------------------------------------------------

GROUPING = Grouping("inference", tumbling(4), (), ("service",))
WAIT_MS = round(1000 * PATIENCE_S)


def part(grouping: Grouping, number: int, service: str = "shop") -> Outgoing:
    """A part of the group's window with this number."""
    fields = msgspec.structs.asdict(window(0)) | {
        "series": {"service": service},
        "start_unix_s": number * 4.0,
        "end_unix_s": number * 4.0 + 4.0,
        "size_s": 4.0,
        "of_s": 2.0,
        "count": 3,
        "error_count": 1,
    }
    found = GroupWindow(**fields | {"grouping": grouping.name})
    return Outgoing("regrouped", grouping.key(found.series), encode_window(found))


def tick() -> Outgoing:
    return Outgoing("regrouped", None, TICK)


def closed(task: GroupTask, *log: tuple[int, Outgoing]) -> list[tuple[str, float, int]]:
    """Service, start and count of the windows of groups that this gives; the first number is milliseconds."""
    outputs = task.process("regrouped", stored((1_000_000 + at, each) for at, each in log))
    found = [read_part(each.value or b"") for each in outputs]
    return [(each.series["service"], each.start_unix_s, each.count) for each in found]


def late() -> float:
    return REGISTRY.get_sample_value("streammon_group_late_parts_total") or 0.0


def test_a_start_is_closed_when_its_first_part_is_as_old_as_patience_lasts() -> None:
    log = [(0, part(GROUPING, 5)), (9000, part(GROUPING, 5)), (18_000, tick())]
    assert closed(GroupTask([GROUPING], 3), *log, (WAIT_MS - 1, tick())) == []
    assert closed(GroupTask([GROUPING], 3), *log, (WAIT_MS, tick())) == [("shop", 20.0, 6)]


def test_a_part_that_comes_after_its_group_is_closed_is_counted_and_changes_nothing() -> None:
    before = late()
    log = [(0, part(GROUPING, 5)), (9000, tick()), (18_000, tick()), (WAIT_MS, tick())]
    assert closed(GroupTask([GROUPING], 3), *log, (WAIT_MS + 1, part(GROUPING, 5))) == [("shop", 20.0, 3)]
    assert late() == before + 1


def test_an_earlier_start_is_closed_before_a_later_one_that_has_waited_longer() -> None:
    log = [(0, part(GROUPING, 6)), (9000, part(GROUPING, 5)), (18_000, tick()), (WAIT_MS, tick())]
    assert closed(GroupTask([GROUPING], 3), *log) == [("shop", 20.0, 3), ("shop", 24.0, 3)]


def test_a_gap_in_which_nobody_wrote_closes_nothing() -> None:
    """All were down: the other parts are still to come."""
    log = [(0, part(GROUPING, 5)), (3_600_000, part(GROUPING, 5)), (3_609_000, tick()), (3_610_000, tick())]
    assert closed(GroupTask([GROUPING], 3), *log) == [("shop", 20.0, 6)]


def test_groups_beyond_the_bound_are_one() -> None:
    log = [(0, part(GROUPING, 5, name)) for name in ("a", "b", "c", "d", "a")]
    ticks = [(9000, tick()), (18_000, tick()), (WAIT_MS, tick())]
    found = closed(GroupTask([GROUPING], 3, max_groups=2), *log, *ticks)
    assert sorted(found) == sorted([(OTHER, 20.0, 6), ("a", 20.0, 6), ("b", 20.0, 3)])


def test_with_more_sums_than_there_is_room_for_the_oldest_start_is_closed_at_once() -> None:
    log = [(0, part(GROUPING, number, name)) for number in range(4) for name in "ab"]
    found = closed(GroupTask([GROUPING], 3, max_sums=4), *log)
    assert found == [("a", 0.0, 3), ("b", 0.0, 3), ("a", 4.0, 3), ("b", 4.0, 3)]


# --- what is copied -------------------------------------------------------------------------------------------------


def test_only_main_windows_of_the_shape_and_the_series_asked_for_are_copied() -> None:
    rules = Rules((rule("r", "count > 1", ("model",), window=4.0, where={"model": "ranker"}),))
    log = rolled_log(1, SETTINGS)
    found = [read_part(each.value or b"") for each in RegroupTask(rules.groupings, 3).process("windows", log)]
    wanted = [
        each
        for each in windows_in(log)
        if each.part == "main" and each.of_s and each.source == "inference" and each.series.get("model") == "ranker"
    ]
    assert [(each.start_unix_s, each.count) for each in found] == [(each.start_unix_s, each.count) for each in wanted]
    assert {labels(each) for each in found} == {(("model", "ranker"),)}
    assert any(each.part == "late" and each.of_s for each in windows_in(log)), "there are supplements"


def test_parts_of_one_group_have_one_key_and_other_groupings_another() -> None:
    other = Grouping("inference", tumbling(4), (), ("service", "model"))
    assert GROUPING.key({"service": "shop"}) == GROUPING.name.encode() + b" " + series_key({"service": "shop"})
    assert other.name != GROUPING.name


def test_rules_that_look_at_the_same_groups_have_them_added_up_once() -> None:
    same = (
        rule("a", "count > 1", ("model", "service"), window="1m"),
        rule("b", "count > 2", ("service", "model"), window=60.0),
    )
    assert len(Rules(same).groupings) == 1


def test_without_a_rule_by_groups_nothing_is_read_for_them(tmp_path: Path) -> None:
    plain = {
        "name": "r",
        "source": "inference",
        "expr": "count > 1",
        "severity": "info",
        "summary": "x",
        "window": "1m",
    }
    makers = (regroup_processor, group_processor, rules_processor)
    (tmp_path / "rules.yaml").write_bytes(msgspec.json.encode({"rules": [plain]}))
    settings = Settings(rules={"files": [tmp_path / "rules.yaml"]})
    assert [make(settings).inputs for make in makers] == [(), (), ("windows", "commands")]
    (tmp_path / "rules.yaml").write_bytes(msgspec.json.encode({"rules": [plain | {"by": []}]}))
    assert [make(settings).inputs for make in makers] == [
        ("windows",),
        ("regrouped",),
        ("windows", "grouped", "commands"),
    ]
    (tmp_path / "rules.yaml").write_bytes(msgspec.json.encode({"rules": [plain | {"by": [], "window": "2s"}]}))
    with pytest.raises(
        ConfigError, match=r"which are the base windows, windows.size_s = 2; let it look at longer ones"
    ):
        rules_processor(settings)


async def test_copies_cannot_be_verified_by_partition(tmp_path: Path) -> None:
    broker = await connect(Settings(data_dir=tmp_path))
    with pytest.raises(ConfigError, match=r"regroup writes to the partitions of its keys.*it cannot be verified"):
        await verify(broker, regroup_processor(Settings()), Range(0.0, 1.0), max_future_s=60.0)
    await broker.close()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "`by` needs a `window` of one length"),
        ({"window": {"size": "10m", "every": "1m"}}, "`by` needs a `window` of one length"),
        ({"window": {"session_gap": "1m"}}, "`by` needs a `window` of one length"),
        ({"window": "1m", "by": ["service", "service"]}, "`by` names a label twice"),
        ({"window": "1m", "expr": 'labels.model == "x"'}, "asks for labels.model, which `by` does not keep"),
        ({"window": "1m", "clear": 'labels["model"] in ["x"]'}, "asks for labels.model"),
        (
            {"window": "1m", "summary": "{service}/{model}: {value}"},
            "`summary` names {model}, which `by` does not keep",
        ),
        ({"window": "1m", "expr": "gauges.gpu.last > 1"}, "gauges.gpu.last: of several series, none is the last"),
    ],
)
def test_what_groups_do_not_have_is_refused(fields: dict[str, Any], message: str) -> None:
    plain = {"name": "r", "source": "inference", "expr": "count > 1", "severity": "info", "summary": "x"}
    with pytest.raises(msgspec.ValidationError, match=message):
        msgspec.convert(plain | {"by": ["service"]} | fields, Rule)
