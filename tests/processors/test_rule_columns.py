"""Windows in columns: the same alerts, byte for byte, as from the records that they would be on the log."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from streammon.broker import Outgoing
from streammon.errors import ConfigError
from streammon_processors.rules import Rule, Rules, RulesTask
from streammon_processors.rules.backtest.columns import ColumnTask, Panel, panel, records_of
from streammon_processors.rules.description import Worse

SIZE_S = 10.0
START = 1_700_000_000.0
SERIES = tuple({"service": "shop", "model": f"m{number}"} for number in range(4))


def rule(name: str, expr: str, **fields: object) -> Rule:
    given_ = {"source": "inference", "severity": "warning", "summary": "{model}: {value}"} | fields
    return Rule(name=name, expr=expr, **given_)  # type: ignore[arg-type]


RULES = Rules(
    (
        rule("now", "duration_s.p99 > 0.8"),
        rule("held", "error_rate > 0.5", for_="30s", keep_firing_for="20s", clear="error_rate < 0.3"),
        rule(
            "past", 'avg_over(duration_s.p99, "1m") > 0.6', ladder=(Worse(severity="critical", expr="error_rate>.9"),)
        ),
        rule("kept", "delta(duration_s.p50, '65m') > 0.2 && labels.model != 'm1'", window="10s"),
        rule("sketch", 'quantile(0.5, "40s") > 0.7 || share_above(duration_s, 0.9) > 0.5'),
        rule("mostly", 'avg_over(share_above(duration_s, 0.6), "1m") > 0.7'),
        rule("burnt", 'burn_rate(0.5, "1m") > 1.3', where={"model": "m2"}),
        rule("silent", "duration_s.p99 > 0.95", no_data="fire", no_data_for="1m", warm_up="20s"),
        rule("gone", "duration_s.p99 > 0.5", no_data="resolve", no_data_for="90s", for_="20s"),
        rule("disk", "gauges.used.last > 0.5", source="resource"),
    )
)


def random_panel(seed: int, rows: int = 120, gap: int = 0, step: int = 1) -> Panel:
    """Windows with holes in them, a third of all series away for a while, and a gap of nothing at all."""
    random = np.random.default_rng(seed)
    there = random.random((rows, len(SERIES))) > 0.1
    for column in range(len(SERIES)):
        if random.random() < 0.7:
            first = random.integers(0, rows)
            there[first : first + int(random.integers(2, 40)), column] = False
    starts = START + SIZE_S * step * np.arange(rows, dtype=float)
    starts[rows // 2 :] += gap * SIZE_S
    walk = np.clip(0.5 + 0.15 * np.cumsum(random.normal(size=there.shape), axis=0), 0, 1)
    slow = np.where(random.random(there.shape) < 0.1, np.nan, walk)
    numbers = {
        "duration_s": slow,
        "error_rate": random.random(there.shape),
        "count": 1.0 + random.integers(0, 9, there.shape),
    }
    return panel("inference", SIZE_S, SERIES, starts, numbers, there)


def by_records(rules: Rules, given_: Panel, batch: int = 500) -> list[Outgoing]:
    task, records = RulesTask(rules, 0, base_s=given_.size_s), list(records_of(given_))
    return [each for at in range(0, len(records), batch) for each in task.process("windows", records[at : at + batch])]


def by_columns(rules: Rules, given_: Panel, block: int) -> list[Outgoing]:
    task = ColumnTask(rules, 0, base_s=given_.size_s)
    blocks = (given_[first : first + block] for first in range(0, len(given_.starts), block))
    return [each for one in blocks for each in task.take(one)]


@settings(max_examples=20, deadline=None, phases=(Phase.explicit, Phase.generate))
@example(seed=2, block=7, gap=100, step=1)
@given(
    seed=st.integers(0, 10_000),
    block=st.sampled_from([1, 7, 50, 1000]),
    gap=st.sampled_from([0, 3, 100, 2000]),
    step=st.sampled_from([1, 3]),
)
def test_columns_give_the_bytes_that_records_give(seed: int, block: int, gap: int, step: int) -> None:
    given_ = random_panel(seed, gap=gap, step=step)
    expected = by_records(RULES, given_)
    assert by_columns(RULES, given_, block) == expected
    assert expected


def test_a_series_given_up_and_heard_again_in_one_batch_is_followed_on() -> None:
    given_ = random_panel(2, gap=100)
    whole = by_records(RULES, given_, batch=10**6)
    assert by_records(RULES, given_, batch=1) == whole
    task, records = RulesTask(RULES, 0, base_s=SIZE_S), list(records_of(given_))
    stamps = [each.timestamp / 1000 - START for each in records]
    first, second = (next(at for at, stamp in enumerate(stamps) if stamp >= cut) for cut in (570, 1640))
    parts = (records[:first], records[first:second], records[second:])
    assert [each for part in parts for each in task.process("windows", part)] == whole


@pytest.mark.parametrize("count", [-1.0, 1.5, 2.0**53])
def test_a_count_that_is_none_is_refused(count: float) -> None:
    with pytest.raises(ConfigError, match=r"a count is .*, and has to be a whole number"):
        panel("inference", SIZE_S, SERIES[:1], np.array([START]), {"count": np.array([[count]])})


def test_a_window_of_very_many_equal_values_is_a_window_as_any_other() -> None:
    numbers = {"duration_s": np.array([[0.9]]), "count": np.array([[2.0**52]])}
    given_ = panel("inference", SIZE_S, SERIES[:1], np.array([START]), numbers)
    rules = Rules((rule("r", 'quantile(0.5, "30s") > 0.8'),))
    found = by_columns(rules, given_, 7)
    assert found == by_records(rules, given_)
    assert len(found) == 1


def test_every_rule_of_that_comparison_fires() -> None:
    said = b"".join(each.value or b"" for seed in range(5) for each in by_columns(RULES, random_panel(seed), 50))
    silent = [each.name for each in RULES if f'"rule":"{each.name}"'.encode() not in said]
    assert silent == ["disk"]


def test_a_series_that_is_back_has_to_warm_up_anew() -> None:
    there = np.ones((60, 2), dtype=bool)
    there[10:40, 1] = there[41:, 1] = False  # back for one window, which is shorter than the warm-up
    starts = START + SIZE_S * np.arange(60, dtype=float)
    given_ = panel("inference", SIZE_S, SERIES[:2], starts, {"duration_s": np.full(there.shape, 0.1)}, there)
    assert by_columns(RULES, given_, 7) == by_records(RULES, given_)
    assert sum(b'"state":"no_data"' in (each.value or b"") for each in by_records(RULES, given_)) == 1


def test_counters_and_distributions_of_resources_give_the_bytes_that_records_give() -> None:
    random = np.random.default_rng(3)
    shape = (60, len(SERIES))
    requests = random.integers(0, 50, shape).astype(float)
    numbers = {"counters.requests_total": requests, "distributions.a-b": random.random(shape)}
    given_ = panel("resource", SIZE_S, SERIES, START + SIZE_S * np.arange(60.0), numbers)
    rules = Rules(
        (
            rule("rate", "counters.requests_total.per_s > 4", source="resource"),
            rule("past", 'sum_over(counters.requests_total.sum, "1m") > 180', source="resource"),
            rule("slow", 'distributions["a-b"].p99 > 0.9', source="resource"),
            rule("sketch", 'quantile(distributions["a-b"], 0.5, "40s") > 0.7', source="resource"),
            rule("share", 'share_above(distributions["a-b"], 0.9) > 0.5', source="resource"),
            rule("long", "counters.requests_total.per_s > 3", window="1m", source="resource"),
        )
    )
    expected = by_records(rules, given_)
    assert by_columns(rules, given_, 7) == expected
    told = {msgspec.json.decode(each.value or b"")["rule"] for each in expected}
    assert told >= {"rate", "past", "slow", "sketch", "share"}


def test_the_share_of_slow_answers_is_looked_back_on() -> None:
    slow = np.array([[0.1], [0.9], [0.9], [0.1], [0.1], [0.9]])
    starts = START + SIZE_S * np.arange(len(slow), dtype=float)
    given_ = panel("inference", SIZE_S, SERIES[:1], starts, {"duration_s": slow})
    rules = Rules((rule("r", 'avg_over(share_above(duration_s, 0.5), "30s") > 0.6'),))
    fired = [alert for each in by_columns(rules, given_, 7) if (alert := decode(each.value))["state"] == "firing"]
    assert [alert["updated_unix_s"] - START for alert in fired] == [3 * SIZE_S]
    assert fired[0]["value"] == 2 / 3
    resolved = [alert for each in by_columns(rules, given_, 7) if (alert := decode(each.value))["state"] == "resolved"]
    assert [alert["ended_unix_s"] - START for alert in resolved] == [5 * SIZE_S]


def decode(value: bytes | None) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode(value or b"")
    return found
