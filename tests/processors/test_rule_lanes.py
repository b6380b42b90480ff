"""Series that come and go: what a lane forgets, what it tells before that, and that no cut of the log changes it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import pytest

from streammon.results import Alert, Window
from streammon.topics import MAX_RECORD_BYTES
from streammon_processors.rules import Rule, Rules, RulesTask, WindowOf
from tests.processors.test_rules import Stored, window

A, B = {"service": "a"}, {"service": "b"}


def rule(expr: str = "count > 5", **fields: Any) -> Rule:
    defaults: dict[str, Any] = {"name": "r", "source": "inference", "severity": "warning", "summary": "{value}"}
    return Rule(expr=expr, **(defaults | fields))


def records(windows: Iterable[Window | bytes], first: int = 0) -> list[Stored]:
    values = [each if isinstance(each, bytes) else msgspec.json.encode(each) for each in windows]
    return [Stored(value, first + i, timestamp=1_000_000 + 2000 * (first + i)) for i, value in enumerate(values)]


def told(task: RulesTask, batches: Iterable[Sequence[Stored]]) -> list[tuple[str, str]]:
    outputs = [output for batch in batches for output in task.process("windows", batch)]
    alerts = [msgspec.json.decode(each.value or b"", type=Alert) for each in outputs if each.topic == "alerts"]
    return [(alert.labels["service"], alert.state) for alert in alerts]


def test_series_that_is_given_up_and_comes_back_within_a_batch_is_the_same_one() -> None:
    firing, gone, back = window(0, series=A, count=10), range(1, 900), window(900, series=A)
    log = records([firing, *(window(index, series=B) for index in gone), back])
    whole, one_by_one = (RulesTask(Rules((rule(),)), 3) for _ in range(2))
    expected = [("a", "firing"), ("a", "resolved")]
    assert told(whole, [log]) == told(one_by_one, [[record] for record in log]) == expected
    assert whole.snapshot() == one_by_one.snapshot()


@pytest.mark.parametrize("gap_s", [200, 1000, 100_000])
def test_series_that_does_not_come_back_after_a_gap_for_all_is_silent(gap_s: int) -> None:
    gone = rule(no_data="fire", no_data_for="2m", warm_up="4s")
    before = [window(index, series=each) for index in range(10) for each in (A, B)]
    after = [window(10 + gap_s // 2 + index, series=A) for index in range(3)]
    task = RulesTask(Rules((gone,)), 3)
    assert told(task, [records([*before, *after])]) == [("a", "no_data"), ("b", "no_data"), ("a", "resolved")]


def test_breach_of_sessions_that_has_not_held_is_given_up() -> None:
    of_sessions = rule(window=WindowOf(session_gap="30s"), for_="10m")
    session: dict[str, Any] = {"count": 10, "kind": "session", "gap_s": 30.0, "of_s": 2.0}
    task = RulesTask(Rules((of_sessions,)), 3)
    log = records(window(100 * i, series={"service": f"s{i}"}, **session) for i in range(50))
    assert told(task, [log]).count(("s0", "resolved")) == 1
    assert len(task.snapshot()) < 3000


def test_what_is_kept_of_series_fits_into_a_record_however_long_their_labels_are() -> None:
    gone = rule(no_data="fire", no_data_for="2h")
    task = RulesTask(Rules((gone,)), 3)
    told(task, [records(window(1, series={"service": f"{i}", "x": "y" * 3000}) for i in range(1000))])
    assert len(task.snapshot()) < MAX_RECORD_BYTES // 2


def test_pending_alert_ends_with_its_rule() -> None:
    task = RulesTask(Rules((rule(for_="10m"),)), 3)
    assert told(task, [records([window(0, series=A, count=10)])]) == [("a", "pending")]
    other = RulesTask(Rules((rule(name="other"),)), 3)
    other.restore(task.snapshot())
    [ended] = other.process("windows", records([window(1, series=B)], first=1))
    alert = msgspec.json.decode(ended.value or b"", type=Alert)
    assert (alert.state, alert.transition, alert.has_fired) == ("resolved", 1, False)


def test_count_that_is_no_number_of_requests_is_refused() -> None:
    huge = msgspec.json.encode(window(0, series=A)).replace(b'"count":1,', b'"count":1' + b"0" * 400 + b",", 1)
    outputs = RulesTask(Rules((rule(),)), 3).process("windows", records([huge]))
    assert [each.topic for each in outputs] == ["deadletter"]


@pytest.mark.parametrize("restarted", [False, True])
def test_time_in_which_the_whole_log_was_still_is_nobodys_silence(restarted: bool) -> None:
    def task() -> RulesTask:
        return RulesTask(Rules((rule(no_data="fire", no_data_for="2m", warm_up="4s"),)), 3)

    before = records(window(index, series=each) for index in range(10) for each in (A, B))
    later = (window(5000 + index, series=A) for index in range(100))
    log = [*before, *(each._replace(timestamp=each.timestamp + 9_990_000) for each in records(later, first=20))]
    one = task()
    assert told(one, [log[:30]]) == []
    if restarted:
        other = task()
        other.restore(one.snapshot())
        assert told(other, [log[other.offsets()["windows"] : 30]]) == []
        one = other
    assert told(one, [log[30:]]) == [("b", "no_data")]


def conditions(task: RulesTask, log: Sequence[Stored]) -> list[tuple[str, str]]:
    alerts = [msgspec.json.decode(each.value or b"", type=Alert) for each in task.process("windows", log)]
    return [(alert.state, alert.condition) for alert in alerts]


def test_alert_that_labels_alone_decide_says_so() -> None:
    of_labels = rule('labels.service == "a"')
    task = RulesTask(Rules((of_labels,)), 3)
    assert conditions(task, records([window(0, series=A), window(0, series=B)])) == [("firing", "its labels say so")]


def test_alert_that_goes_on_after_a_silence_without_knowing_more_says_that_it_is_heard_again() -> None:
    slow = rule("duration_s.p99 > 0.3", no_data="fire", no_data_for="10s", warm_up="2s")
    windows = [window(0, series=A), window(1, p99=1.0, series=A), window(30, p99=None, series=A)]
    task = RulesTask(Rules((slow,)), 3)
    expected = [
        ("firing", "p99 of duration_s 1 s > 300 ms"),
        ("no_data", "no data for 10 s"),
        ("firing", "heard again"),
    ]
    assert conditions(task, records(windows)) == expected


def test_breaches_that_are_given_up_together_are_told_in_the_same_order_after_a_restart() -> None:
    breaches = records([window(0, series=B, count=10), window(0, series=A, count=10)])
    later = records([window(1000, series={"service": "c"})], first=2)
    running, restarted = (RulesTask(Rules((rule(for_="1m"),)), 3) for _ in range(2))
    told(running, [breaches])
    restarted.restore(running.snapshot())
    assert told(running, [later]) == told(restarted, [later]) == [("a", "resolved"), ("b", "resolved")]
