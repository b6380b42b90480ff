"""Backtests: they say what was published, what rules differ in, and how good they are, by figures made by hand."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import cast

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace as replaced

from streammon.broker import Broker, Outgoing, TopicPartition
from streammon.broker.embedded import EmbeddedBroker
from streammon.broker.reading import Places, read
from streammon.config import Settings, WindowSettings
from streammon.errors import ConfigError
from streammon.results import Alert, Drift, Run
from streammon.topics import topic_specs
from streammon_processors.builtin import rollups_processor, rules_processor
from streammon_processors.contract import JUNK
from streammon_processors.replay import Range
from streammon_processors.rules import Rule, Rules, load_rules
from streammon_processors.rules.backtest.columns import Panel, panel, records_of
from streammon_processors.rules.backtest.incidents import load_incidents
from streammon_processors.rules.backtest.judging import Fired, Incident, compare, fired, judge
from streammon_processors.rules.backtest.log import Stretch, backtest_log, stretches
from streammon_processors.rules.backtest.numbers_csv import csv_panel
from streammon_processors.rules.backtest.running import alerts_of, look_back_s
from tests.processors.test_replay import World
from tests.processors.test_rule_columns import SIZE_S, START, random_panel

DATA = Path(__file__).parents[1] / "data"
LATENCY = DATA / "nab_ec2_request_latency_system_failure.csv"
PARTITIONS = 2
DAY_S = 86_400.0
START_OF_3M = 1_699_999_920.0
COLUMN = np.array([[100.0], [1.0], [1.0]])
RULES = """
rules:
  - {name: now, source: inference, expr: duration_s.p99 > 0.8, severity: warning, summary: "{value}"}
  - {name: held, source: inference, expr: error_rate > 0.5, for: 30s, severity: critical, summary: "{value}"}
  - {name: past, source: inference, expr: 'avg_over(duration_s.p99, "2m") > 0.6', severity: info, summary: "{value}"}
  - {name: long, source: inference, window: 1m, expr: duration_s.p90 > 0.7, severity: info, summary: "{value}"}
  - {name: longer, source: inference, window: 3m, expr: error_rate > 0.5, severity: info, summary: "{value}"}
  - {name: failed, source: run, expr: state == "failed", clear: state == "succeeded", severity: info, summary: "{job}"}
  - {name: drifted, source: drift, expr: drifted, for: 5m, severity: info, summary: "{target}"}
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "rules.yaml").write_text(RULES)
    windows = {"size_s": SIZE_S, "rollups_s": (60.0,), "idle_tick_s": 1000.0}
    rules = {"files": (tmp_path / "rules.yaml",)}
    return Settings(data_dir=tmp_path, topics={"partitions": PARTITIONS}, windows=windows, rules=rules)


@pytest.fixture
async def world(settings: Settings) -> AsyncIterator[World[EmbeddedBroker]]:
    """A log with an hour of windows and results on two partitions, rollups, and what the rules have said of them."""
    clock = [START]
    broker = await EmbeddedBroker.open(settings, clock=lambda: clock[0])
    await broker.create_topics(topic_specs(partitions=PARTITIONS))
    world = World(broker, settings, clock)
    entries = [
        (record.timestamp, Outgoing("windows", b"key", record.value, (), number))
        for number in range(PARTITIONS)
        for record in records_of(of_partition(number))
    ]
    entries += [entry for number in range(PARTITIONS) for entry in results(number)]
    await world.append(sorted(entries, key=lambda entry: entry[0]))
    for processor in (rollups_processor(settings), rules_processor(settings)):
        await world.run(replace(processor))
    yield world
    await broker.close()


def results(partition: int) -> Iterator[tuple[int, Outgoing]]:
    """Runs that may fail, others that never do and come late, some that fail for long; and tests of drift."""
    rng = random.Random(partition)
    for at, state in ((300, "failed"), (1300, "failed"), (2300, "failed"), (3300, "succeeded")):
        run = Run(job=f"l{partition}", run_id=f"{at}", state=state, updated_unix_s=START + at)
        yield _entry("runs", partition, at, run)
    for at in range(300, 3600, 300):
        run = Run(
            job=f"j{partition}", run_id=f"{at}", state=rng.choice(("failed", "succeeded")), updated_unix_s=START + at
        )
        yield _entry("runs", partition, at, run)
        yield _entry(
            "runs",
            partition,
            at,
            replaced(run, job=f"k{partition}", state="succeeded", updated_unix_s=START + at - 200),
        )
        drifted = rng.random() < 0.7
        drift = Drift(
            model=f"m{partition}", target="age", detector="psi", statistic=1, threshold=0.5, drifted=drifted,
            sample_size=9, start_unix_s=START + at - 300, end_unix_s=START + at,
        )  # fmt: skip
        yield _entry("drift", partition, at, drift)


def _entry(topic: str, partition: int, at: float, result: Run | Drift) -> tuple[int, Outgoing]:
    return round(1000 * (START + at)), Outgoing(topic, b"key", msgspec.json.encode(result), (), partition)


def of_partition(number: int) -> Panel:
    """A series is whole in one partition."""
    given = random_panel(number, rows=360)
    return replace(given, series=tuple({**each, "service": f"shop{number}"} for each in given.series))


async def published(world: World[EmbeddedBroker]) -> list[Alert]:
    batches = [records async for _, records in read(world.broker, ["alerts"])]
    return [msgspec.json.decode(each.value or b"", type=Alert) for records in batches for each in records]


@pytest.mark.parametrize("range_", [Range(-inf, inf), Range(START + 1200, START + 2400), Range(START + 3000, inf)])
async def test_a_backtest_of_the_running_rules_finds_what_they_published(
    world: World[EmbeddedBroker], range_: Range
) -> None:
    rules = load_rules(world.settings.rules.files)
    expected = fired(await published(world), range_)
    found = await backtest_log(world.settings, rules, Range(max(range_.from_unix_s, 0.0), range_.to_unix_s))
    assert found.alerts == expected
    of_windows = {labels for number in range(PARTITIONS) for labels in of_partition(number).keys}
    jobs = {(("job", f"{job}{number}"),) for job in "jkl" for number in range(PARTITIONS)}
    targets = {(("detector", "psi"), ("model", f"m{number}"), ("target", "age")) for number in range(PARTITIONS)}
    assert found.series == of_windows | jobs | targets
    assert not found.is_cut
    assert {"now", "held", "longer", "failed", "drifted"} <= {each.rule for each in expected}


async def test_of_results_all_is_known_that_began_before_the_range(world: World[EmbeddedBroker]) -> None:
    """As of windows nothing is that rules do not look back on: an alert that fires all the while is no news."""
    [failed] = [each for each in load_rules(world.settings.rules.files) if each.name == "failed"]
    rules, range_ = Rules((failed,)), Range(START + 2000, inf)
    parts = await stretches(world.broker, rules, range_)
    assert {each.topic for part in parts for each in part.ends} == {"runs"}
    found = (await backtest_log(world.settings, rules, range_)).alerts
    assert {each.labels["job"][0] for each in found} == {"j"}


@pytest.mark.parametrize(("from_unix_s", "is_cut"), [(START + 100, True), (START + 1000, False)])
async def test_a_backtest_is_cut_where_results_may_be_gone_that_decide_and_not_where_older_ones_are(
    from_unix_s: float, is_cut: bool, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    """Retention has left those from START on."""
    here = TopicPartition("runs", 0)

    async def bounds(broker: object, topics: object, start: float | str) -> tuple[Places, Places]:
        return {here: 5 if start == "earliest" or float(start) <= START else 7}, {here: 9}

    monkeypatch.setattr("streammon_processors.rules.backtest.log.bounds", bounds)
    [failed] = [each for each in load_rules(settings.rules.files) if each.name == "failed"]
    found = await stretches(cast("Broker", None), Rules((failed,)), Range(from_unix_s, inf))
    assert found == [Stretch(0, {here: 5}, {here: 9}, is_cut)]


async def test_processes_that_share_the_work_find_the_same(
    world: World[EmbeddedBroker], monkeypatch: pytest.MonkeyPatch
) -> None:
    rules, range_ = load_rules(world.settings.rules.files), Range(0.0, inf)
    alone = await backtest_log(world.settings, rules, range_)
    monkeypatch.setattr("streammon_processors.rules.backtest.log.WORTH_PROCESSES", 1)
    assert await backtest_log(world.settings, rules, range_) == alone
    assert alone.alerts


def test_processes_that_share_the_work_end_with_one_that_is_killed() -> None:
    program = """
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from streammon_processors.rules.backtest.log import end_with_parent
pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=end_with_parent)
pool.submit(len, "").result()
print("there", flush=True)
time.sleep(60)
"""
    killed = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert killed.stdout is not None
    assert killed.stdout.readline() == b"there\n"
    killed.kill()
    killed.communicate(timeout=20)  # its output ends when the last process has ended that holds it


async def test_a_backtest_reads_no_more_than_rules_look_back_on(world: World[EmbeddedBroker]) -> None:
    rules = load_rules(world.settings.rules.files)
    parts = await stretches(world.broker, rules, Range(START + 3000, inf))
    first = min(begin for part in parts for each, begin in part.begins.items() if each.topic == "windows")
    assert first > 4 * 0.7 * (3000 - look_back_s(rules)) / SIZE_S > 0


def test_longer_windows_are_made_of_columns_too(settings: Settings) -> None:
    rules = load_rules(settings.rules.files)
    found = fired(alerts_of(rules, random_panel(0, rows=360), settings.windows), Range(-inf, inf))
    assert {each.rule for each in found} == {each.name for each in rules if each.topic == "windows"}


# ---------------------------------------------------------------- folding, comparing, judging


async def test_what_is_no_window_stops_no_backtest(world: World[EmbeddedBroker]) -> None:
    rules = load_rules(world.settings.rules.files)
    expected = await backtest_log(world.settings, rules, Range(0, inf))
    await world.broker.append([Outgoing("windows", b"key", value, (), 0) for value in JUNK])
    assert await backtest_log(world.settings, rules, Range(0, inf)) == expected


@pytest.mark.parametrize("whole", [True, False])
def test_a_longer_window_weighs_samples_and_not_their_values(whole: bool, tmp_path: Path, settings: Settings) -> None:
    if whole:
        given = panel("resource", 60.0, [{"n": "a"}], START_OF_3M + 60.0 * np.arange(3.0), {"gauges.used": COLUMN})
    else:
        rows = [f"{START_OF_3M + 60 * number},{value}" for number, [value] in enumerate(COLUMN.tolist())]
        (tmp_path / "a.csv").write_text("\n".join(["timestamp,value", *rows, ""]))
        given = csv_panel(tmp_path / "a.csv", source="resource", field="gauges.used", labels={"n": "a"})
    expr = "gauges.used.mean < 34.1 && gauges.used.mean > 33.9 && gauges.used.count == 3.0"
    rules = Rules((Rule(name="r", source="resource", window="3m", expr=expr, severity="info", summary=""),))
    found = fired(alerts_of(rules, given, settings.windows), Range(-inf, inf))
    assert [each.from_unix_s for each in found] == [START_OF_3M + 180], "of a window that the file ends with"


def alert(
    begin: float, end: float | None = None, rule: str = "r", series: str = "a", severity: str = "warning"
) -> Fired:
    return Fired(
        id=f"{rule}{series}{begin}",
        rule=rule,
        severity=severity,  # type: ignore[arg-type]  # of the tests below
        labels={"s": series},
        since_unix_s=begin,
        from_unix_s=begin,
        to_unix_s=end,
    )


def test_alerts_that_overlap_are_the_same_trouble() -> None:
    old = [alert(0, 10), alert(20, 30), alert(50, 60), alert(70, 80, series="b")]
    new = [alert(0, 10), alert(25, 40), alert(70, 80), alert(70, 80, series="b", severity="critical")]
    found = compare(new, old)
    assert found.same == 1
    assert found.only_new == [alert(70, 80)]
    assert found.only_old == [alert(50, 60)]
    assert [(each.old.from_unix_s, each.new.from_unix_s) for each in found.changed] == [(20, 25), (70, 70)]
    assert found.is_any


def test_equal_alerts_do_not_differ() -> None:
    assert not compare([alert(0), alert(0, rule="q")], [alert(0), alert(0, rule="q")]).is_any


def test_figures_are_those_made_by_hand() -> None:
    incidents = [
        Incident(from_unix_s=100, to_unix_s=200, labels={"s": "a"}),
        Incident(from_unix_s=100, to_unix_s=200, labels={"s": "b"}),
        Incident(from_unix_s=3 * DAY_S, to_unix_s=3 * DAY_S + 50),
        Incident(from_unix_s=9 * DAY_S, to_unix_s=10 * DAY_S),  # not in the range
    ]
    alerts = [
        alert(90, 150),  # too early: a false alarm
        alert(130),
        alert(140, rule="q"),  # right as well
        alert(3 * DAY_S + 10, series="c"),
        alert(4 * DAY_S),
    ]
    found = judge(alerts, incidents, Range(0, 4.5 * DAY_S), series=3)
    assert [each.delay_s for each in found.incidents] == [30, None, 10]
    assert [each.from_unix_s for each in found.false_alarms] == [90, 4 * DAY_S]
    assert (found.alerts, found.missed) == (5, 1)
    assert found.recall == pytest.approx(2 / 3)
    assert found.precision == pytest.approx(3 / 5)
    assert found.median_delay_s == 20
    assert found.false_alarms_a_day == pytest.approx(2 / 4.5)
    assert found.false_alarms_a_week_a_series == pytest.approx(7 * 2 / 4.5 / 3)


def test_without_alerts_or_incidents_there_is_no_share() -> None:
    found = judge([], [], Range(0, DAY_S), series=0)
    assert (found.precision, found.recall, found.median_delay_s) == (None, None, None)


# ---------------------------------------------------------------- files


def test_a_file_of_nab_is_read_as_it_is() -> None:
    found = csv_panel(LATENCY, source="resource", field="gauges.value", labels={"file": LATENCY.name})
    assert found.size_s == 300
    assert np.nansum(found.numbers["count"]) == 4032
    assert found.starts[0] % 300 == 0
    assert found.numbers["gauges.value.last"][0, 0] == 45.868
    known = load_incidents(DATA / "nab_windows.json", [LATENCY.name])
    assert [each.to_unix_s - each.from_unix_s for each in known] == [40_200, 40_200, 22_500]
    assert known[0].from_unix_s == 1_394_767_860  # 2014-03-14 03:31 UTC
    assert known[0].labels == {"file": LATENCY.name}


def test_columns_are_numbers_or_labels_and_rows_of_one_window_one_gauge(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_text("timestamp,value,host\n60,1,a\n90,3,a\n60,5,b\n\n120,,a\n180,7,b\n")
    found = csv_panel(file, source="resource", field="gauges.used", labels={"site": "x"}, size_s=60)
    assert [dict(each) for each in found.series] == [{"host": "a", "site": "x"}, {"host": "b", "site": "x"}]
    assert found.starts.tolist() == [60, 120, 180]
    assert found.there.tolist() == [[True, True], [True, False], [False, True]]
    assert found.numbers["gauges.used.mean"][0].tolist() == [2, 5]
    assert found.numbers["gauges.used.last"][0].tolist() == [3, 5]
    assert np.isnan(found.numbers["gauges.used.last"][1, 0])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("time,value\n", ":1: there is no column `timestamp`"),
        ("timestamp,host\n", ":1: there is no column `value`"),
        ("timestamp,value\n1,2\n2\n", ":3: 1 columns"),
        ("timestamp,value\nyesterday,2\n", ":2: timestamp 'yesterday'"),
        ("timestamp,value\n1,many\n", ":2: value 'many'"),
        ("timestamp,value\n", "has no rows"),
        ("timestamp,value\n1,2\n", "give --window"),
        ("timestamp,value,count\n1,2,-1\n2,3,1\n", "x.csv: a count is -1, and has to be a whole number"),
        ("timestamp,value,value\n1,2,3\n", ":1: two columns are called 'value'"),
        ("timestamp,value,gauges.value\n1,2,3\n", ":1: `value` is gauges.value, and there is a column"),
        (",timestamp,value\n0,1,2\n1,2,3\n", ":1: column 1 has no name"),
        ('timestamp,value\n1,2\n2,"3\n', "is no CSV: unexpected end"),
    ],
)
def test_a_wrong_csv_is_refused_with_its_line(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "x.csv"
    file.write_text(text)
    with pytest.raises(ConfigError, match=says):
        csv_panel(file, source="resource", field="gauges.value", labels={})


def test_a_file_of_excel_is_read(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_bytes(
        'timestamp,value\r\n"2026-03-29T01:59:50+01:00",1\r\n2026-03-29T03:00:00+02:00,2\r\n'.encode("utf-8-sig")
    )
    found = csv_panel(file, source="resource", field="gauges.value", labels={})
    assert found.size_s == 10
    assert found.numbers["gauges.value.mean"].tolist() == [[1], [2]]


def test_years_without_a_row_take_no_room(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_text("timestamp,value\n1,2\n2,3\n3,4\n1600000000,5\n")
    found = csv_panel(file, source="resource", field="gauges.value", labels={})
    assert found.starts.tolist() == [1, 2, 3, 1_600_000_000]


def test_rules_about_windows_that_are_not_there_ask_for_nothing(settings: Settings) -> None:
    rules = Rules((Rule(name="r", source="resource", window="7s", expr="count > 0", severity="info", summary=""),))
    assert list(alerts_of(rules, random_panel(0), settings.windows)) == []


def test_incidents_of_nab_about_none_of_the_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is about other files than --csv: "):
        load_incidents(DATA / "nab_windows.json", ["mine.csv"])
    (tmp_path / "none.json").write_text('{"incidents": []}')
    assert load_incidents(tmp_path / "none.json") == []


def test_incidents_of_our_own_have_labels_and_names(tmp_path: Path) -> None:
    file = tmp_path / "incidents.yaml"
    file.write_text("incidents:\n  - {from: 2026-01-31T12:00:00Z, to: 1769866200, labels: {s: a}, name: deploy}\n")
    assert load_incidents(file) == [
        Incident(from_unix_s=1_769_860_800, to_unix_s=1_769_866_200, labels={"s": "a"}, name="deploy")
    ]


@pytest.mark.parametrize("text", ["{from: soon, to: 5}", "{from: 5, to: 5}", "{from: 1}", "{from: .nan, to: 5}"])
def test_a_wrong_incident_is_refused_with_its_place(tmp_path: Path, text: str) -> None:
    file = tmp_path / "incidents.yaml"
    file.write_text(f"incidents:\n  - {text}\n")
    with pytest.raises(ConfigError, match=r"incidents.yaml:2:5: "):
        load_incidents(file)


def test_windows_that_cannot_be_made_are_named(settings: Settings) -> None:
    rules = load_rules(settings.rules.files)
    given = panel("inference", 45.0, [{"model": "a"}], np.array([0.0]), {"duration_s": np.array([[1.0]])})
    with pytest.raises(ConfigError, match=r"rule 'long': .* of 45 s .*--window"):
        list(alerts_of(rules, given, WindowSettings()))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("2023-11-14T22:13:20Z,0.5", "2 columns, and the header has 3"),
        ("yesterday,a,0.5", "timestamp 'yesterday' is neither an ISO time nor Unix seconds"),
        ("1700000000,a,much", "value 'much' is no number"),
    ],
)
def test_a_line_far_down_a_file_is_named(tmp_path: Path, wrong: str, told: str) -> None:
    file = tmp_path / "numbers.csv"
    lines = [f"{1_700_000_000 + 10 * number},a,{number if number % 7 else ''}" for number in range(3000)]
    lines[100:100] = ["", ""]  # lines 102 and 103 of the file hold nothing
    file.write_text("timestamp,model,value\n" + "\n".join(lines))
    given = csv_panel(file, source="resource", field="gauges.used", labels={})
    used = given.numbers["gauges.used.last"][:, 0]
    assert len(used) == 3000
    assert np.array_equal(np.isnan(used), np.arange(3000) % 7 == 0)
    lines.insert(2500, wrong)
    file.write_text("timestamp,model,value\n" + "\n".join(lines))
    with pytest.raises(ConfigError, match=re.escape(f"{file}:2502: {told}")):
        csv_panel(file, source="resource", field="gauges.used", labels={})
