"""Rules on drift results and pipeline runs: what fires and resolves, in which order they count, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from prometheus_client import REGISTRY

from streammon.broker import Outgoing
from streammon.config import RuleSettings, Settings
from streammon.errors import ConfigError
from streammon.results import Alert, Drift, Run
from streammon.tick import TICK
from streammon_processors.builtin import rules_processor
from streammon_processors.contract import Stored
from streammon_processors.rules import Rule, Rules, RulesTask, load_rules
from streammon_processors.rules.sources import SOURCES, Results

T0: Final = 1_700_000_000.0
HOUR_S: Final = 3600.0
DAY_S: Final = 24 * HOUR_S
Result = Drift | Run


def rule(**said: Any) -> Rule:
    said = {"for" if name == "for_" else name: value for name, value in said.items()}
    return msgspec.convert({"name": "r", "severity": "warning", "summary": "{value}"} | said, Rule)


DRIFTED: Final = rule(source="drift", expr="drifted && sample_size > 1000", summary="{target} of {model}: {value}")
FAILED: Final = rule(source="run", expr='state in ["failed", "missed", "lost"]', summary="{job}: {value}")
UNTIL_GOOD: Final = msgspec.structs.replace(FAILED, clear='state == "succeeded"')


def drift(at: float, drifted: bool = True, *, lasted: float = 1.0, **fields: Any) -> Drift:
    """Of the ``lasted`` hours that end ``at`` hours after `T0`."""
    told: dict[str, Any] = {
        "model": "ranker",
        "target": "age",
        "detector": "psi",
        "statistic": 0.31 if drifted else 0.05,
        "threshold": 0.2,
        "sample_size": 5000,
        "start_unix_s": T0 + (at - lasted) * HOUR_S,
        "end_unix_s": T0 + at * HOUR_S,
    }
    return Drift(drifted=drifted, **(told | fields))


def run(at: float, state: str, job: str = "train", **fields: Any) -> Run:
    return Run(job=job, run_id=fields.pop("run_id", f"{at}"), state=state, updated_unix_s=T0 + at * HOUR_S, **fields)


def end_of(result: Result) -> float:
    end = result.end_unix_s if isinstance(result, Drift) else result.time_unix_s
    return end or 0.0


def log(results: Iterable[Result | bytes], first: int = 0) -> list[Stored]:
    """The broker gets each when it is about, and nothing before what it has."""
    found, newest = list[Stored](), 0.0
    for offset, each in enumerate(results, first):
        newest = newest if isinstance(each, bytes) else max(newest, end_of(each))
        value = each if isinstance(each, bytes) else msgspec.json.encode(each)
        found.append(Stored(value, offset, round(1000 * newest)))
    return found


def outputs(subject: RulesTask, *results: Result | bytes) -> list[Outgoing]:
    [topic] = {"drift", "runs"} & set(subject._logs)
    return subject.process(topic, log(results, subject._next.get(topic, 0)))


def told(subject: RulesTask, *results: Result | bytes) -> list[Alert]:
    found = outputs(subject, *results)
    return [msgspec.json.decode(each.value or b"", type=Alert) for each in found if each.topic == "alerts"]


def states(alerts: Iterable[Alert]) -> list[tuple[str, float]]:
    """When what was told, in hours after `T0`."""
    return [(each.state, round((each.updated_unix_s - T0) / HOUR_S, 6)) for each in alerts]


def refused(found: Sequence[Outgoing]) -> list[tuple[str, str]]:
    headers = [dict(each.headers) for each in found if each.topic == "deadletter"]
    return [(each["reason"].decode(), each["error"].decode()) for each in headers]


def task(*rules: Rule) -> RulesTask:
    return RulesTask(Rules(rules), 3)


def skipped(reason: str) -> float:
    return REGISTRY.get_sample_value("streammon_rules_skipped_total", {"reason": reason}) or 0.0


# --- what fires, and what is told


def test_drift_fires_and_is_over_with_the_first_result_that_has_none() -> None:
    alerts = told(task(DRIFTED), drift(1, False), drift(2), drift(3), drift(4, False))
    assert states(alerts) == [("firing", 2), ("resolved", 4)]
    fired, resolved = alerts
    assert fired.labels == {"model": "ranker", "target": "age", "detector": "psi"}
    assert (fired.value, fired.summary) == (0.31, "age of ranker: 0.31")
    assert fired.condition == "drifted (statistic 0.31, threshold 0.2) and sample_size 5,000 > 1,000"
    assert resolved.condition == "not drifted (statistic 0.05, threshold 0.2)"
    assert fired.started_unix_s == T0 + HOUR_S  # the test was of the hour from then


def test_an_alert_carries_the_result_that_tripped_it() -> None:
    [fired] = told(task(DRIFTED), drift(2, reference="june", p_value=0.001))
    assert fired.evidence == {"drift": msgspec.to_builtins(drift(2, reference="june", p_value=0.001))}
    [failed] = told(task(FAILED), run(2, "failed", run_id="a"))
    assert failed.evidence["run"]["run_id"] == "a"


def test_a_failed_run_is_over_with_a_later_good_one_of_the_same_job() -> None:
    subject = task(UNTIL_GOOD)
    begun, failed = run(1, "running", run_id="a"), run(2, "failed", run_id="a")
    alerts = told(subject, begun, failed, run(3, "running"), run(4, "succeeded", "other"), run(5, "succeeded"))
    assert states(alerts) == [("firing", 2), ("resolved", 5)]
    assert [(each.labels, each.condition, each.summary) for each in alerts] == [
        ({"job": "train"}, "state failed", "train: failed"),
        ({"job": "train"}, "state succeeded", "train: failed"),
    ]
    assert alerts[0].value is None


def test_without_clear_a_failed_run_is_over_as_soon_as_the_next_one_begins() -> None:
    assert states(told(task(FAILED), run(2, "failed"), run(3, "running"))) == [("firing", 2), ("resolved", 3)]


def test_how_long_a_run_has_taken_is_a_number() -> None:
    long = rule(source="run", field="duration_s", above=7200, ladder=[{"severity": "critical", "above": 14_400}])
    started: dict[str, Any] = {"started_unix_s": T0, "run_id": "a"}
    subject = task(long)
    fired, worse, over = told(
        subject,
        run(1, "running", **started),
        run(3, "overdue", **started),
        run(5, "overdue", **started),
        run(5.5, "succeeded", ended_unix_s=T0 + HOUR_S, **started),
    )
    assert (fired.value, fired.condition) == (10_800, "duration_s 10,800 s > 7,200 s")
    assert [each.severity for each in (fired, worse, over)] == ["warning", "critical", "critical"]
    assert (over.state, over.condition) == ("resolved", "duration_s 3,600 s ≤ 7,200 s")


def test_a_run_that_never_began_has_no_duration_and_decides_nothing_by_it() -> None:
    assert told(task(rule(source="run", expr="duration_s < 1")), run(1, "missed")) == []


@pytest.mark.parametrize("expr", ['state == "missed"', '!(state != "missed")', 'state.startsWith("miss")'])
def test_texts_are_compared_result_by_result(expr: str) -> None:
    alerts = told(task(rule(source="run", expr=expr)), run(1, "missed"), run(2, "missed"), run(3, "failed"))
    assert states(alerts) == [("firing", 1), ("resolved", 3)]


def test_texts_and_labels_may_be_in_one_condition() -> None:
    one = rule(source="run", expr='state == "failed" && labels.job in ["train", "load"] || state == "lost"')
    alerts = told(task(one), run(1, "failed"), run(1, "failed", "else"), run(2, "lost", "else"))
    assert [each.labels["job"] for each in alerts] == ["train", "else"]


def test_a_text_that_is_not_there_is_not_known() -> None:
    by_reference = rule(source="drift", expr='reference != "june" && drifted')
    assert told(task(by_reference), drift(1), drift(2, reference="june")) == []
    assert len(told(task(by_reference), drift(1, reference="july"))) == 1


def test_what_decides_twice_is_told_once() -> None:
    one = rule(source="run", expr='state != "running" && (state == "lost" || duration_s > 60 || state == "failed")')
    [alert] = told(task(one), run(1, "failed", started_unix_s=T0))
    assert alert.condition == "state failed and duration_s 3,600 s > 60 s"


def test_texts_of_any_length_take_no_more_room_than_an_alert_has() -> None:
    subject = task(rule(source="run", expr='state != "succeeded"'))
    assert told(subject, run(1, "succeeded")) == []
    before = len(subject.snapshot())
    [alert] = told(subject, run(2, "\N{SNOWMAN}" * 100_000))
    assert alert.condition == "state " + "\N{SNOWMAN}" * 64
    assert alert.summary == "\N{SNOWMAN}" * 10
    assert len(subject.snapshot()) - before < 600


def test_where_chooses_series() -> None:
    mine = rule(source="drift", expr="drifted", where={"service": "shop", "model": "ranker"})
    alerts = told(task(mine), drift(1), drift(2, service="shop", model_version="7"), drift(2, service="else"))
    assert [each.labels for each in alerts] == [
        {"service": "shop", "model": "ranker", "model_version": "7", "target": "age", "detector": "psi"}
    ]


@pytest.mark.parametrize("other", [{"target": "price"}, {"detector": "ks"}, {"service": "x"}, {"model_version": "8"}])
def test_each_target_detector_service_and_version_is_a_series_of_its_own(other: dict[str, Any]) -> None:
    alerts = told(task(DRIFTED), drift(1), drift(2, False, **other), drift(3, **other))
    assert [(each.state, each.updated_unix_s) for each in alerts] == [("firing", T0 + at * HOUR_S) for at in (1, 3)]
    assert len({each.id for each in alerts}) == 2


# --- order


def test_results_of_several_series_come_in_any_order() -> None:
    over_a_day = drift(24, lasted=24, target="price")
    alerts = told(task(DRIFTED), drift(23), drift(24.5, False), over_a_day, drift(23.5, target="income"))
    assert [(each.labels["target"], each.state) for each in alerts] == [
        ("age", "firing"),
        ("age", "resolved"),
        ("price", "firing"),
        ("income", "firing"),
    ]


def test_a_result_older_than_the_newest_of_its_series_changes_nothing_and_is_a_dead_letter() -> None:
    subject = task(UNTIL_GOOD)
    assert len(told(subject, run(2, "succeeded"), run(3, "failed"))) == 1
    found = outputs(subject, run(2.5, "succeeded"))
    assert refused(found) == [
        ("too_late", "it ends 1800 s before the newest of its series, 1700010800"),
    ]
    assert [each.topic for each in found] == ["deadletter"]
    assert states(told(subject, run(4, "succeeded"))) == [("resolved", 4)]


def test_an_older_result_is_still_told_from_a_newer_after_a_restart() -> None:
    before, after = task(UNTIL_GOOD), task(UNTIL_GOOD)
    assert told(before, run(3, "succeeded")) == []
    after.restore(before.snapshot())
    assert [reason for reason, _ in refused(outputs(after, run(2, "failed")))] == ["too_late"]


def test_how_far_a_series_has_come_is_known_for_a_month() -> None:
    subject = task(FAILED)
    others = [run(24.0 * day, "succeeded", "other") for day in range(1, 40)]
    assert told(subject, run(0, "succeeded"), *others[:20]) == []
    assert [reason for reason, _ in refused(outputs(subject, run(-1, "failed")))] == ["too_late"]
    assert told(subject, *others[20:]) == []
    assert states(told(subject, run(-1, "failed"))) == [("firing", -1)]


def test_a_gap_in_the_log_makes_no_result_too_old() -> None:
    """As it would, if what has passed over a series that was not heard of was taken for its newest result."""
    silent = rule(source="drift", expr="drifted", no_data="fire", no_data_for="2d")
    alerts = told(task(silent), drift(1), drift(20, target="price", lasted=0.1), drift(19.9, False))
    assert [(each.labels["target"], each.state) for each in alerts] == [
        ("age", "firing"), ("price", "firing"), ("age", "resolved"),
    ]  # fmt: skip


def test_results_of_one_instant_are_taken_in_the_order_of_the_log_and_no_two_alerts_are_one() -> None:
    moment = [run(1, state, run_id=f"{number}") for number, state in enumerate(["failed", "succeeded"] * 20)]
    alerts = told(task(FAILED), *moment)
    assert [each.state for each in alerts] == ["firing", "resolved"] * 20
    assert len({each.id for each in alerts}) == 20
    assert all(abs(each.updated_unix_s - T0 - HOUR_S) < 1e-3 for each in alerts)


def test_tests_that_overlap_begin_where_the_one_before_ended() -> None:
    hourly = [drift(at, at in (30, 32), lasted=24) for at in range(28, 34)]
    firing = [each for each in told(task(DRIFTED), *hourly) if each.state == "firing"]
    assert [(each.started_unix_s - T0) / HOUR_S for each in firing] == [29, 31]
    assert len({each.id for each in firing}) == 2


def test_a_result_that_comes_twice_changes_nothing() -> None:
    assert states(told(task(DRIFTED), drift(1), drift(1), drift(1))) == [("firing", 1)]


# --- time


def test_for_counts_from_failed_run_to_failed_run_however_far_they_are_apart() -> None:
    often = rule(source="run", expr='state == "failed"', for_="36h")
    weeks = [run(168 * week, "failed") for week in range(3)]
    others = [run(168 * week + 1, "succeeded", "other") for week in range(3)]
    alerts = told(task(often), *(each for pair in zip(weeks, others, strict=True) for each in pair))
    assert states(alerts) == [("pending", 0), ("firing", 168)]


def test_a_breach_of_which_nothing_is_heard_for_a_month_is_given_up() -> None:
    often = rule(source="run", expr='state == "failed"', for_="36h")
    others = [run(24.0 * day, "succeeded", "other") for day in range(1, 40)]
    alerts = told(task(often), run(0, "failed"), *others)
    assert states(alerts) == [("pending", 0), ("resolved", 0)]
    assert alerts[1].evidence == {"note": "not_held"}


def test_keep_firing_for_needs_a_second_good_result() -> None:
    kept = rule(source="drift", expr="drifted", keep_firing_for="90m")
    alerts = told(task(kept), drift(1), drift(2, False), drift(3, False), drift(4, False))
    assert states(alerts) == [("firing", 1), ("resolved", 3)]


def ticked(subject: RulesTask, topic: str, since: float, hours: float) -> list[Alert]:
    first = subject._next.get(topic, 0)
    stamps = range(round(1000 * since), round(1000 * (since + hours * HOUR_S)), 5000)
    records = [Stored(TICK, first + number, stamp) for number, stamp in enumerate(stamps)]
    return [msgspec.json.decode(each.value or b"", type=Alert) for each in subject.process(topic, records)]


def test_a_job_that_does_not_run_any_more_is_told_of() -> None:
    gone = rule(source="run", expr='state == "failed"', no_data="fire", no_data_for="25h", warm_up="1d")
    subject = task(gone)
    assert not subject.waiting
    assert told(subject, run(0, "succeeded")) == []
    assert subject.waiting == ["runs"]
    assert ticked(subject, "runs", T0, 24) == []
    assert told(subject, run(24, "succeeded")) == []
    assert ticked(subject, "runs", T0 + 24 * HOUR_S, 24.9) == []
    [silent] = ticked(subject, "runs", T0 + 48.9 * HOUR_S, 0.2)
    assert (silent.state, silent.labels, silent.condition) == ("no_data", {"job": "train"}, "no data for 25 h")
    assert not subject.waiting
    assert states(told(subject, run(50, "succeeded"))) == [("resolved", 50)]


def test_a_result_that_comes_late_does_not_turn_back_the_time_in_which_others_are_silent() -> None:
    gone = rule(source="run", expr='state == "failed"', no_data="fire", no_data_for="3h", warm_up="0s")
    subject = task(gone)
    told(subject, run(0, "succeeded"))
    ticked(subject, "runs", T0, 1)
    told(subject, run(1, "succeeded", "other"))
    assert ticked(subject, "runs", T0 + HOUR_S, 1.9) == []
    late = log([run(1.1, "succeeded", "third")], subject._next["runs"])[0]
    assert subject.process("runs", [late._replace(timestamp=round(1000 * (T0 + 2.9 * HOUR_S)))]) == []
    assert [each.labels["job"] for each in ticked(subject, "runs", T0 + 2.9 * HOUR_S, 0.2)] == ["train"]


def test_no_series_falls_silent_while_nobody_wrote_anything_however_long_the_next_result_is() -> None:
    gone = rule(source="drift", expr="drifted", no_data="fire", no_data_for="3h", warm_up="0s")
    subject = task(gone)
    told(subject, drift(1, False))
    ticked(subject, "drift", T0 + HOUR_S, 0.5)
    assert told(subject, drift(20, False, lasted=24, target="price")) == []
    assert ticked(subject, "drift", T0 + 20 * HOUR_S, 2) == []
    assert [each.labels["target"] for each in ticked(subject, "drift", T0 + 22 * HOUR_S, 1)] == ["age"]


# --- what is no result


@pytest.mark.parametrize(
    ("topic", "value", "reason", "said"),
    [
        ("drift", b"{", "invalid_json", ""),
        ("drift", b'{"type":"window"}', "invalid_event", "Invalid value 'window'"),
        ("drift", b'{"type":"drift","model":"m"}', "invalid_event", "missing required field `target`"),
        ("drift", msgspec.json.encode(drift(1, schema=9)), "unknown_schema", "schema is 9"),
        ("drift", msgspec.json.encode(drift(1, lasted=-1)), "bad_time", "it is about [1700007200, 1700003600]"),
        ("runs", msgspec.json.encode(run(1, "failed", run_id=7)), "invalid_event", "Expected `str`, got `int`"),
        (
            "runs",
            msgspec.json.encode(Run(job="a", run_id="b", state="missed")),
            "bad_time",
            "the run does not say since when it is 'missed': updated_unix_s, ended_unix_s, started_unix_s or nominal",
        ),
        ("runs", msgspec.json.encode(run(1e9, "failed")), "bad_time", "which is no time"),
        ("runs", msgspec.json.encode(run(1.1, "failed")), "future", "it ends 300 s later than windows.max_future_s"),
    ],
)
def test_what_cannot_be_used_is_a_dead_letter_with_its_reason(topic: str, value: bytes, reason: str, said: str) -> None:
    subject = task(DRIFTED, FAILED)
    [found] = subject.process(topic, [Stored(value, 0, round(1000 * (T0 + HOUR_S)))])
    [(why, error)] = refused([found])
    assert why == reason
    assert said in error
    assert found.partition == 3
    assert subject.offsets()[topic] == 1


@pytest.mark.parametrize(
    "names", [*pairwise(["nominal_time_unix_s", "started_unix_s", "ended_unix_s", "updated_unix_s"])]
)
def test_a_run_is_about_the_newest_time_that_it_tells(names: tuple[str, str]) -> None:
    earlier, later = names
    times: dict[str, Any] = {earlier: T0, later: T0 + HOUR_S}
    [alert] = told(task(FAILED), Run(job="a", run_id="b", state="failed", **times))
    assert states([alert]) == [("firing", 1)]


def test_series_beyond_the_room_are_decided_on_and_not_remembered() -> None:
    subject = task(FAILED)
    jobs = [run(1, "succeeded", f"{number}-{'x' * 1000}") for number in range(1000)]
    before = skipped("too_many_series")
    assert told(subject, *jobs) == []
    assert 500 < skipped("too_many_series") - before < 600
    assert len(subject.snapshot()) < 500_000
    assert len(subject._lanes[0]._rows) < 500
    [fired] = told(subject, run(2, "failed", jobs[-1].job))
    assert states([fired]) == [("firing", 2)]
    assert states(told(subject, run(3, "succeeded", jobs[-1].job))) == [("resolved", 3)]
    assert [reason for reason, _ in refused(outputs(subject, run(0.5, "failed", jobs[0].job)))] == ["too_late"]
    assert len(subject._lanes[0].labels) < 1500


# --- what is read


def test_topics_are_read_only_where_a_rule_looks_at_them(tmp_path: Path) -> None:
    assert Rules((rule(source="inference", expr="count > 1"),)).topics == ("windows",)
    assert Rules((DRIFTED,)).topics == ("windows", "drift")
    (tmp_path / "rules.yaml").write_text(
        '{rules: [{name: a, source: run, expr: "state == \\"failed\\"", severity: info, summary: a}]}'
    )
    settings = Settings(rules=RuleSettings(files=(tmp_path / "rules.yaml",)))
    assert rules_processor(settings).inputs == ("windows", "runs", "commands")


def test_rules_on_windows_and_results_do_not_get_in_each_others_way() -> None:
    subject = task(DRIFTED, FAILED, rule(name="w", source="inference", expr="count > 1"))
    assert subject.process("windows", []) == []
    [alert] = subject.process("drift", log([drift(1)]))
    assert alert.topic == "alerts"
    assert dict(subject.offsets()) == {"drift": 1}


def test_a_rule_that_is_gone_leaves_its_topic_and_its_alert_ends() -> None:
    before, after = task(DRIFTED), task(FAILED)
    assert len(told(before, drift(1))) == 1
    after.restore(before.snapshot())
    [ended] = told(after, run(2, "running"))
    assert (ended.state, ended.evidence["note"]) == ("resolved", "rule_changed")
    assert dict(after.offsets()) == {"runs": 1}


# --- what a rule may say


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"source": "drift", "expr": "drifted", "window": "1h"}, "`window`: drift results are no windows, each"),
        ({"source": "run", "expr": "duration_s > 1", "window": {"session_gap": "1m"}}, "`window`: runs are no windows"),
        ({"source": "drift", "expr": "drifted", "by": ["model"]}, "`by`: drift results do not add up; leave it"),
        ({"source": "drift", "expr": "drifted", "where": {"modle": "a"}}, "`where` names the label 'modle'; drift"),
        ({"source": "run", "expr": "duration_s > 1", "summary": "{run_id}"}, "`summary` names {run_id}; runs have job"),
        (
            {"source": "drift", "expr": "drift > 1"},
            "`expr`: column 1: 'drift' is not known here; allowed: statistic, threshold, drifted (true or false), "
            "sample_size, p_value, reference (a text), effect, q_value, weight, reference_size, reason (a text), "
            "labels.service|model|model_version|target|detector",
        ),
        (
            {"source": "run", "expr": 'duration_s > 1 && stat == "failed"'},
            "`expr`: column 19: 'stat' is not known here; allowed: run_id (a text), state (a text), duration_s, labels",
        ),
        ({"source": "run", "expr": 'labels.jbo == "a"'}, "`expr`: 'labels.jbo' is not known here; allowed: run_id"),
        ({"source": "run", "expr": "count > 1"}, "`expr`: column 1: 'count' is not known here; allowed: run_id"),
        ({"source": "run", "expr": "state > 1"}, "column 7: found no matching overload for '_>_' applied to '(text, n"),
        ({"source": "drift", "expr": "drifted > 0"}, "column 9: found no matching overload for '_>_'"),
        ({"source": "run", "expr": "state"}, "`expr`: it gives a text; a condition is true or false"),
        ({"source": "drift", "expr": "statistic"}, "`expr`: it gives a number; a condition is true or false"),
        ({"source": "run", "expr": 'state < "lost"'}, "`<` takes numbers here; texts and labels go with each"),
        ({"source": "drift", "field": "drifted", "above": 0}, "`field` is not a number in drift results; allowe"),
        ({"source": "run", "field": "state", "above": 0}, "`field` is not a number in runs; allowed: run_id"),
        (
            {"source": "drift", "expr": 'avg_over(statistic, "1d") > 1'},
            "`expr`: avg_over: drift results come when they come, and have no regular past",
        ),
        ({"source": "drift", "expr": "anomaly(statistic) > 1"}, "anomaly: drift results come when they come"),
        ({"source": "run", "expr": 'burn_rate(0.9, "1h") > 1'}, "burn_rate: runs come when they come"),
        ({"source": "run", "expr": "share_above(duration_s, 1) > 1"}, "found no matching overload for 'share_above'"),
        ({"source": "inference", "expr": "drifted"}, "`expr`: column 1: 'drifted' is not known here; allowed: count"),
        ({"source": "drfit", "expr": "drifted"}, "Invalid enum value 'drfit'"),
    ],
)  # fmt: skip
def test_what_results_do_not_have_is_refused_with_the_reason(said: dict[str, Any], expected: str) -> None:
    with pytest.raises(msgspec.ValidationError) as refusal:
        rule(**said)
    assert expected in str(refusal.value)


def test_a_file_names_line_and_column(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(
        "rules:\n  - name: a\n    source: run\n    expr: stat == 'failed'\n    severity: info\n    summary: a\n"
    )
    with pytest.raises(
        ConfigError, match=r"rules.yaml:4:11: rule 'a': .*`expr`: column 1: 'stat' is not known here; allowed: run"
    ):
        load_rules([file])


@pytest.mark.parametrize("name", ["drift", "run"])
def test_every_field_that_a_refusal_names_can_be_read(name: str) -> None:
    source = SOURCES[name]
    assert isinstance(source, Results)
    assert list(source.kinds) == [
        each.partition(" ")[0] for each in source.allowed.removeprefix("allowed: ").split(", ")[:-1]
    ]
    for field, kind in source.kinds.items():
        said = {"number": f"{field} > 1", "truth": field, "text": f'{field} == "a"'}[kind]
        assert rule(source=name, expr=said).fields == {field}


def test_the_results_on_the_page_are_results_and_its_rules_fire_on_them(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "rules.md").read_text(encoding="utf-8")
    section = page.partition("## Rules about drift and runs")[2].partition("\n## ")[0]
    rules, results = (re.findall(f"```{kind}\n(.*?)```", section, re.DOTALL)[0] for kind in ("yaml", "json"))
    (tmp_path / "rules.yaml").write_text(rules)
    subject = RulesTask(load_rules([tmp_path / "rules.yaml"]), 3)
    tested, ran = (msgspec.json.encode(each) for each in msgspec.json.decode(results))
    stamp = round(1000 * (T0 + HOUR_S))
    found = [*subject.process("drift", [Stored(tested, 0, stamp)]), *subject.process("runs", [Stored(ran, 0, stamp)])]
    assert [msgspec.json.decode(each.value or b"")["summary"] for each in found] == [
        "age of ranker has drifted: 0.31",
        "train-ranker: failed",
    ]


def test_what_decides_is_the_version_of_a_rule() -> None:
    assert DRIFTED.version != rule(source="drift", expr="drifted").version
    assert FAILED.version != UNTIL_GOOD.version
