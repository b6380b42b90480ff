"""Rules: what fires, what does not, and that no cut of the log changes a byte of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from streammon.broker import Headers, Outgoing
from streammon.commands import Acknowledge, Matcher, Silence
from streammon.errors import ConfigError
from streammon.results import Alert, Completeness, Distribution, Gauge, Window, counters_of
from streammon.sketch import Sketch
from streammon.tick import TICK
from streammon.topics import LARGE_RECORD_BYTES
from streammon_processors.rules import MAX_STATE_BYTES, Rule, Rules, RulesTask, WindowOf, load_rules
from streammon_processors.rules.description import Worse
from streammon_processors.shapes import Asked, session, tumbling

SIZE_S = 2.0
RANKER = {"service": "shop", "model": "ranker"}
SLOW = Rule(
    name="slow",
    source="inference",
    field="duration_s.p99",
    above=0.3,
    clear=0.2,
    for_s=4.0,
    severity="critical",
    summary="{service}/{model} is slow: {value}",
    resolution_steps=("look",),
    contact="#oncall",
    runbook_url="https://runbooks.example.com/slow",
)


class Stored(NamedTuple):
    """A record as a broker returns it."""

    value: bytes | None
    offset: int = 0
    partition: int = 3
    timestamp: int = 0
    key: bytes | None = None
    headers: Headers = ()


def distribution(value: float) -> Distribution:
    sketch = Sketch.of(np.array([value]))
    numbers = dict.fromkeys(("sum", "min", "max", "mean", "p50", "p90", "p99"), value)
    return Distribution(count=1, sketch=sketch, **numbers)


def window(index: int, p99: float | None = 0.1, series: dict[str, str] = RANKER, **fields: Any) -> Window:
    """The window number ``index`` of a series."""
    defaults: dict[str, Any] = {
        "source": "inference",
        "part": "main",
        "revision": 0,
        "series": series,
        "start_unix_s": index * SIZE_S,
        "end_unix_s": (index + 1) * SIZE_S,
        "size_s": SIZE_S,
        "partition": 3,
        "count": 1,
        "throughput_per_s": 0.5,
        "completeness": Completeness(),
        "duration_s": None if p99 is None else distribution(p99),
    }
    return Window(**(defaults | fields))


def log(windows: Iterable[Window], first: int = 0) -> list[Stored]:
    return [Stored(msgspec.json.encode(each), offset) for offset, each in enumerate(windows, first)]


def task(*rules: Rule, max_state_bytes: int = MAX_STATE_BYTES) -> RulesTask:
    return RulesTask(Rules(rules or (SLOW,)), 3, max_state_bytes=max_state_bytes)


def alerts(outputs: Iterable[Outgoing]) -> list[Alert]:
    assert all(output.topic == "alerts" for output in outputs)
    return [msgspec.json.decode(output.value or b"", type=Alert) for output in outputs]


def run(subject: RulesTask, *windows: Window) -> list[Alert]:
    """What anybody is told of."""
    return [each for each in follow(subject, *windows) if each.transition and not never_fired(each)]


def never_fired(alert: Alert) -> bool:
    return alert.state == "resolved" and alert.transition == 1


def follow(subject: RulesTask, *windows: Window) -> list[Alert]:
    """Every transition."""
    first = subject._next.get("windows", 0)
    return alerts(subject.process("windows", log(windows, first)))


def states(found: Iterable[Alert]) -> list[tuple[str, float]]:
    return [(alert.state, alert.updated_unix_s) for alert in found]


def values(*p99s: float | None) -> list[Window]:
    return [window(index, p99) for index, p99 in enumerate(p99s)]


def changed(rule: Rule = SLOW, **fields: Any) -> Rule:
    return msgspec.structs.replace(rule, **fields)


def skipped(reason: str) -> float:
    return REGISTRY.get_sample_value("streammon_rules_skipped_total", {"reason": reason}) or 0.0


# --- lifecycle


def test_breach_fires_when_it_has_held_for_for_s_and_not_before() -> None:
    assert states(run(task(), *values(0.1, 0.5, 0.5, 0.5))) == [("firing", 6.0)]


def test_breach_that_ends_before_for_s_pages_nobody_and_the_clock_starts_again() -> None:
    assert run(task(), *values(0.5, 0.1, 0.5, 0.1, 0.5)) == []


def test_a_value_between_clear_and_threshold_stops_pending_but_not_firing() -> None:
    assert run(task(), *values(0.5, 0.25, 0.5)) == []
    assert states(run(task(), *values(0.5, 0.5, 0.25, 0.25, 0.2))) == [("firing", 4.0), ("resolved", 10.0)]


def test_for_s_0_fires_on_the_first_window() -> None:
    assert states(run(task(changed(for_s=0.0)), *values(0.1, 0.5))) == [("firing", 4.0)]


def test_a_value_at_the_threshold_is_no_breach() -> None:
    assert run(task(changed(for_s=0.0)), *values(0.3)) == []


def test_for_s_is_reached_in_spite_of_rounding() -> None:
    cuts = [(17_000_000_003 + index) * 0.1 for index in range(3)]
    assert cuts[-1] - cuts[0] < 0.2
    windows = [window(0, 0.5, start_unix_s=start, end_unix_s=end) for start, end in pairwise(cuts)]
    assert len(run(task(changed(for_s=0.2)), *windows)) == 1


def test_below_fires_and_resolves_on_the_other_side() -> None:
    idle = changed(field="throughput_per_s", above=None, below=1.0, clear=2.0, for_s=0.0)
    rates = [window(index, throughput_per_s=rate) for index, rate in enumerate((3.0, 0.5, 1.5, 2.0))]
    fired, resolved = run(task(idle), *rates)
    assert (fired.condition, resolved.condition) == (
        "throughput_per_s 0.5/s < 1/s",
        "throughput_per_s 2/s ≥ 2/s",
    )


def test_second_episode_of_a_series_is_another_alert() -> None:
    found = run(task(), *values(0.5, 0.5, 0.1, 0.5, 0.5, 0.1))
    assert [(alert.state, alert.transition) for alert in found] == [("firing", 1), ("resolved", 2)] * 2
    assert found[0].id == found[1].id != found[2].id == found[3].id


def test_series_are_followed_apart() -> None:
    other = {**RANKER, "model": "scorer"}
    found = run(
        task(),
        *(window(index, p99, series) for index in range(3) for series, p99 in ((RANKER, 0.5), (other, 0.1))),
    )
    assert [alert.labels for alert in found] == [RANKER]


def test_where_limits_a_rule_to_series_with_these_labels() -> None:
    assert run(task(changed(where={"model": "scorer"})), *values(0.5, 0.5)) == []
    assert len(run(task(changed(where={"model": "ranker"})), *values(0.5, 0.5))) == 1


def test_rule_for_resources_reads_gauges_with_dots_in_their_names() -> None:
    full = changed(source="resource", field="gauges.cpu.utilization.last", above=0.9, clear=None, for_s=0.0)
    gauge = Gauge(min=0.5, max=0.99, mean=0.9, last=0.954)
    (found,) = run(task(full), window(0, None, {"host": "a"}, source="resource", gauges={"cpu.utilization": gauge}))
    assert found.condition == "last of cpu.utilization 95.4 % > 90 %"


def service_window(index: int, requests: float, *latencies: float, **fields: Any) -> Window:
    found = Distribution(
        count=len(latencies), sketch=Sketch.of(np.array(latencies)), sum=sum(latencies), min=min(latencies),
        max=max(latencies), mean=0.0, p50=0.0, p90=0.0, p99=sorted(latencies)[-1],
    )  # fmt: skip
    sums = {"http-requests": requests, "sent_bytes_total": 1.0}
    named = {"counters": counters_of(sums, SIZE_S), "distributions": {"http.latency_s": found}}
    return window(index, None, {"id": "shop"}, source="resource", **(named | fields))


@pytest.mark.parametrize(
    ("expr", "condition"),
    [
        ('counters["http-requests"].per_s > 100', "per_s of http-requests 200/s > 100/s"),
        ('counters["http-requests"].sum > 100', "sum of http-requests 400 > 100"),
        ("distributions.http.latency_s.p99 > 0.3", "p99 of http.latency_s 500 ms > 300 ms"),
        ("distributions.http.latency_s.count > 2", "count of http.latency_s 4 > 2"),
        ("share_above(distributions.http.latency_s, 0.2) > 0.3", "share_above(http.latency_s, 0.2) 0.5 > 0.3"),
        (
            'quantile(distributions.http.latency_s, 0.5, "10s") < 0.3',
            "quantile(http.latency_s, 0.5, 10s) 100.1 ms",
        ),
        (
            'burn_rate(distributions.http.latency_s, 0.2, 0.9, "10s") > 3',
            "burn_rate(http.latency_s, 0.2, 0.9, 10s) 5",
        ),
        ('sum_over(counters["http-requests"].sum, "10s") > 500', "sum_over(sum of http-requests, 10s) 800 > 500"),
        ("counters.sent_bytes_total.per_s > 0.4 && counters.sent_bytes_total.sum > 0.9", "sum of sent_bytes_total 1 B"),
    ],
)
def test_rule_for_resources_reads_counters_and_distributions(expr: str, condition: str) -> None:
    rule = Rule(name="r", source="resource", expr=expr, severity="warning", summary="{value}", for_s=0.0)
    quiet = {"counters": None, "distributions": None}
    log = [service_window(0, 1.0, 0.1, **quiet), *(service_window(n, 400.0, 0.1, 0.1, 0.3, 0.5) for n in (1, 2))]
    found = run(task(rule), *log)[0]
    assert condition in found.condition
    assert "sketch" not in found.evidence["window"]["distributions"]["http.latency_s"]
    assert found.evidence["window"]["counters"]["http-requests"]["sum"] == 400.0


def test_distributions_of_more_than_can_be_counted_stop_no_rule() -> None:
    most = Distribution(
        count=2**53 - 1, sum=0.0, min=0.0, max=1.0, mean=0.0, p50=0.0, p90=0.0, p99=0.0,
        sketch=Sketch.of_equal(0.5, 2**53 - 1),
    )  # fmt: skip
    expr = 'quantile(distributions.x, 0.5, "10s") > 0.4 && burn_rate(distributions.x, 0.2, 0.9, "10s") > 1'
    rule = Rule(name="r", source="resource", expr=expr, severity="warning", summary="{value}", for_s=0.0)
    claimed = [window(n, None, {"id": "a"}, source="resource", distributions={"x": most}) for n in range(4)]
    assert states(run(task(rule), *claimed)) == [("firing", 2.0)]


def test_inference_windows_have_no_counters_of_senders() -> None:
    with pytest.raises(ValueError, match=r"counters\.x\.sum"):
        Rule(name="r", source="inference", expr="counters.x.sum > 1", severity="warning", summary="")


def test_a_window_without_the_field_says_nothing() -> None:
    assert states(run(task(), *values(0.5, None, 0.5, None))) == [("firing", 6.0)]


def test_pending_outlives_a_short_silence_but_not_a_long_one() -> None:
    assert len(run(task(), window(0, 0.5), window(100, 0.5))) == 1
    assert run(task(), window(0, 0.5), window(200, 0.5)) == []


def test_series_that_vanishes_while_firing_is_not_resolved() -> None:
    other = {**RANKER, "model": "scorer"}
    subject = task()
    assert states(run(subject, *values(0.5, 0.5))) == [("firing", 4.0)]
    assert run(subject, *(window(index, 0.1, other) for index in range(2, 500))) == []
    assert states(run(subject, window(501, 0.1))) == [("resolved", 1004.0)]


def test_supplements_and_windows_of_nothing_are_not_evaluated() -> None:
    before = skipped("supplement"), skipped("no_series")
    late = [window(index, 0.5, part="late", revision=1) for index in range(5)]
    nothing = [window(index, 0.5, {}, count=0) for index in range(5)]
    assert run(task(changed(for_s=0.0)), *late, *nothing) == []
    assert (skipped("supplement"), skipped("no_series")) == (before[0] + 5, before[1] + 5)


# --- what the alert says


def test_firing_alert_tells_a_person_all_they_need() -> None:
    (alert,) = run(task(), window(0, 0.5), window(1, 0.512))
    assert alert.condition == "p99 of duration_s 512 ms > 300 ms for 4 s"
    assert alert.summary == "shop/ranker is slow: 512 ms"
    assert (alert.severity, alert.labels, alert.value) == ("critical", RANKER, 0.512)
    assert (alert.started_unix_s, alert.updated_unix_s, alert.ended_unix_s) == (0.0, 4.0, None)
    assert (alert.contact, alert.resolution_steps) == ("#oncall", ["look"])
    assert alert.runbook_url == "https://runbooks.example.com/slow"


def test_resolved_alert_carries_the_same_id_and_its_end() -> None:
    fired, resolved = run(task(), *values(0.5, 0.5, 0.1))
    assert resolved.id == fired.id
    assert (resolved.state, resolved.transition, resolved.ended_unix_s) == ("resolved", 2, 6.0)
    assert resolved.condition == "p99 of duration_s 100 ms ≤ 200 ms"
    assert resolved.summary == fired.summary, "the summary says what it was about, the condition how it is now"


def test_evidence_is_the_window_without_its_sketches() -> None:
    (alert,) = run(task(), *values(0.5, 0.5))
    seen = alert.evidence["window"]
    assert (seen["start_unix_s"], seen["duration_s"]["p99"]) == (2.0, 0.5)
    assert "sketch" not in seen["duration_s"]


def test_alert_goes_to_the_partition_of_its_window_under_its_id() -> None:
    pending, output = task().process("windows", log(values(0.5, 0.5)))
    assert pending.key == output.key
    alert = msgspec.json.decode(output.value or b"", type=Alert)
    assert (output.partition, output.key) == (3, alert.id.encode())
    assert dict(output.headers) == {"streammon-schema": b"1"}


def test_label_that_looks_like_a_template_is_not_expanded_and_unknown_names_stay() -> None:
    rule = changed(summary="{model} {nothing}", for_s=0.0)
    (alert,) = run(task(rule), window(0, 0.5, {"model": "{value}"}))
    assert alert.summary == "{value} {nothing}"


# --- pending, acknowledged, silent


def acknowledge(subject: RulesTask, *given: Alert, transition: int | None = None) -> list[Alert]:
    """What comes of somebody acknowledging these alerts."""
    commands = [
        Acknowledge(
            id=f"c{number}",
            time_unix_s=99.0,
            by="kim",
            alert_id=alert.id,
            transition=alert.transition if transition is None else transition,
            note="on it",
        )
        for number, alert in enumerate(given)
    ]
    return alerts(
        subject.process("commands", [Stored(msgspec.json.encode(each), at) for at, each in enumerate(commands)])
    )


def test_a_breach_that_has_not_held_yet_is_pending_and_nobody_is_told() -> None:
    pending, fired, resolved = follow(task(), *values(0.5, 0.5, 0.1))
    assert [(alert.state, alert.transition) for alert in (pending, fired, resolved)] == [
        ("pending", 0),
        ("firing", 1),
        ("resolved", 2),
    ]
    assert [alert.has_fired for alert in (pending, fired, resolved)] == [False, True, True]
    assert pending.id == fired.id == resolved.id
    begun, ended = follow(task(), *values(0.5, 0.1))
    assert (ended.state, ended.transition, ended.has_fired) == ("resolved", 1, False)
    assert begun.id == ended.id


def test_acknowledging_is_a_transition_that_says_who_and_ends_with_the_alert() -> None:
    subject = task(changed(for_s=0.0))
    (fired,) = run(subject, window(0, 0.5))
    (known,) = acknowledge(subject, fired)
    assert (known.id, known.state, known.transition) == (fired.id, "acknowledged", 2)
    assert known.evidence["acknowledged"] == {"by": "kim", "via": "cli", "time_unix_s": 99.0, "note": "on it"}
    assert (known.condition, known.summary, known.value) == (fired.condition, fired.summary, fired.value)
    assert run(subject, window(1, 0.5)) == []
    (resolved,) = run(subject, window(2, 0.1))
    assert (resolved.state, resolved.transition) == ("resolved", 3)
    assert acknowledge(subject, fired) == [], "it has ended"


def test_only_the_state_that_a_person_saw_is_acknowledged() -> None:
    subject = task(changed(for_s=0.0))
    (fired,) = run(subject, window(0, 0.5))
    before = skipped("nothing_to_acknowledge")
    assert acknowledge(subject, fired, transition=0) == []
    assert acknowledge(subject, fired, transition=2) == []
    assert len(acknowledge(subject, fired, fired)) == 1, "twice is once"
    assert skipped("nothing_to_acknowledge") == before + 3


def test_an_acknowledgement_survives_a_restart_and_what_gets_worse_fires_anew() -> None:
    rules = changed(for_s=0.0, severity="warning", ladder=(Worse(severity="critical", above=1.0),))
    subject = task(rules)
    (fired,) = run(subject, window(0, 0.5))
    acknowledge(subject, fired)
    again = task(rules)
    again.restore(subject.snapshot())
    assert again.offsets() == {"commands": 1, "windows": 1}
    worse, milder, resolved = run(again, *(window(at, p99) for at, p99 in ((1, 0.6), (2, 2.0), (3, 0.5), (4, 0.1))))
    assert (worse.state, worse.severity, worse.transition) == ("firing", "critical", 3)
    assert (milder.state, milder.severity, milder.transition) == ("firing", "warning", 4)
    assert (resolved.state, resolved.transition) == ("resolved", 5)


def test_other_commands_are_nothing_to_rules_and_what_is_no_command_is_a_dead_letter() -> None:
    silence = Silence(
        id="s", time_unix_s=1.0, by="kim", starts_unix_s=1.0, ends_unix_s=2.0,
        matchers=[Matcher(label="rule", operator="=", value="slow")],
    )  # fmt: skip
    records = [msgspec.json.encode(silence), TICK, b'{"type":"dance"}']
    (dead,) = task().process("commands", [Stored(value, at) for at, value in enumerate(records)])
    assert (dead.topic, dead.partition, dead.value) == ("deadletter", 3, records[2])
    assert dict(dead.headers)["topic"] == b"commands"


SILENT: dict[str, Any] = {"no_data_for": "10s", "warm_up": "4s", "for_s": 0.0}


@pytest.mark.parametrize(("no_data", "expected"), [("hold", []), ("fire", ["no_data"]), ("resolve", ["resolved"])])
def test_a_series_that_falls_silent_while_firing(no_data: Any, expected: list[str]) -> None:
    subject = task(changed(no_data=no_data, **SILENT))
    run(subject, *values(0.1, 0.1, 0.5))
    others = [window(at, 0.1, {"service": "other"}) for at in range(3, 9)]
    found = run(subject, *others)
    assert [alert.state for alert in found] == expected
    assert [alert.updated_unix_s for alert in found] == [16.0] * len(expected), "the first start 10 s after its end"


def test_silence_fires_by_the_passing_of_broker_time_when_nobody_writes() -> None:
    subject = task(changed(no_data="fire", **SILENT))
    first = log(values(0.1, 0.1, 0.1))
    subject.process("windows", [each._replace(timestamp=7000) for each in first])
    assert list(subject.waiting) == ["windows"]
    ticks = [Stored(TICK, 3 + at, timestamp=7000 + 1000 * at) for at in range(40)]
    (silent,) = alerts(subject.process("windows", ticks))
    assert (silent.state, silent.transition, silent.value) == ("no_data", 1, None)
    assert silent.condition == "no data for 10 s"
    assert silent.updated_unix_s == pytest.approx(16.0), "10 s of silence, by a clock that is 10 s behind"
    assert not subject.waiting, "everybody is silent already"


def test_a_log_in_which_nobody_wrote_is_no_silence_of_the_series() -> None:
    subject = task(changed(no_data="fire", **SILENT))
    first = [each._replace(timestamp=7000) for each in log(values(0.1, 0.1, 0.1))]
    later = Stored(msgspec.json.encode(window(3, 0.1)), 3, timestamp=9_000_000)
    assert subject.process("windows", [*first, later]) == []


def test_a_series_is_missed_only_when_it_has_been_there_for_a_while() -> None:
    subject = task(changed(no_data="fire", **SILENT))
    run(subject, window(0, 0.1), *(window(at, 0.1, {"service": "other"}) for at in range(3)))
    assert run(subject, *(window(at, 0.1, {"service": "third"}) for at in range(3, 8))) == []


def test_a_series_that_is_heard_again_resolves_its_silence() -> None:
    subject = task(changed(no_data="fire", **SILENT))
    run(subject, *values(0.1, 0.1, 0.1), *(window(at, 0.1, {"service": "other"}) for at in range(3, 9)))
    (resolved,) = run(subject, window(9, 0.1))
    assert (resolved.state, resolved.transition, resolved.labels) == ("resolved", 2, RANKER)
    assert resolved.condition == "p99 of duration_s 100 ms ≤ 200 ms"


# --- replay, restore, bounds


def test_windows_that_repeat_or_go_back_in_time_page_nobody_again() -> None:
    once = values(0.1, 0.5, 0.5, 0.1, 0.5, 0.5, 0.1, 0.1)
    subject = task()
    assert len(run(subject, *once)) == 4
    assert run(subject, *once) == []
    before = skipped("back_in_time")
    assert run(subject, *once[:-1]) == []
    assert skipped("back_in_time") == before + len(once) - 1


def test_every_window_evaluated_twice_gives_the_same_alerts() -> None:
    once = values(0.1, 0.5, 0.5, 0.1, 0.5, 0.5, 0.1, 0.1)
    assert run(task(), *(each for each in once for _ in range(2))) == run(task(), *once)


SERIES = st.sampled_from([RANKER, {"model": "scorer", "service": "shop"}, {"service": "chat", "model": "x"}])
SEEN = st.tuples(
    st.integers(0, 40),
    SERIES,
    st.sampled_from([None, 0.1, 0.25, 0.5]),
    st.sampled_from(["inference", "resource"]),
)


@st.composite
def logs_with_cuts(draw: Callable[[Any], Any]) -> tuple[list[Stored], list[int]]:
    """Windows mostly in order, some repeated or misplaced, and where to stop and restore."""
    seen: list[Any] = draw(st.lists(SEEN, max_size=60, unique_by=lambda each: (each[0], str(each[1]), each[3])))
    ordered = sorted([*seen, *seen[::7]], key=lambda each: each[0]) + seen[:5]
    records = log(window(index, p99, series, source=source) for index, series, p99, source in ordered)
    cuts: set[int] = draw(st.sets(st.integers(0, len(records))))
    return records, sorted(cuts)


IDLE = Rule(
    name="idle",
    source="resource",
    field="count",
    below=2,
    for_s=6.0,
    severity="info",
    summary="{service} idles",
)


def parts(records: Sequence[Stored], cuts: Sequence[int]) -> list[Sequence[Stored]]:
    ends = [0, *cuts, len(records)]
    return [records[begin:end] for begin, end in pairwise(ends)]


@given(logs_with_cuts())
def test_any_cut_with_a_restore_in_between_gives_the_same_bytes(
    cut_log: tuple[list[Stored], list[int]],
) -> None:
    records, cuts = cut_log
    rules = (changed(for_s=0.0, name="now"), SLOW, IDLE)
    whole = task(*rules, max_state_bytes=1800)
    expected = whole.process("windows", records)

    outputs: list[Outgoing] = []
    snapshot = task().snapshot()
    for part in parts(records, cuts):
        subject = task(*rules, max_state_bytes=1800)
        subject.restore(snapshot)
        outputs += subject.process("windows", part)
        snapshot = subject.snapshot()
    assert outputs == expected
    assert snapshot == whole.snapshot()
    pages = [(alert.id, alert.transition) for alert in alerts(outputs)]
    assert len(pages) == len(set(pages))


@given(logs_with_cuts())
def test_restored_task_has_the_same_snapshot_and_offsets(cut_log: tuple[list[Stored], list[int]]) -> None:
    original, restored = task(SLOW, IDLE), task(SLOW, IDLE)
    original.process("windows", cut_log[0])
    restored.restore(original.snapshot())
    assert restored.snapshot() == original.snapshot()
    assert restored.offsets() == original.offsets()


def test_offsets_name_the_next_record_to_read() -> None:
    subject = task()
    assert subject.offsets() == {}
    run(subject, *values(0.1, 0.1, 0.1))
    assert subject.offsets() == {"windows": 3}


@pytest.mark.parametrize(
    ("rules", "note"),
    [((), "rule_removed"), ((changed(above=0.4),), "rule_changed")],
    ids=["removed", "changed"],
)
def test_rule_that_goes_while_firing_is_resolved_at_the_next_window_and_says_so(
    rules: tuple[Rule, ...], note: str
) -> None:
    before = task()
    (fired,) = run(before, *values(0.5, 0.5))
    after = RulesTask(Rules(rules), 3)
    after.restore(before.snapshot())
    again = RulesTask(Rules(rules), 3)
    again.restore(after.snapshot())  # not yet announced, so not yet forgotten
    (resolved,) = run(again, window(2, 0.1, {"service": "chat"}))
    assert (resolved.id, resolved.state, resolved.transition) == (fired.id, "resolved", 2)
    assert resolved.evidence["note"] == note
    assert run(again, window(3, 0.1)) == []


def test_changed_rule_starts_anew_and_its_alert_has_another_id_even_from_the_same_window() -> None:
    before, after = task(changed(for_s=0.0)), task(changed(for_s=0.0, above=0.4))
    (fired,) = run(before, window(0, 0.5))
    after.restore(before.snapshot())
    resolved, fired_again = run(after, window(0, 0.5))
    assert (resolved.id, resolved.state) == (fired.id, "resolved")
    assert fired_again.state == "firing"
    assert fired_again.id != fired.id


def test_equal_states_are_equal_bytes_however_they_came_about() -> None:
    one, other = task(), task()
    windows = [window(0, 0.5, {"service": name}) for name in "ab"] + [window(0, 0.5, source="resource")]
    run(one, *windows)
    run(other, *reversed(windows))
    assert one.snapshot() == other.snapshot()


def test_a_rule_with_a_long_for_s_is_as_patient_and_does_not_heed_other_sources() -> None:
    patient = changed(for_s=500.0)
    ahead = window(1000, None, source="resource")
    assert len(run(task(patient), window(0, 0.5), ahead, window(249, 0.5))) == 1


def test_texts_may_be_corrected_while_firing() -> None:
    before = task()
    (fired,) = run(before, *values(0.5, 0.5))
    after = task(changed(summary="clearer", contact="#elsewhere"))
    after.restore(before.snapshot())
    (resolved,) = run(after, window(2, 0.5), window(3, 0.1))
    assert (resolved.id, resolved.state, resolved.summary) == (fired.id, "resolved", "clearer")


def test_series_without_trouble_have_no_state() -> None:
    subject = task()
    run(subject, *(window(0, 0.1, {"service": str(number)}) for number in range(1000)))
    assert len(subject.snapshot()) < 100


def test_pending_series_that_fell_silent_are_forgotten() -> None:
    subject = task()
    run(subject, *(window(0, 0.5, {"service": str(number)}) for number in range(100)))
    assert len(subject.snapshot()) > 10_000
    run(subject, window(1000, 0.1))
    assert len(subject.snapshot()) < 100


def test_breaches_beyond_the_bound_are_counted_and_the_others_go_on() -> None:
    before = skipped("too_many_episodes")
    names = [{"service": str(number)} for number in range(5)]
    windows = (window(index, 0.5, each) for index in range(2) for each in names)
    found = run(task(max_state_bytes=780), *windows)
    assert [alert.labels for alert in found] == names[:2]
    assert skipped("too_many_episodes") == before + 6


@pytest.mark.parametrize("label", ["/v1/recommendations", "ü" * 500, "\x01" * 600], ids=["path", "ü", "escape"])
def test_full_snapshot_fits_into_one_record(label: str) -> None:
    subject, before = task(changed(for_s=0.0)), skipped("too_many_episodes")
    names = [{**RANKER, "endpoint": f"{number}{label}"} for number in range(5000)]
    start = 1_738_332_202.123456
    found = run(subject, *(window(0, 0.5, each, start_unix_s=start, end_unix_s=start + 2) for each in names))
    assert len(found) + skipped("too_many_episodes") - before == 5000
    assert 0.5 * MAX_STATE_BYTES < len(subject.snapshot()) <= MAX_STATE_BYTES


def test_a_partition_follows_its_share_of_a_storm_of_10_000_alerts() -> None:
    subject = task(changed(for_s=0.0))
    names = [
        {"service": f"service-{number % 100}", "model": f"model-{number}", "endpoint": "/v1"} for number in range(3000)
    ]
    assert len(run(subject, *(window(0, 0.5, each) for each in names))) == len(names)
    assert len(subject.snapshot()) <= LARGE_RECORD_BYTES


def test_room_is_given_back_when_alerts_end() -> None:
    subject = task(max_state_bytes=450)
    for index, name in enumerate("abc"):
        episode = [window(3 * index + step, p99, {"service": name}) for step, p99 in enumerate((0.5, 0.5, 0.1))]
        assert [alert.state for alert in run(subject, *episode)] == ["firing", "resolved"]


def test_series_with_endless_labels_is_not_followed_and_counted() -> None:
    before = skipped("labels_too_long")
    assert run(task(), *(window(index, 0.5, {"service": "x" * 5000}) for index in range(3))) == []
    assert skipped("labels_too_long") == before + 3


def test_window_too_large_for_evidence_is_left_out_and_the_alert_says_so() -> None:
    gauges = {f"gauge {number:04}": Gauge(min=0, max=0, mean=0, last=0) for number in range(3000)}
    (alert,) = run(task(changed(for_s=0.0)), window(0, 0.5, gauges=gauges))
    assert alert.evidence == {"note": "window_too_large"}


def test_what_no_rule_reads_of_a_window_may_be_broken() -> None:
    value = msgspec.json.encode(window(0, 0.5))[:-1] + b',"x":"\xff"}'
    (output,) = task(changed(for_s=0.0)).process("windows", [Stored(value)])
    assert alerts([output])[0].evidence == {"note": "window_unreadable"}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"{", b"invalid_json"),
        (None, b"invalid_json"),
        (b'{"type":"window","x":"\xff"}', b"invalid_event"),
        (b"[" * 100_000, b"invalid_event"),
        (b'{"type":"alert"}', b"invalid_event"),
        (msgspec.json.encode(window(0, start_unix_s=1e12)), b"invalid_event"),
        (msgspec.json.encode(window(0, schema=2)), b"unknown_schema"),
    ],
    ids=str,
)
def test_record_that_is_no_window_becomes_a_dead_letter_and_the_next_is_evaluated(
    value: bytes | None, reason: bytes
) -> None:
    good = log(values(0.5, 0.5))
    pending, dead, fired = task().process("windows", [good[0], Stored(value, 7), good[1]._replace(offset=8)])
    headers = dict(dead.headers)
    assert (dead.topic, dead.partition, dead.value) == ("deadletter", 3, value)
    assert (headers["reason"], headers["topic"], headers["offset"]) == (reason, b"windows", b"7")
    assert pending.topic == fired.topic == "alerts"


# --- files

GOOD = """
rules:
  - name: slow
    source: inference
    field: duration_s.p99
    above: 3e-1
    severity: critical
    summary: slow
"""


def loaded(tmp_path: Path, text: str) -> Rules:
    file = tmp_path / "rules.yaml"
    file.write_text(text, encoding="utf-8")
    return load_rules([file])


def test_example_file_is_valid_and_its_rules_fire() -> None:
    rules = load_rules([Path(__file__).parents[2] / "examples" / "rules.yaml"])
    subject = RulesTask(rules, 3)
    demo = {"service": "phishing-api", "model": "m"}
    windows = (window(index, 0.5, demo, error_count=1, error_rate=0.25) for index in range(5))
    assert [alert.summary for alert in run(subject, *windows)] == [
        "Predictions of phishing-api/m are slow: p99 is 500 ms",
        "25 % of the requests to phishing-api/m fail",
    ]


def test_number_in_exponent_form_is_a_number(tmp_path: Path) -> None:
    assert loaded(tmp_path, GOOD).rules[0].above == 0.3


def test_rule_on_a_distribution_that_windows_leave_out_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(GOOD, encoding="utf-8")
    assert load_rules([file], ["duration_s"]).rules
    with pytest.raises(ConfigError, match=r"'slow' asks for 'duration_s'.*inference_distributions lacks duration_s"):
        load_rules([file], ["ttft_s"])


def test_version_changes_with_what_decides_and_with_nothing_else() -> None:
    assert changed(above=0.31).version != SLOW.version
    assert changed(severity="info").version != SLOW.version
    assert changed(where={"a": "b"}).version != SLOW.version
    assert changed(summary="x", runbook_url=None, escalation=("y",)).version == SLOW.version


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "above: 3e-1",
            "above: fast",
            ":6:12: rule 'slow': above = 'fast': Expected `float | null`",
        ),
        ("above: 3e-1", "above: .nan", ":6:12: rule 'slow': above = '.nan': `above` must be a finite number"),
        (
            "above: 3e-1",
            "abvoe: 1",
            "abvoe = '1': Object contains unknown field `abvoe`; allowed: name,",
        ),
        (
            "above: 3e-1",
            "for_s: 1",
            ":3:5: rule 'slow': `above` or `below`: exactly one of them",
        ),
        ("above: 3e-1", "above: 1\n    below: 0", "exactly one of them must be given"),
        (
            "above: 3e-1",
            "above: 1\n    clear: 2",
            ":7:12: rule 'slow': clear = '2': `clear` lies",
        ),
        ("above: 3e-1", "below: 3\n    clear: 2", "it must be at least `below`, 3"),
        ("above: 3e-1", "above: 1\n    above: 2", ":7:5: `above` is given twice; keep one"),
        (
            "critical",
            "fatal",
            ":7:15: rule 'slow': severity = 'fatal': Invalid enum",
        ),
        (
            "duration_s.p99",
            "duration_s.p95",
            ":5:12: rule 'slow': field = 'duration_s.p95': `field`",
        ),
        (
            "source: inference",
            "source: resource",
            "allowed: count, throughput_per_s, gauges.NAME.min|",
        ),
        ("summary: slow", "where: {version: 1.10}", "where.version = '1.10': Expected `str`, got `float`"),
        ("summary: slow", "contact: x", ":3:5: rule 'slow': Object missing required field `summary`"),
        ("rules:", "rule:", ":3:3: Object contains unknown field `rule`; allowed: rules"),
        ("name: slow", "name: a b", ":3:11: rule 'a b': name = 'a b': Expected `str` matching regex"),
        ("summary: slow", "summary: [", "is not valid YAML"),
        (
            "summary: slow",
            "summary: slow\n    window: 5x",
            "`window`: '5x' is no duration; write a number of seconds, or a text such as 90s, 5m, 1h or 3d",
        ),
        ("summary: slow", "summary: slow\n    window: -2", "`window`: -2.0 is no duration; write"),
        (
            "summary: slow",
            "summary: slow\n    window: {size: 5m, session_gap: 30s}",
            "`window` is a duration, {size, every} or {session",
        ),
        (
            "summary: slow",
            "summary: slow\n    window: {every: 30s}",
            "`window` is a duration, {size, every} or {session_gap}",
        ),
        ("summary: slow", "summary: slow\n    window: {size: 5m, every: 2m}", "`size` must be 1 to 120 times `every`"),
        ("summary: slow", "summary: slow\n    window: {length: 5m}", "unknown field `length`; allowed: size, every,"),
    ],
)
def test_wrong_file_is_refused_with_place_value_and_what_is_allowed(
    tmp_path: Path, old: str, new: str, expected: str
) -> None:
    with pytest.raises(ConfigError) as refusal:
        loaded(tmp_path, GOOD.replace(old, new))
    assert str(tmp_path / "rules.yaml") in str(refusal.value)
    assert expected in str(refusal.value)


def test_missing_file_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: No such file"):
        load_rules([tmp_path / "nowhere.yaml"])


def test_two_rules_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"rules\.yaml:\d+:\d+: rule 'slow' is already in"):
        loaded(tmp_path, GOOD + GOOD.replace("\nrules:", ""))


def test_a_condition_never_tells_what_is_not_so() -> None:
    """Here labels end the firing, and not the number."""
    ends = 'labels.service == "shop"'
    rule = changed(field=None, above=None, expr="duration_s.p99 > 0.3", for_s=0.0, clear=ends)
    told = [each.condition for each in follow(task(rule), *values(0.5, 0.5))]
    assert told[0] == "p99 of duration_s 500 ms > 300 ms"
    assert not any("500 ms ≤ 300 ms" in each for each in told)


# --- windows: which of them a rule looks at


def rollup(index: int, p99: float, size_s: float = 60.0, **fields: Any) -> Window:
    """The window number ``index`` of that length."""
    length = {"start_unix_s": index * size_s, "end_unix_s": (index + 1) * size_s, "size_s": size_s, "of_s": SIZE_S}
    return window(0, p99, **(length | fields))


def test_a_rule_looks_at_base_windows_unless_it_says_otherwise() -> None:
    at_once = changed(for_s=0.0)
    hopping = rollup(0, 0.5, kind="hopping", every_s=30.0)
    assert run(task(at_once), rollup(0, 0.5), hopping, rollup(0, 0.5, kind="session", gap_s=30.0)) == []
    assert states(run(task(at_once), window(0, 0.5))) == [("firing", 2.0)]


@pytest.mark.parametrize(
    ("asked", "shape"),
    [
        ("1m", {}),
        (60, {}),
        (WindowOf(size="60s"), {}),
        (WindowOf(size="1m", every=60), {}),
        (WindowOf(size="1m", every="30s"), {"kind": "hopping", "every_s": 30.0}),
        (WindowOf(session_gap="30s"), {"kind": "session", "gap_s": 30.0}),
    ],
)
def test_a_rule_looks_at_the_windows_that_it_asks_for_and_at_no_others(asked: Any, shape: dict[str, Any]) -> None:
    rule = changed(for_s=0.0, window=asked)
    others = [
        window(0, 0.5),
        rollup(0, 0.5, 300.0),
        rollup(0, 0.5, kind="hopping", every_s=20.0),
        rollup(0, 0.5, kind="session", gap_s=20.0),
    ]
    assert run(task(rule), *others) == []
    assert states(run(task(rule), *others, rollup(0, 0.5, **shape))) == [("firing", 60.0)]


def test_base_windows_of_the_length_that_is_asked_for_will_do() -> None:
    rule = changed(for_s=0.0, window=60)
    assert states(run(task(rule), rollup(0, 0.5, of_s=None))) == [("firing", 60.0)]


def test_windows_of_each_length_come_in_an_order_of_their_own() -> None:
    rules = changed(for_s=0.0), changed(name="minutes", for_s=0.0, window="1m")
    found = run(task(*rules), window(29, 0.1), window(30, 0.1), rollup(0, 0.5), window(31, 0.5), rollup(1, 0.1))
    assert [(alert.rule, alert.state) for alert in found] == [
        ("minutes", "firing"),
        ("slow", "firing"),
        ("minutes", "resolved"),
    ]


def test_sessions_are_looked_at_in_the_order_of_their_ends() -> None:
    rule = changed(for_s=0.0, window=WindowOf(session_gap=30))
    long, short = (
        rollup(0, 0.5, series={**RANKER, "endpoint": name}, kind="session", gap_s=30.0, start_unix_s=start)
        for name, start in (("/short", 40.0), ("/long", 0.0))
    )
    assert len(run(task(rule), long, short)) == 2


def test_a_rule_that_moves_to_other_windows_is_another_version() -> None:
    versions = {changed(window=window).version for window in (None, "1m", "5m", WindowOf(size="5m", every="1m"))}
    assert len(versions) == 4
    assert changed(window="60s").version == changed(window="1m").version == changed(window=60).version


def test_ticks_are_no_windows() -> None:
    subject = task()
    assert subject.process("windows", [Stored(TICK, 7)]) == []
    assert subject.offsets() == {"windows": 8}


def test_the_windows_that_rules_ask_for_are_named_with_the_rule() -> None:
    rules = Rules((SLOW, changed(name="minutes", window="5m"), changed(name="busy", window=WindowOf(session_gap=9))))
    assert list(rules.asked) == [
        Asked(tumbling(300.0), "inference", "rule 'minutes'"),
        Asked(session(9.0), "inference", "rule 'busy'"),
    ]
