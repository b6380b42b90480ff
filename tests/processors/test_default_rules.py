"""The shipped rules, through the whole of the rules task: real incidents, disks that fill, hosts that leave."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np
import pytest

from streammon.config import Settings
from streammon.models import Detector
from streammon.results import Alert, Completeness, Distribution, Drift, Gauge, Run, Window, counters_of
from streammon.sketch import Sketch
from streammon_processors.contract import Stored
from streammon_processors.rules import DEFAULT_RULES, Rules, RulesTask, load_rules, refuse_incomplete
from streammon_processors.rules.conditions.anomaly import KEEP_FIRING_S, Baseline
from streammon_processors.shapes import plan
from tests.series import DAY_S, NAB_STEP_S, Incidents, episodes, incidents

HOUR_S = 3600.0
MINUTES_S = 300.0
BEGIN_UNIX_S = 1_700_000_000.0 // HOUR_S * HOUR_S
RANKER = {"service": "shop", "model": "ranker"}
DISK = {"host": "a", "entity": "filesystem", "id": "/data"}
DEFAULT = load_rules([DEFAULT_RULES])
DOCS = Path(__file__).parents[2] / "docs"


def window(end: float, series: dict[str, str], size_s: float = MINUTES_S, **fields: Any) -> Window:
    numbers: dict[str, Any] = {"throughput_per_s": 10.0, **fields}
    return Window(
        source="inference" if "service" in series else "resource", part="main", revision=0, series=series,
        start_unix_s=end - size_s, end_unix_s=end, size_s=size_s, of_s=2.0, partition=0, count=100,
        completeness=Completeness(), **numbers,
    )  # fmt: skip


def distribution(p99: float) -> Distribution:
    numbers = dict.fromkeys(("sum", "min", "max", "mean", "p50", "p90", "p99"), p99)
    return Distribution(count=100, sketch=Sketch.of(np.array([p99])), **numbers)


def gauge(value: float) -> Gauge:
    return Gauge(min=value, max=value, mean=value, last=value)


def records(windows: Iterable[Window]) -> list[Stored]:
    """As the broker has them, a second after each window's end."""
    stamped = ((each, round(1000 * (each.end_unix_s + 1))) for each in windows)
    return [Stored(msgspec.json.encode(each), offset, stamp) for offset, (each, stamp) in enumerate(stamped)]


def alerts(windows: Iterable[Window], rules: Rules = DEFAULT, cut: int = 1000, restart: bool = False) -> list[Alert]:
    """What the task says of them, given so many at once; it is begun anew from its snapshot each time if asked."""
    task, found = RulesTask(rules, 0), list[Alert]()
    log = records(windows)
    for first in range(0, len(log), cut):
        if restart:
            task, snapshot = RulesTask(rules, 0), task.snapshot()
            task.restore(snapshot)
        found += [
            msgspec.json.decode(each.value or b"", type=Alert)
            for each in task.process("windows", log[first : first + cut])
        ]
    return found


def begun(found: Iterable[Alert], rule: str) -> list[float]:
    """When alerts of a rule began to fire."""
    firing = [each for each in found if each.rule == rule and each.state == "firing"]
    return [each.updated_unix_s for each in firing if each.transition == 1]


# ---------------------------------------------------------------- the file


def test_the_shipped_rules_are_complete_and_their_windows_can_be_made() -> None:
    refuse_incomplete([DEFAULT_RULES])
    settings = Settings().windows
    assert plan(settings.size_s, settings.rollups_s, DEFAULT.asked)
    assert {rule.severity for rule in DEFAULT} == {"warning", "info"}, "an unusual number is no reason to wake somebody"


def yaml_of(page: Path) -> list[str]:
    return re.findall(r"^```yaml\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", ["anomaly.md", "rules.md"])
def test_rules_on_the_pages_can_be_read_and_those_of_the_shipped_names_are_those(page: str, tmp_path: Path) -> None:
    blocks = yaml_of(DOCS / page)
    assert blocks
    for block in blocks:
        (tmp_path / "rules.yaml").write_text(block)
        for rule in load_rules([tmp_path / "rules.yaml"]):
            assert rule.version == DEFAULT.by_name.get(rule.name, rule).version


# ---------------------------------------------------------------- real incidents


def latencies(series: Incidents) -> Iterator[Window]:
    for end, value in zip(series.ends.tolist(), series.values.tolist(), strict=True):
        yield window(end, RANKER, NAB_STEP_S, duration_s=distribution(value))


LATENCY = Rules((DEFAULT.by_name["unusual-latency"],))


@pytest.mark.parametrize("series", incidents(), ids=lambda series: series.name)
def test_every_real_incident_is_found_by_the_shipped_rule_with_at_most_one_false_alarm_a_week(
    series: Incidents,
) -> None:
    alarms = begun(alerts(latencies(series), LATENCY), "unusual-latency")
    judged = series.judge(alarms)
    assert judged.found == len(series.windows)
    assert judged.false_per_week <= 1
    assert max(delay or 0 for delay in judged.delays_s) <= 9 * HOUR_S  # the windows begin hours before what is marked
    assert alarms == alarms_of_the_baseline_alone(series)


def alarms_of_the_baseline_alone(series: Incidents) -> list[float]:
    baselines, row = Baseline(window_s=NAB_STEP_S).open(1), np.arange(1)
    [alarms] = episodes(
        lambda end, values: baselines.update(row, np.array([end]), values).score,
        series.ends,
        series.values[None],
        KEEP_FIRING_S,
    )
    return alarms


def test_real_incidents_are_found_alike_by_a_task_that_is_restarted_again_and_again() -> None:
    windows = list(latencies(incidents()[0]))
    assert alerts(windows, LATENCY, cut=37, restart=True) == alerts(windows, LATENCY)


# ---------------------------------------------------------------- made troubles


def days(count: float) -> list[float]:
    """The ends of windows."""
    return [BEGIN_UNIX_S + at * MINUTES_S for at in range(1, round(count * DAY_S / MINUTES_S) + 1)]


def test_a_disk_that_fills_is_told_of_a_day_before_and_again_hours_before() -> None:
    """By 2.5 % of it an hour, from 30 %: 28 hours."""
    ends = days(28 / 24)
    filling = [
        window(end, DISK, gauges={"utilization": gauge(0.3 + (end - BEGIN_UNIX_S) / HOUR_S * 0.025)}) for end in ends
    ]
    found = [each for each in alerts(filling) if each.transition and each.rule == "disk-full-soon"]
    left_h = [(BEGIN_UNIX_S + 28 * HOUR_S - each.updated_unix_s) / HOUR_S for each in found]
    assert [each.severity for each in found] == ["warning", "critical"]
    assert 18 < left_h[0] < 20  # half full, and for half an hour
    assert 1 < left_h[1] < 2
    assert found[1].condition.startswith("time_until(mean of utilization, 1, 6h) 1 h < 2 h")
    assert found[1].summary == "/data on a is full in 1 h, if it goes on as in the last 6 hours"


def test_a_disk_on_which_nothing_grows_is_nobodys_business() -> None:
    random = np.random.default_rng(3)
    steady = [window(end, DISK, gauges={"utilization": gauge(0.8 + random.normal(0, 0.01))}) for end in days(2)]
    assert alerts(steady) == []


def test_failures_that_are_unusual_for_a_service_are_told_with_what_failed() -> None:
    random, ends = np.random.default_rng(4), days(3)
    rates = random.binomial(100, 0.01, len(ends)) / 100
    rates[-2:] = 0.12
    found = alerts(
        window(end, RANKER, error_rate=rate, error_count=round(100 * rate))
        for end, rate in zip(ends, rates.tolist(), strict=True)
    )
    assert begun(found, "unusual-error-rate") == [ends[-2]]
    [told] = [each for each in found if each.rule == "unusual-error-rate"]
    assert told.value == 0.12
    assert told.condition.startswith("anomaly(error_rate 12 %, usual up to 7.12 %) ")
    assert told.summary == "More requests to shop/ranker fail than usual: 12 %"


def test_requests_that_stop_are_told_of_once_they_came_for_a_day() -> None:
    random = np.random.default_rng(5)
    heard = [window(end, RANKER, throughput_per_s=10 + random.normal()) for end in days(1.1)]
    other = RANKER | {"model": "other"}
    others = [window(heard[-1].end_unix_s + at * MINUTES_S, other) for at in range(1, 6)]
    found = [each for each in alerts([*heard, *others]) if each.transition]
    assert [(each.rule, each.state) for each in found] == [("unusual-throughput", "no_data")]


def minutes(*values: dict[str, float]) -> list[Window]:
    """A GPU, minute by minute."""
    series = {"host": "a", "entity": "gpu", "id": "GPU-1", "index": "3", "name": "H100"}
    return [
        window(
            BEGIN_UNIX_S + 60 * (at + 1),
            series,
            60.0,
            gauges={name: gauge(number) for name, number in each.items() if not name.endswith("errors")},
            counters=counters_of({name: number for name, number in each.items() if name.endswith("errors")}, 60.0),
        )
        for at, each in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("rule", "well", "ill", "after", "says"),
    [
        ("gpu-gone", {"up": 1.0}, {"up": 0.0}, 0, "GPU 3 of a (H100) does not answer any more"),
        (
            "gpu-throttled",
            {"up": 1.0, "throttled_fraction": 0.0},
            {"up": 1.0, "throttled_fraction": 0.7},
            4,
            "GPU 3 of a (H100) is slowed down by heat or its power supply for 70 % of the time",
        ),
        (
            "gpu-memory-fails",
            {"remapped_rows_failed": 0.0, "remapped_rows_pending": 0.0},
            {"remapped_rows_failed": 0.0, "remapped_rows_pending": 1.0},
            0,
            "The memory of GPU 3 of a (H100) has a part to be taken out of use",
        ),
        (
            "gpu-xid",
            {"xid_errors": 3.0, "xid_hardware_errors": 0.0, "xid_31_errors": 3.0},
            {"xid_errors": 1.0, "xid_hardware_errors": 1.0, "xid_79_errors": 1.0},
            0,
            "GPU 3 of a (H100) had XID errors: 1",
        ),
        (
            "gpu-ecc",
            {"ecc_volatile_uncorrected_errors": 0.0, "ecc_volatile_corrected_errors": 9.0},
            {"ecc_volatile_uncorrected_errors": 2.0},
            0,
            "GPU 3 of a (H100) had errors of memory that it could not correct: 2",
        ),
        (
            "gpu-memory-fails",
            {"retired_pages_pending": 0.0},
            {"retired_pages_pending": 1.0},
            0,
            "The memory of GPU 3 of a (H100) has a part to be taken out of use",
        ),
    ],
)
def test_gpus_that_are_gone_hot_or_broken_are_told_of_and_others_are_not(
    rule: str, well: dict[str, float], ill: dict[str, float], after: int, says: str
) -> None:
    found = alerts(minutes(*[well] * 20))
    assert found == []
    found = alerts(minutes(well, *[ill] * 10, *[well] * 20))
    assert begun(found, rule) == [BEGIN_UNIX_S + 60 * (2 + after)]
    assert {each.rule for each in found} == {rule}
    assert next(each for each in found if each.state == "firing").summary == says
    assert found[-1].state == "resolved"


# ---------------------------------------------------------------- models and pipelines


def told(topic: str, *results: Drift | Run) -> list[tuple[str, str, str]]:
    """What the shipped rules say of results that come when they are about."""
    task, found = RulesTask(DEFAULT, 0), list[Alert]()
    for offset, each in enumerate(results):
        end = each.end_unix_s if isinstance(each, Drift) else each.time_unix_s
        record = Stored(msgspec.json.encode(each), offset, round(1000 * (end or 0.0)))
        found += [msgspec.json.decode(output.value or b"", type=Alert) for output in task.process(topic, [record])]
    return [(each.rule, each.state, each.summary) for each in found]


def drift(hour: int, statistic: float, target: str = "age") -> Drift:
    return Drift(
        model="ranker", target=target, detector="psi", statistic=statistic, threshold=0.2, drifted=statistic > 0.2,
        sample_size=5000, start_unix_s=BEGIN_UNIX_S + (hour - 1) * HOUR_S, end_unix_s=BEGIN_UNIX_S + hour * HOUR_S,
    )  # fmt: skip


def test_drift_is_told_of_until_three_hourly_tests_find_none() -> None:
    said = "age of ranker has drifted from its reference, by psi: 0.31"
    tested = [drift(hour, statistic) for hour, statistic in enumerate([0.1, 0.31, 0.1, 0.1, 0.31, 0.1, 0.1, 0.1])]
    assert told("drift", *tested) == [("target-drifted", "firing", said), ("target-drifted", "resolved", said)]


def test_what_an_online_detector_finds_is_told_of_by_a_rule_of_its_own() -> None:
    listed = DEFAULT.by_name["measurement-changed"].expr or ""
    assert all(f'"{name}"' in listed for name in get_args(Detector))
    found = told("drift", msgspec.structs.replace(drift(1, 30.0, "duration_s"), detector="page_hinkley"))
    said = "duration_s of ranker is on another level than before, by page_hinkley: 30"
    assert found == [("measurement-changed", "firing", said)]


def test_a_model_of_which_much_has_drifted_is_told_of_once_and_louder_than_its_targets() -> None:
    found = told("drift", *(drift(1, 0.5, target) for target in ("age", "price", "dataset")))
    assert [rule for rule, _, _ in found] == ["target-drifted", "target-drifted", "drifted"]
    assert found[-1][2] == "ranker has drifted: 0.5 of its inputs and outputs are not as in its reference"
    assert [DEFAULT.by_name[rule].severity for rule, _, _ in found] == ["info", "info", "warning"]


@pytest.mark.parametrize("state", ["failed", "missed", "lost"])
def test_a_run_that_is_no_good_is_told_of_until_one_is(state: str) -> None:
    states = ["running", "succeeded", "scheduled", state, "scheduled", "running", "overdue", "succeeded"]
    runs = [
        Run(job="train", run_id="a", state=each, updated_unix_s=BEGIN_UNIX_S + 60 * at)
        for at, each in enumerate(states)
    ]
    said = f"train: a run is {state}"
    assert told("runs", *runs) == [("run-failed", "firing", said), ("run-failed", "resolved", said)]
