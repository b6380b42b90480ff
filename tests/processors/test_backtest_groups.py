"""Backtests of rules with ``by``: what a naive sum says, and what the running system has published."""

from __future__ import annotations

from collections.abc import AsyncIterator
from math import inf
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from streammon.broker import Outgoing
from streammon.broker.embedded import EmbeddedBroker
from streammon.broker.reading import read
from streammon.config import Settings, WindowSettings
from streammon.errors import ConfigError
from streammon.results import Alert
from streammon.tick import TICK
from streammon.topics import topic_specs
from streammon_processors.builtin import group_processor, regroup_processor, rollups_processor, rules_processor
from streammon_processors.contract import JUNK
from streammon_processors.replay import Range
from streammon_processors.rules import Rule, Rules, load_rules
from streammon_processors.rules.backtest.by_groups import group_alerts_of, of_groups
from streammon_processors.rules.backtest.columns import Panel, panel, records_of
from streammon_processors.rules.backtest.judging import fired
from streammon_processors.rules.backtest.log import Found, backtest_log
from streammon_processors.rules.lanes import SortedLabels
from tests.processors.test_replay import World
from tests.processors.test_rule_columns import SIZE_S, random_panel

START = 1_699_999_980.0
"""Where a window of three minutes starts."""
ALWAYS = Range(-inf, inf)
RULES = """
rules:
  - {name: all, source: inference, by: [], window: 1m, expr: error_rate > 0.5, severity: warning, summary: "{value}"}
  - {name: service, source: inference, by: [service], window: 3m, expr: duration_s.p90 > 0.6, severity: info,
     for: 3m, summary: "{service}: {value}"}
  - {name: past, source: inference, by: [service], window: 1m, where: {model: m1},
     expr: 'quantile(0.5, "5m") > 0.55', severity: info, summary: "{value}"}
  - {name: silent, source: inference, by: [model], window: 1m, expr: count < 0, severity: critical,
     no_data: fire, no_data_for: 2m, warm_up: 2m, summary: "{model} is silent"}
  - {name: alone, source: inference, window: 1m, expr: error_rate > 0.6, severity: info, summary: "{value}"}
"""


def rule(expr: str, **fields: Any) -> Rules:
    given = {"name": "r", "source": "resource", "severity": "warning", "summary": "{value}", "window": "1m"} | fields
    return Rules((Rule(expr=expr, **given),))


def gauges(values: Any, size_s: float = 10.0, **labels: str) -> Panel:
    """A column a series."""
    columns = np.array(values, dtype=float)
    series = [{"n": str(number), **labels} for number in range(columns.shape[1])]
    starts = START + size_s * np.arange(len(columns), dtype=float)
    return panel("resource", size_s, series, starts, {"gauges.used": columns})


def told(rules: Rules, *panels: Panel, **more: Any) -> list[tuple[float, float | None, dict[str, str]]]:
    found = fired(group_alerts_of(rules, panels, WindowSettings(), **more), ALWAYS)
    return [(each.from_unix_s - START, each.to_unix_s and each.to_unix_s - START, each.labels) for each in found]


# ---------------------------------------------------------------- of files


@pytest.mark.parametrize("seed", range(4))
def test_a_group_is_told_of_where_the_mean_over_all_files_is_too_high(seed: int) -> None:
    random = np.random.default_rng(seed)
    files = [np.round(random.random((180, 3)) * 64) / 64 for _ in range(2)]
    for each in files:
        each[random.random(each.shape) < 0.3] = np.nan
    means = [np.nanmean(np.hstack([each[at : at + 6] for each in files])) for at in range(0, 180, 6)]
    high = np.array([*(np.array(means) > 0.5), False])
    begins = [60.0 * (at + 1) for at in range(30) if high[at] and not (at and high[at - 1])]
    ends = [60.0 * (at + 2) if at < 29 else None for at in range(30) if high[at] and not high[at + 1]]

    found = told(rule("gauges.used.mean > 0.5", by=()), *(gauges(each, file=str(n)) for n, each in enumerate(files)))
    assert found == [(begin, end, {}) for begin, end in zip(begins, ends, strict=True)]
    assert len(found) > 3


def test_a_group_is_told_of_in_the_last_window_of_a_file_too() -> None:
    last_minute = [[0.0, 0.0]] * 12 + [[1.0, 1.0]] * 6
    assert told(rule("gauges.used.min > 0.5", by=("host",)), gauges(last_minute, host="a")) == [
        (180.0, None, {"host": "a"})
    ]


def test_files_whose_windows_are_as_long_as_those_of_the_rule_are_added_up_as_they_are() -> None:
    both = [[0.9, 0.9], [0.9, 0.0], [0.9, 0.9]]
    assert told(rule("gauges.used.min > 0.5", by=()), gauges(both, size_s=60.0)) == [
        (60.0, 120.0, {}),
        (180.0, None, {}),
    ]


def test_files_with_windows_of_several_lengths_are_one_group() -> None:
    short, long = gauges([[0.0]] * 12, file="short"), gauges([[1.0]] * 2, size_s=60.0, file="long")
    seen: set[SortedLabels] = set()
    assert told(rule("gauges.used.max - gauges.used.min > 0.9", by=()), short, long, seen=seen) == [(60.0, None, {})]
    assert seen == {()}


def test_single_statistics_of_a_distribution_cannot_be_added_up_and_that_is_said() -> None:
    given = panel("inference", 60.0, [{"model": "a"}], np.array([START]), {"duration_s.p99": np.array([[1.0]])})
    with pytest.raises(ConfigError, match="those of groups"):
        list(group_alerts_of(rule("count > 0", source="inference", by=()), [given], WindowSettings()))


def test_the_same_files_give_the_same_bytes() -> None:
    rules = of_groups(Rules(tuple(rule("gauges.used.mean > 0.5", by=("n",)))))
    files = [gauges(np.random.default_rng(n).random((60, 4)).tolist(), file=str(n)) for n in range(3)]
    assert [*group_alerts_of(rules, files, WindowSettings())] == [*group_alerts_of(rules, files, WindowSettings())]


# ---------------------------------------------------------------- of a log


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World[EmbeddedBroker]]:
    """A log of which all processors have said what they have to say: four models in two partitions."""
    (tmp_path / "rules.yaml").write_text(RULES)
    windows = {"size_s": SIZE_S, "rollups_s": (60.0,), "idle_tick_s": 1000.0}
    files = {"files": (tmp_path / "rules.yaml",)}
    settings = Settings(data_dir=tmp_path, topics={"partitions": 2}, windows=windows, rules=files)
    clock = [START]
    broker = await EmbeddedBroker.open(settings, clock=lambda: clock[0])
    await broker.create_topics(topic_specs(partitions=2))
    world = World(broker, settings, clock)
    entries = [
        (record.timestamp, Outgoing("windows", b"key", record.value, (), number))
        for number in range(2)
        for record in records_of(half(random_panel(7, rows=360), number))
    ]
    await world.append(sorted(entries, key=lambda entry: entry[0]))
    yield world
    await broker.close()


def half(given: Panel, number: int) -> Panel:
    """Two of the four models."""
    mine = slice(2 * number, 2 * number + 2)
    numbers = {name: column[:, mine] for name, column in given.numbers.items()}
    return Panel(
        given.source, given.size_s, given.series[mine], given.starts, numbers, given.there[:, mine], given.alike
    )


async def of_log(world: World[EmbeddedBroker]) -> Found:
    return await backtest_log(world.settings, load_rules(world.settings.rules.files), Range(0.0, inf))


async def test_a_backtest_of_rules_about_groups_finds_what_the_running_ones_published(
    world: World[EmbeddedBroker],
) -> None:
    before = await of_log(world)
    junk = [Outgoing("windows", b"key", value, (), number) for number in range(2) for value in JUNK]
    await world.broker.append(junk)
    for make in (rollups_processor, regroup_processor, group_processor, rules_processor):
        await world.run(make(world.settings))
        later = [1000 * second + round(1000 * world.clock[0]) for second in range(5, 60, 5)]
        await world.append([(at, Outgoing("regrouped", None, TICK, (), number)) for at in later for number in range(2)])
    batches = [records async for _, records in read(world.broker, ["alerts"])]
    alerts = [msgspec.json.decode(each.value or b"", type=Alert) for records in batches for each in records]
    expected = [each for each in fired(alerts, ALWAYS) if each.rule != "silent"]
    assert {each.rule for each in expected} == {"all", "service", "past", "alone"}

    found = await of_log(world)
    assert [each for each in found.alerts if each.rule != "silent"] == expected
    assert found == before, "whatever is on `grouped`, and whoever has run"
    series = {labels for each in (random_panel(7),) for labels in each.keys}
    groups = {(), (("service", "shop"),), *((("model", f"m{number}"),) for number in range(4))}
    assert found.series == series | groups


async def test_rules_about_groups_of_base_windows_are_refused_as_they_are_live(world: World[EmbeddedBroker]) -> None:
    base = rule("count > 1", source="inference", by=(), window=SIZE_S)
    with pytest.raises(ConfigError, match="base windows"):
        await backtest_log(world.settings, base, Range(0.0, inf))
