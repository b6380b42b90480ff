"""Service level objectives: their rules, budgets and report, against slow exact answers."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from streammon.broker import Outgoing
from streammon.config import WindowSettings
from streammon.errors import ConfigError
from streammon.results import Alert, Slo, Window
from streammon.sketch import bucket_index
from streammon_processors.contract import Stored
from streammon_processors.rollups import RollupTask
from streammon_processors.rules import Rules, RulesTask, ServiceLevel, load_rules, load_slos
from streammon_processors.rules.conditions.past import Past
from streammon_processors.rules.levels import BURNS
from streammon_processors.slos import SloTask
from streammon_processors.slos import task as task_module
from streammon_processors.slos.report import Compliance, Report
from streammon_processors.slos.requests import Requests, requests_of
from streammon_processors.slos.task import SKIPPED, Ring, Skipped
from tests.rollup_oracle import windows_in, windows_log
from tests.slos import HOUR_S, SHOP, START, Minutes, distribution, level, rollups, slow, stored, window

DAY_S = 24 * HOUR_S


def thresholds(each: ServiceLevel) -> list[float]:
    return [round(each.burn_threshold(burn), 9) for burn in BURNS]


# ---------------------------------------------------------------- rules


def test_an_objective_becomes_the_three_rules_of_the_workbook() -> None:
    fast, medium, slow_rule = level(objective=0.999).rules
    assert fast.expr == 'burn_rate(0.999, "1h") > 14.4 && burn_rate(0.999, "5m") > 14.4'
    assert medium.expr == 'burn_rate(0.999, "6h") > 6 && burn_rate(0.999, "30m") > 6'
    assert slow_rule.expr == 'burn_rate(0.999, "3d") > 1 && burn_rate(0.999, "6h") > 1'
    assert [rule.window for rule in (fast, medium, slow_rule)] == ["1m", "5m", "1h"]
    assert [rule.severity for rule in (fast, medium, slow_rule)] == ["critical", "critical", "warning"]
    assert [rule.name for rule in (fast, medium, slow_rule)] == ["shop-fast", "shop-medium", "shop-slow"]


def test_thresholds_follow_the_window_but_never_alert_on_an_objective_that_is_met() -> None:
    assert thresholds(level(objective=0.999, window="30d")) == [14.4, 6.0, 1.0]
    assert thresholds(level(objective=0.999, window="90d")) == [43.2, 18.0, 3.0]
    assert thresholds(level(objective=0.999, window="7d")) == [3.36, 1.4, 1.0], "0.23 would be within the objective"


def test_every_objective_has_alerts_that_can_fire() -> None:
    assert thresholds(level(objective=0.9)) == [9.0, 6.0, 1.0], "nothing burns faster than 10"
    assert thresholds(level(objective=0.5)) == [1.8, 1.8, 1.0]


@pytest.mark.parametrize("parts", [10, 20, 200, 1000, 10_000])
def test_an_objective_that_is_just_met_burns_at_1_and_not_faster(parts: int) -> None:
    for bad in range(1, min(parts // 2, 40)):
        found = level(objective=(parts - bad) / parts)
        [look] = [look for look in found.rules[2].looks if look.span_s > 86_400]
        past = Past([look], HOUR_S)
        values = {look.tracks[0]: np.array([7.0 * bad]), look.tracks[1]: np.array([7.0 * parts])}
        past.put(np.array([0]), 1, values, {})
        assert past.of(look, np.array([0]), 1).tolist() == [1.0]
        assert Requests(7 * bad, 7 * parts).budget_left(found) == 0.0


def test_a_latency_objective_asks_for_the_share_of_slow_requests() -> None:
    rule = level(indicator={"latency": {"field": "ttft_s", "under": 0.25}}).rules[0]
    assert rule.expr is not None
    assert rule.expr.startswith('burn_rate(ttft_s, 0.25, 0.99, "1h") > 14.4 && ')
    assert rule.distributions == {"ttft_s"}


def test_what_a_person_needs_is_in_every_alert_of_it() -> None:
    person: dict[str, Any] = {
        "resolution_steps": ("Roll back.",),
        "contact": "#oncall",
        "escalation": ("lead",),
        "runbook_url": "https://r",
    }
    severity = {"fast": "warning", "slow": "info"}
    rules = level(where={"service": "shop"}, severity=severity, summary="{service} fails", **person).rules
    for rule in rules:
        assert {name: getattr(rule, name) for name in person} == person
        assert (rule.where, rule.summary, rule.missing) == ({"service": "shop"}, "{service} fails", [])
    assert [rule.severity for rule in rules] == ["warning", "critical", "info"]


GOOD = """
slos:
  - name: shop
    objective: 0.999
    indicator: {latency: {under: 0.3}}
"""


def loaded(tmp_path: Path, text: str) -> Rules:
    (path := tmp_path / "slos.yaml").write_text(text)
    return load_rules([path])


def test_a_file_may_hold_objectives_beside_rules_or_alone(tmp_path: Path) -> None:
    assert list(loaded(tmp_path, GOOD).by_name) == ["shop-fast", "shop-medium", "shop-slow"]
    rule = "rules: [{name: r, source: inference, field: count, above: 1, severity: info, summary: s}]"
    assert list(loaded(tmp_path, f"{rule}\n{GOOD}").by_name) == ["r", "shop-fast", "shop-medium", "shop-slow"]
    assert [each.name for each in load_slos([tmp_path / "slos.yaml"])] == ["shop"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("0.999", "99.9", r"slos.yaml:4:16: slo 'shop': objective = '99.9': .* it is a fraction from 0.5 to below 1"),
        ("objective: 0.999", "objektive: 0.999", r"slos.yaml:4:16: slo 'shop': objektive = '0.999': .*unknown field"),
        (
            "objective: 0.999",
            "objective: 0.999\n    window: 1d",
            r"slos.yaml:5:13: slo 'shop': window = '1d': .* 3d to 90d",
        ),
        (
            "objective: 0.999",
            "objective: 0.999\n    window: x",
            r"slos.yaml:5:13: slo 'shop': window = 'x': .*no duration",
        ),
        ("under: 0.3", "under: 0", r"slos.yaml:5:34: slo 'shop': indicator.latency.under = '0': .*> 0"),
        ("under: 0.3", "under: 1, field: x", r"slos.yaml:3:5: slo 'shop': `latency.field` is 'x'; allowed: duration_s"),
        ("{latency: {under: 0.3}}", "uptime", r"slos.yaml:5:16: slo 'shop': indicator = 'uptime': .*availability"),
        (GOOD, "{}", r"slos.yaml:1:1: .*`rules` or `slos` must be given"),
    ],
)
def test_what_is_wrong_with_an_objective_is_told_with_its_place(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        loaded(tmp_path, GOOD.replace(old, new))


def test_an_objective_may_not_take_the_name_of_a_rule(tmp_path: Path) -> None:
    rule = "rules: [{name: shop-fast, source: inference, field: count, above: 1, severity: info, summary: s}]"
    with pytest.raises(ConfigError, match="rule 'shop-fast' is already in"):
        loaded(tmp_path, f"{rule}\n{GOOD}")


# ---------------------------------------------------------------- burn rates, against brute force


def troubled(seed: int, days: int = 4) -> Minutes:
    """Minutes with outages of all kinds: short and hard, long and mild; and some without a window or a request."""
    rng = random.Random(seed)
    minutes: list[tuple[int, int] | None] = []
    while len(minutes) < days * 1440:
        share = rng.choice((0.0, 0.002, 0.008, 0.02, 0.08, 0.3, 1.0))
        for _ in range(rng.choice((3, 10, 60, 300, 900))):
            total = rng.choice((0, 1, 40, 200, 1000))
            bad = sum(rng.random() < share for _ in range(min(total, 50))) * max(1, total // 50)
            minutes.append((min(bad, total), total) if rng.random() > 0.02 else None)
    return minutes[: days * 1440]


SPANS = {"shop-fast": (60, 1, 60, 5), "shop-medium": (360, 5, 360, 30), "shop-slow": (4320, 60, 4320, 360)}


def expected(minutes: Minutes, objective: float) -> set[tuple[str, str, float]]:
    """What fires and resolves, and when, by looking at every minute of both windows each time."""
    bad, total = (np.array([each[i] if each else 0 for each in minutes]) for i in (0, 1))
    found = set()
    for rule, (_, step, long, short) in SPANS.items():
        threshold = dict(zip(SPANS, (14.4, 6.0, 1.0), strict=True))[rule]
        firing = False
        for end in range(step, len(minutes) + 1, step):
            if not any(minutes[end - step : end]):
                continue
            rates = [
                bad[max(0, end - span) : end].sum() / seen / (1 - objective)
                if (seen := total[max(0, end - span) : end].sum())
                else None
                for span in (long, short)
            ]
            if not firing and all(rate is not None and rate > threshold for rate in rates):
                firing = True
                found.add((rule, "firing", START + 60.0 * end))
            elif firing and any(rate is not None and rate <= threshold for rate in rates):
                firing = False
                found.add((rule, "resolved", START + 60.0 * end))
    return found


def alerts_on(windows: Iterable[Window], levels: Iterable[ServiceLevel]) -> list[Alert]:
    task = RulesTask(Rules(tuple(rule for each in levels for rule in each.rules)), 3, base_s=20.0)
    ordered = sorted(windows, key=lambda each: (each.end_unix_s, each.size_s))
    outputs = task.process("windows", stored(ordered))
    return [msgspec.json.decode(each.value or b"", type=Alert) for each in outputs]


@pytest.mark.parametrize("seed", range(4))
def test_alerts_on_burn_rates_are_those_of_brute_force(seed: int) -> None:
    minutes = troubled(seed)
    windows = [each for size_s in (60.0, 300.0, 3600.0) for each in rollups(minutes, size_s)]
    alerts = alerts_on(windows, [level(objective=0.99)])
    found = {(each.rule, each.state, each.updated_unix_s) for each in alerts if each.has_fired}
    assert found == expected(minutes, 0.99)
    assert {rule for rule, _, _ in found} == set(SPANS), "the log has to make all of them fire"


def test_slow_requests_burn_the_budget_of_a_latency_objective() -> None:
    values = [0.1] * 80 + [0.5] * 20
    windows = [window(60.0 * n, 60.0, 0, 100, duration_s=distribution(values)) for n in range(10)]
    fired = [each for each in alerts_on(windows, [slow("shop"), level("fine")]) if each.state == "firing"]
    assert [(each.rule, each.severity) for each in fired] == [("shop-fast", "critical")]
    assert fired[0].summary.startswith("shop/ranker uses up the error budget of shop 20")


# ---------------------------------------------------------------- the budget


def budgets(outputs: Iterable[Outgoing]) -> list[Slo]:
    return [msgspec.json.decode(each.value or b"", type=Slo) for each in outputs if each.topic == "slos"]


def told(levels: Iterable[ServiceLevel], windows: Iterable[Window], **options: Any) -> list[Slo]:
    return budgets(SloTask(levels, 3, **options).process("windows", stored(windows)))


def test_every_window_of_five_minutes_tells_what_is_left_of_the_budget() -> None:
    first, second = told([level()], [window(0, 300, 1, 200), window(300, 300, 5, 200)])
    assert (first.slo, first.series, first.good, first.total) == ("shop", SHOP, 199, 200)
    assert first.budget_left == pytest.approx(0.5)
    assert (second.good, second.total) == (394, 400)
    assert second.budget_left == pytest.approx(-0.5)
    assert second.burn_rates == pytest.approx({"1h": 1.5, "6h": 1.5, "3d": 1.5})
    assert (second.end_unix_s, second.window_s) == (START + 600, 30 * DAY_S)
    assert second.start_unix_s == START + HOUR_S - 30 * DAY_S, "whole hours"


def test_only_windows_of_five_minutes_of_its_series_are_counted() -> None:
    shop = level(where={"service": "shop"})
    other = {"service": "mail", "model": "m"}
    others = [window(0, 60, 1, 10), window(0, 10, 1, 10), window(0, 3600, 1, 10), window(0, 300, 1, 10, series=other)]
    assert told([shop], [*others, window(0, 300, 1, 10, source="resource"), window(0, 300, 1, 10, series={})]) == []
    assert len(told([shop], [*others, window(300, 300, 1, 10)])) == 1


def test_base_windows_of_five_minutes_are_counted_where_they_are_so_long() -> None:
    assert len(told([level()], [window(0, 300, 1, 10, of_s=None)], base_s=300.0)) == 1


def test_supplements_add_to_the_time_they_are_about() -> None:
    late = window(0, 300, 3, 3, part="late", revision=1)
    *_, last = told([level()], [window(0, 300, 0, 97), window(7200, 300, 0, 100), late])
    assert (last.good, last.total, last.end_unix_s) == (197, 200, START + 7500)
    assert last.burn_rates == pytest.approx({"1h": 0.0, "6h": 1.5, "3d": 1.5})


@pytest.mark.parametrize("seed", range(3))
def test_what_is_counted_is_what_brute_force_counts(seed: int) -> None:
    rng = random.Random(seed)
    at, windows = 0.0, list[Window]()
    for _ in range(400):
        at += rng.choice((300.0, 300.0, 900.0, HOUR_S, DAY_S))
        total = rng.randint(0, 1000)
        windows.append(window(at, 300, rng.randint(0, total) // 20, total))
    results = told([level()], windows)
    assert len(results) == len(windows)
    for last, result in enumerate(results):
        seen = windows[: last + 1]
        assert result.end_unix_s == seen[-1].end_unix_s
        within = [each for each in seen if each.start_unix_s >= result.start_unix_s]
        assert result.total == sum(each.count for each in within)
        assert result.total - result.good == sum(each.error_count or 0 for each in within)
        assert 29 * DAY_S + 23 * HOUR_S < result.end_unix_s - result.start_unix_s <= 30 * DAY_S
        for name, hours in (("1h", 1), ("6h", 6)):
            recent = [each for each in seen if each.start_unix_s >= result.end_unix_s - hours * HOUR_S]
            if total := sum(each.count for each in recent):
                bad = sum(each.error_count or 0 for each in recent)
                assert result.burn_rates[name] == pytest.approx(bad / total / 0.01)
            else:
                assert name not in result.burn_rates


@pytest.mark.parametrize("seed", range(3))
def test_the_budget_of_real_windows_counts_every_request_once_late_ones_too(seed: int) -> None:
    settings = WindowSettings(max_late_s=60.0, rollups_s=(4, 12))
    log = windows_log(seed, settings, RollupTask(3, settings))
    results = budgets(SloTask([level()], 3, step_s=4.0).process("windows", log))
    newest = {tuple(sorted(each.series.items())): each for each in results}
    base = [each for each in windows_in(log) if each.is_base and each.source == "inference" and each.series]
    assert any(each.part == "late" for each in base)
    for series, result in newest.items():
        mine = [each for each in base if tuple(sorted(each.series.items())) == series]
        assert result.total == sum(each.count for each in mine)
        assert result.total - result.good == sum(each.error_count or 0 for each in mine)
    assert sum(each.total for each in newest.values()) == sum(each.count for each in base)


def test_a_longer_window_is_kept_in_longer_slots() -> None:
    *_, last = told([level(window="90d")], [window(0, 300, 1, 100), window(80 * DAY_S, 300, 1, 100)])
    assert last.total == 200
    assert last.end_unix_s - last.start_unix_s > 90 * DAY_S - 3 * HOUR_S


def test_a_shop_of_too_many_series_is_bounded_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    skipped = SKIPPED.labels(Skipped.TOO_MANY_SERIES)
    before = skipped._value.get()
    windows = [window(0, 300, 1, 10, series={"service": f"s{n}"}) for n in range(5)]
    assert len(told([level()], windows, max_series=3)) == 3
    assert skipped._value.get() == before + 2


def test_the_largest_snapshot_fits_into_a_record() -> None:
    rng = np.random.default_rng(1)
    task = SloTask([level()], 3)
    name = "x" * (task_module.MAX_SERIES_BYTES - 40)
    records = stored(window(0, 300, 1, 10, series={"service": f"{name}{n}"}) for n in range(task_module.MAX_SERIES))
    assert len(task.process("windows", records)) == task_module.MAX_SERIES
    for budget in task._budgets.values():
        for ring in (budget._recent, budget._all):
            ring._counts[:] = rng.integers(0, 2**32, ring._counts.shape, dtype=np.uint32)
    assert 800_000 < len(task.snapshot()) <= 1_048_576


def test_an_objective_may_change_without_losing_what_was_counted_but_not_its_requests() -> None:
    task = SloTask([level(), slow()], 3)
    task.process("windows", stored([window(0, 300, 1, 100, duration_s=distribution([0.1]))]))
    again = SloTask([level(objective=0.9), slow(under=0.4)], 3)
    again.restore(task.snapshot())
    more = [Stored(b"", 0, 0), *stored([window(300, 300, 1, 100, duration_s=distribution([0.1]))])][1:]
    totals = {each.slo: each.total for each in budgets(again.process("windows", more))}
    assert totals == {"shop": 200, "slow": 1}


def test_a_slot_that_cannot_count_further_says_so_instead_of_wrapping() -> None:
    ring = Ring(60.0, 3)
    from streammon_processors.slos.requests import Requests

    assert ring.add(0.0, Requests(0, 2**32 - 1)) is None
    assert ring.add(0.0, Requests(0, 1)) is Skipped.TOO_MANY_EVENTS
    assert ring.add(600.0, Requests(1, 2)) is None
    assert ring.newest_sum(3) == Requests(1, 2)
    assert ring.add(0.0, Requests(0, 1)) is Skipped.TOO_OLD


# ---------------------------------------------------------------- latency


@pytest.mark.parametrize("seed", range(5))
def test_the_slow_share_is_exact_for_a_threshold_at_most_1_1_per_cent_higher(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.lognormal(-1.5, 0.8, 5000)
    for under in (0.1, 0.25, 0.3, 0.5, 1.0):
        seen = requests_of(window(0, 300, 0, 5000, duration_s=distribution(values.tolist())), slow(under=under))
        assert seen is not None
        upper = 2.0 ** ((bucket_index(np.array([under]))[0] + 1) / 64)  # the end of the threshold's bucket
        assert under <= upper <= under * 1.0109
        assert (seen.bad, seen.total) == (int((values > upper).sum()), 5000)


# ---------------------------------------------------------------- the report


def compliance(levels: list[ServiceLevel], windows: Iterable[Window], until: float) -> list[Compliance]:
    report = Report(levels, START, START + until)
    for record in stored(windows):
        report.take(record)
    return list(report.rows())


def of_minutes(minutes: Minutes) -> Iterator[Window]:
    """Base windows of 20 s; the rollups of most minutes, with a supplement of both now and then."""
    rng = random.Random(len(minutes))
    for number, minute in enumerate(minutes):
        at = 60.0 * number
        if minute is None:
            continue
        bad, total = minute
        late = (min(bad, 1), 1) if total > 1 and rng.random() < 0.1 else (0, 0)
        first = (bad - late[0]) // 2, (total - late[1]) // 2
        second = bad - late[0] - first[0], total - late[1] - first[1]
        if first[0] > first[1] or second[0] > second[1]:
            first, second = (0, 0), (bad - late[0], total - late[1])
        yield window(at, 20.0, *first)
        yield window(at + 20, 20.0, *second)
        if late[1]:
            yield window(at + 40, 20.0, *late, part="late", revision=1)
        if number < len(minutes) - 5:
            yield window(at, 60.0, first[0] + second[0], first[1] + second[1])
            if late[1]:
                yield window(at, 60.0, *late, part="late", revision=1)
        if number % 5 == 4:
            yield window(at - 240, 300.0, 1000, 1000)  # not what it reads


@pytest.mark.parametrize("seed", range(4))
def test_the_report_is_what_brute_force_finds(seed: int) -> None:
    minutes = troubled(seed, days=2)[37 : 37 + 2000]
    [row] = compliance([level(objective=0.99)], of_minutes(minutes), until=2000 * 60.0)
    seen = [each or (0, 0) for each in minutes]
    bad, total = sum(b for b, _ in seen), sum(t for _, t in seen)
    assert (row.total - row.good, row.total) == (bad, total)
    assert row.achieved == (total - bad) / total
    assert row.budget_left == pytest.approx(1 - bad / (0.01 * total))
    breached = [t > 0 and (t - b) / t < 0.99 for b, t in seen]
    assert row.breach_minutes == sum(breached)
    assert row.breaches == sum(now and not before for before, now in zip([False, *breached], breached, strict=False))
    hours = [seen[at : at + 60] for at in range(0, len(seen), 60)]
    shares = [
        1 - sum(b for b, _ in each) / sum(t for _, t in each) if sum(t for _, t in each) else 2.0 for each in hours
    ]
    assert row.worst_hour.achieved == pytest.approx(min(shares))
    assert row.worst_hour.start_unix_s == START + HOUR_S * int(np.argmin(shares))


def test_a_supplement_that_comes_after_the_rollup_counts_once_with_its_own_rollup() -> None:
    closed = [window(0, 20.0, 1, 10), window(0, 60.0, 1, 10)]
    late = [window(0, size_s, 1, 1, part="late", revision=1) for size_s in (20.0, 60.0)]
    for windows, total in ((closed, 10), ([*closed, late[0]], 10), ([*closed, *late], 11)):
        [row] = compliance([level()], windows, until=60.0)
        assert (row.total, row.total - row.good) == (total, total - 9)


def test_minutes_outside_of_the_range_do_not_count() -> None:
    [row] = compliance([level()], [window(60.0 * n, 60.0, 0, 10) for n in range(-3, 9)], until=330.0)
    assert (row.total, row.from_unix_s, row.to_unix_s) == (50, START, START + 300)


def test_an_objective_that_is_just_met_is_met() -> None:
    [row] = compliance([level(objective=0.9)], [window(0, 60.0, 1, 10)], until=60.0)
    assert (row.met, row.breaches, row.budget_left) == (True, 0, 0.0)


def test_objectives_without_requests_are_left_out_and_each_series_has_a_row() -> None:
    windows = [window(0, 60.0, 0, n, series={"service": f"s{n}"}) for n in (2, 1, 0)]
    rows = compliance([level("b"), level("a", where={"service": "s2"})], windows, until=60.0)
    assert [(row.slo, row.series["service"]) for row in rows] == [("b", "s1"), ("b", "s2"), ("a", "s2")]


def test_a_range_without_a_minute_is_refused() -> None:
    with pytest.raises(ConfigError, match="1 minute to 92 days"):
        Report([level()], START + 1, START + 59)
    with pytest.raises(ConfigError, match="1 minute to 92 days"):
        Report([level()], START, START + 100 * DAY_S)
