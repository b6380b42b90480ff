"""PromQL becomes our rules: what is translated means the same; what is not understood is refused, with its reason."""

from __future__ import annotations

from math import inf
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from streammon.config import WindowSettings
from streammon.results import Gauge, counters_of
from streammon_processors.replay import Range
from streammon_processors.rules import Rule, Rules
from streammon_processors.rules.backtest.by_groups import group_alerts_of
from streammon_processors.rules.backtest.columns import panel
from streammon_processors.rules.backtest.judging import fired
from streammon_processors.rules.prometheus.metrics import meaning_of
from streammon_processors.rules.prometheus.promql import PromqlError, parse
from streammon_processors.rules.prometheus.translation import Knowledge, UntranslatedError, translate
from tests.processors.test_rules import run, states, task, window

HOST = {"entity": "host", "host": "web-1", "id": "web-1"}
CPU_IDLE = 'avg by (instance) (rate(node_cpu_seconds_total{mode="idle"}[5m]))'
ERRORS = 'rate(http_requests_total{code=~"5.."}[5m])'
ALL = "rate(http_requests_total[5m])"
NOTHING = Knowledge()
WHOLE = "service, model, model_version, endpoint"


def rule(expr: str, knowledge: Knowledge = NOTHING) -> Rule:
    fields = {"name": "imported", "severity": "warning", "summary": "", **translate(expr, knowledge).fields}
    return msgspec.convert(fields, Rule, strict=False)


def fires(expr: str, series: dict[str, str], knowledge: Knowledge = NOTHING, **fields: Any) -> bool:
    windows = [window(number, None, series, **fields) for number in range(3)]
    return bool(states(run(task(rule(expr, knowledge)), *windows)))


def gauges(**values: float) -> dict[str, Any]:
    made = {name: Gauge(min=value, max=value, mean=value, last=value) for name, value in values.items()}
    return {"source": "resource", "gauges": made}


@pytest.mark.parametrize(
    ("promql", "cel"),
    [
        (f"{CPU_IDLE} * 100 < 20", 'avg_over(gauges.idle_fraction.mean, "5m") * 100 < 20'),
        ("100 - (node_load1 - 5) > 80", "100 - (gauges.load_1m.last - 5) > 80"),
        ("-node_load1 < -(4)", "(-1) * gauges.load_1m.last < -4"),
        ("2 ^ 3 > node_load1", None),
        ("increase(node_disk_read_bytes_total[1m]) > 1e9",
         'avg_over(gauges.read_bytes_per_s.mean, "1m") * 60 > 1000000000'),
        ("max_over_time(node_load1[10m]) >= 8", 'max_over(gauges.load_1m.max, "10m") >= 8'),
        ("delta(node_filesystem_avail_bytes[1h]) < -5", 'delta(gauges.free_bytes.last, "1h") < -5'),
        ("node_load1 > 4 and node_load5 > 3 or node_load15 > 2",
         "gauges.load_1m.last > 4 && gauges.load_5m.last > 3 || gauges.load_15m.last > 2"),
        ("node_load1 > 4 or node_load5 > 3 and node_load15 > 2",
         "gauges.load_1m.last > 4 || gauges.load_5m.last > 3 && gauges.load_15m.last > 2"),
        ("node_load1 > 4 unless node_load5 > 3", "gauges.load_1m.last > 4 && !(gauges.load_5m.last > 3)"),
        ("clamp_max(node_load1, 9) > 4", "min(gauges.load_1m.last, 9) > 4"),
        ("time() - node_boot_time_seconds < 600", "gauges.uptime_s.last < 600"),
        (f"sum by ({WHOLE}) ({ERRORS}) / sum by ({WHOLE}) ({ALL}) > 0.1",
         'sum_over(error_count, "5m") / sum_over(count, "5m") > 0.1'),
        (f"sum by ({WHOLE}) ({ALL}) < 1", 'sum_over(count, "5m") / 300 < 1'),
        (f"histogram_quantile(0.9, sum by (le, {WHOLE}) (rate(http_request_duration_seconds_bucket[5m]))) > 1",
         'quantile(0.9, "5m") > 1'),
    ],
)  # fmt: skip
def test_what_means_the_same_is_translated_without_a_remark(promql: str, cel: str | None) -> None:
    if cel is None:
        with pytest.raises(UntranslatedError, match="no equal"):
            translate(promql)
        return
    found = translate(promql)
    assert (found.fields["expr"], found.remarks) == (cel, ())
    rule(promql)  # and it is a rule


@pytest.mark.parametrize(
    ("promql", "remark"),
    [
        (f"sum by (tenant) ({ERRORS}) / sum by (tenant) ({ALL}) > 0.1", "for each (tenant)"),
        (
            "histogram_quantile(0.9, sum by (le, tenant) (rate(http_request_duration_seconds_bucket[5m]))) > 1",
            "(tenant)",
        ),
        ("max(node_load1) > 4", "an alert for each series"),
        ('node_load1{job="node"} > 4', 'job="node" is left out'),
        ('absent(node_load1{instance="a:9100"})', "never heard"),
    ],
)
def test_what_means_something_else_says_so(promql: str, remark: str) -> None:
    assert remark in " ".join(translate(promql).remarks)
    rule(promql)


@pytest.mark.parametrize(
    ("promql", "why"),
    [
        ("up == 0", "inventory"),
        ("node_load1", "no comparison"),
        ("node_load1 >", "no PromQL"),
        ("node_load1 > bool 1", "bool"),
        ("node_load1 offset 1h > 1", "offset"),
        ("node_load1 @ 100 > 1", "another time"),
        ("max_over_time(node_load1[5m:1m]) > 1", "subqueries"),
        ("sum_over_time(node_load1[5m]) > 1", "scrapes"),
        ("quantile_over_time(0.9, node_load1[5m]) > 1", "quantile_over_time"),
        ("predict_linear(node_filesystem_avail_bytes[30m], 3600) < 0", "of 32 min to a year"),
        ("predict_linear(node_filesystem_avail_bytes[6h], -3600) < 0", "and for a minute to a year"),
        ("predict_linear(node_filesystem_avail_bytes[6h:5m], 3600) < 0", "subqueries"),
        ("predict_linear(http_requests_total[6h], 3600) < 0", "no gauge"),
        ("predict_linear(node_load1[1h], 3600) > 9 and avg_over_time(node_load1[12h]) > 1", "windows that are short"),
        ("avg(node_load1) > 4", "apart by host"),
        ("min(node_load1) > 4", "apart by host"),
        ("-1 * max(node_load1) > -4", "apart by host"),
        (f"sum by (tenant) ({ALL}) > 100", "apart by"),
        ("sum(rate(http_requests_total[90s])) > 100", "no whole number of windows of 1m"),
        ('sum by (service) (increase(http_requests_total{endpoint!="/health"}[5m])) > 100', "apart by"),
        (f"{ALL} > 100", "a threshold means another thing"),
        (f"sum without (code) ({ALL}) > 100", "a threshold means another thing"),
        (f"sum by ({WHOLE}, code) ({ALL}) > 100", "a threshold means another thing"),
        (f"sum by (service) ({ERRORS}) / sum by (model) ({ALL}) > 1", "different labels"),
        (f"sum by (tenant) ({ERRORS}) + sum by (tenant) ({ALL}) > 1", "only their ratio"),
        (f"sum({ERRORS}) / on () sum by (model) ({ALL}) > 1", "groups by different labels"),
        (f"max(sum by (service) ({ALL})) > 1", "aggregated already"),
        ('rate(node_cpu_seconds_total{mode="idle"}[5m]) < 0.1', "apart by 'cpu'"),
        ('sum by (instance) (rate(node_cpu_seconds_total{mode="idle"}[5m])) < 0.1', "another way"),
        ('avg by (instance) (rate(node_cpu_seconds_total{mode!="idle"}[5m])) > 0.1', "of CPU time"),
        ("node_network_receive_bytes_total > 1", "put rate"),
        ("rate(node_load1[5m]) > 1", "no counter"),
        ('http_requests_total{code=~"4.."} > 1', "no other status"),
        ('node_load1{cluster="a"} > 1', "--label cluster="),
        ('node_load1{instance=~"web.*"} > 1', "may ask for a port"),
        ('node_filesystem_avail_bytes{fstype="ext4"} < 1', "does not say which kind"),
        ('rate(node_network_receive_errs_total{device=~"(?=a)"}[5m]) > 1', "is no regular expression"),
        ("node_load1 > node_memory_MemTotal_bytes", "different series"),
        ('node_filesystem_avail_bytes{mountpoint="/"} < 1 or node_filesystem_size_bytes{mountpoint="/x"} < 2',
         "different series"),
        ("node_load1 / on(instance) group_left node_load5 > 1", "group_left"),
        ("node_filesystem_avail_bytes / on(instance) node_filesystem_size_bytes < 1", "without regard to id"),
        ("count(node_load1) > 3", "several series"),
        ("node_load1 / 0 > 1", "divides by 0"),
        ("1 > 0", "always true"),
        ("avg_over_time(node_load1[90d]) > 1", "looks back"),
        ("histogram_quantile(0.9, rate(http_request_duration_seconds_bucket[6h])) > 1", "at most 1 h"),
        ("histogram_quantile(0.9, sum by (service) (rate(http_request_duration_seconds_bucket[5m]))) > 1", "`le`"),
        ("1" + "+1" * 5000 + " > 0", "too long|always"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused_with_its_reason(promql: str, why: str) -> None:
    with pytest.raises(UntranslatedError, match=why):
        translate(promql)


@pytest.mark.parametrize(
    ("promql", "breach", "fine"),
    [
        ("node_load1 / 4 > 2", {"load_1m": 9.0}, {"load_1m": 8.0}),
        ("node_load1 > 4 unless node_load5 > 3", {"load_1m": 5.0, "load_5m": 1.0}, {"load_1m": 5.0, "load_5m": 4.0}),
        ('node_load1{instance!="web-2:9100"} > 4', {"load_1m": 5.0}, {"load_1m": 4.0}),
        ('node_load1{instance="web-1:9100"} > 4', {"load_1m": 5.0}, {"load_1m": 4.0}),
        ("avg_over_time(node_load1[1m]) > 4", {"load_1m": 5.0}, {"load_1m": 4.0}),
    ],
)
def test_a_translated_rule_fires_on_a_breach_and_on_nothing_else(
    promql: str, breach: dict[str, float], fine: dict[str, float]
) -> None:
    assert fires(promql, HOST, **gauges(**breach))
    assert not fires(promql, HOST, **gauges(**fine))


def test_a_rule_looks_at_the_series_that_its_matchers_pick_only() -> None:
    network = {"entity": "network", "host": "web-1"}
    knowledge, loud = (
        Knowledge({"errs": meaning_of('gauges.errs{entity="network"}')}, {"device": "id"}),
        gauges(errs=9.0),
    )
    assert fires('errs{device!~"lo|veth.+"} > 1', network | {"id": "eth0"}, knowledge, **loud)
    assert not fires('errs{device!~"lo|veth.+"} > 1', network | {"id": "veth7"}, knowledge, **loud)
    assert not fires('errs{device="lo"} > 1', network | {"id": "eth0"}, knowledge, **loud)


def test_requests_that_fail_and_are_slow_fire() -> None:
    shop = {"service": "shop", "model": "ranker"}
    assert fires(f"{ERRORS} / {ALL} > 0.4", shop, count=10, error_count=5)
    assert not fires(f"{ERRORS} / {ALL} > 0.5", shop, count=10, error_count=5)


def test_a_metric_of_ones_own_is_what_one_says() -> None:
    knowledge = Knowledge(
        {"DCGM_FI_DEV_GPU_TEMP": meaning_of('gauges.temperature{entity="gpu"}'), "flag": meaning_of("0")}
    )
    found = rule("DCGM_FI_DEV_GPU_TEMP > 85 and flag == 0", knowledge)
    assert (found.expr, found.where, found.source) == ("gauges.temperature.last > 85", {"entity": "gpu"}, "resource")
    with pytest.raises(ValueError, match="is not a field of inference windows"):
        meaning_of("latency")


def test_what_services_count_themselves_is_a_counter_or_a_histogram() -> None:
    known = Knowledge(
        {
            "http_requests_total": meaning_of('counters.http_requests_total{entity="service"}'),
            "job:latency": meaning_of("distributions.job:latency"),
        },
        {"code": "code"},
    )
    failing = 'sum by (job) (rate(http_requests_total{code="500"}[5m])) > 2'
    assert translate('rate(http_requests_total{job="shop", code="500", instance="a:1"}[5m]) > 2', known).fields == {
        "source": "resource",
        "where": {"entity": "service", "id": "shop", "code": "500", "instance": "a:1"},
        "expr": 'sum_over(counters.http_requests_total.sum, "5m") / 300 > 2',
    }
    assert rule(failing, known).by == ("id",)
    slow = translate("histogram_quantile(0.9, sum by (job, le) (rate(job:latency_bucket[5m]))) > 1", known).fields
    assert slow["expr"] == 'quantile(distributions["job:latency"], 0.9, "5m") > 1'
    mean = translate("rate(job:latency_sum[5m]) / rate(job:latency_count[5m]) > 0.5", known).fields
    assert mean["expr"] == (
        'sum_over(distributions["job:latency"].sum, "5m") / sum_over(distributions["job:latency"].count, "5m") > 0.5'
    )
    windows = counters_of({"http_requests_total": 5000.0}, 2.0)
    service = {"entity": "service", "id": "shop", "code": "500"}
    assert fires("rate(http_requests_total[5m]) > 2", service, known, source="resource", counters=windows)


def test_a_recorded_expression_is_put_in_and_one_that_uses_itself_is_refused() -> None:
    recorded = {"load:max": parse("node_load1 / 4"), "loop": parse("loop + 1")}
    assert rule("load:max > 2", Knowledge(recorded=recorded)).expr == "gauges.load_1m.last / 4 > 2"
    for refused in ("loop > 1", 'load:max{a="b"} > 1', "rate(load:max[5m]) > 1"):
        with pytest.raises(UntranslatedError):
            translate(refused, Knowledge(recorded=recorded))


# --- at random ------------------------------------------------------------------------------------------------------

LOADS = {"node_load1": "load_1m", "node_load5": "load_5m", "node_load15": "load_15m"}
numbers = st.sampled_from([*LOADS, "1", "2", "0.5", "-3"])
sums = st.recursive(numbers, lambda inner: st.one_of(
    st.tuples(inner, st.sampled_from("+-*/"), inner).map(" ".join),
    inner.map(lambda text: f"({text})"),
    inner.map(lambda text: f"-({text})"),
), max_leaves=6)  # fmt: skip
comparisons = st.tuples(sums, st.sampled_from([">", "<", ">=", "<="]), sums).map(" ".join)
conditions = st.recursive(comparisons, lambda inner: st.one_of(
    st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(" ".join), inner.map(lambda text: f"({text})")
), max_leaves=4)  # fmt: skip


@given(conditions, st.tuples(*[st.sampled_from([0.5, 1.0, 2.5, 4.0])] * 3))
def test_calculations_come_out_as_they_do_in_another_language(text: str, values: tuple[float, ...]) -> None:
    """Python has the precedence of PromQL here."""
    try:
        expected = eval(text, {}, dict(zip(LOADS, values, strict=True)))  # of our own making
        is_rule = rule(text)
    except (ZeroDivisionError, UntranslatedError):
        assume(False)
    names = dict(zip(LOADS.values(), values, strict=True))
    assert is_rule.expr
    assert fires(text, HOST, **gauges(**names)) == expected, (text, is_rule.expr)


words = st.sampled_from(
    ["node_load1", "http_requests_total", "rate", "sum", "by", "without", "(", ")", "[5m]", "[", "{", "}", 'job="a"',
     "instance", ",", ">", "== bool", "and", "or", "unless", "on", "ignoring", "group_left", "+", "-", "^", "%", "1",
     "5m", "0x1f", "offset", "@", "absent", "histogram_quantile", "0.9", "le", '"x"', "'", "`", "#", "nan", "inf", "=~",
     ":", "\\", "é"]
)  # fmt: skip


@given(st.one_of(st.lists(words, max_size=25).map(" ".join), st.text(max_size=60)))
def test_no_text_breaks_the_reader_or_the_translation(text: str) -> None:
    try:
        rule(text)
    except UntranslatedError:
        return


@given(st.text(max_size=60))
def test_the_reader_alone_gives_a_tree_or_says_what_is_wrong(text: str) -> None:
    try:
        parse(text)
    except PromqlError:
        return


@pytest.mark.parametrize(
    ("promql", "by", "cel"),
    [
        (f"sum({ALL}) > 100", [], 'sum_over(count, "5m") / 300 > 100'),
        (f"sum by (service) ({ERRORS}) / sum by (service) ({ALL}) > 0.1", ["service"],
         'sum_over(error_count, "5m") / sum_over(count, "5m") > 0.1'),
        (f"sum by (service) ({ERRORS}) + sum by (service) ({ALL}) > 1", ["service"],
         'sum_over(error_count, "5m") / 300 + sum_over(count, "5m") / 300 > 1'),
        (f"sum by (model_name) ({ALL}) > 1 and on (model_name) sum by (model_name) ({ERRORS}) > 1", ["model"],
         'sum_over(count, "5m") / 300 > 1 && sum_over(error_count, "5m") / 300 > 1'),
        ("histogram_quantile(0.9, sum by (le, service) (rate(http_request_duration_seconds_bucket[5m]))) > 1",
         ["service"], 'quantile(0.9, "5m") > 1'),
        ('sum by (service, endpoint) (increase(http_requests_total{endpoint!="/health"}[2h])) > 1',
         ["endpoint", "service"],
         '(!has(labels.endpoint) || labels.endpoint != "/health") && sum_over(count, "2h") > 1'),
    ],
)  # fmt: skip
def test_sums_over_requests_of_several_series_are_those_of_a_group(promql: str, by: list[str], cel: str) -> None:
    found = translate(promql)
    assert (found.fields["by"], found.fields["expr"], found.remarks) == (by, cel, ())
    assert found.fields["window"] == "1m"
    rule(promql)  # and it is a rule


def test_the_alert_of_a_sum_is_that_of_the_requests_of_all_series() -> None:
    series = [{"service": service, "model": model} for service in ("shop", "bank") for model in "ab"]
    count = np.array([[60.0, 60.0, 600.0, 6.0]] * 4 + [[300.0, 330.0, 6.0, 6.0]] * 2)
    given_ = panel("inference", 60.0, series, 60.0 * np.arange(1.0, 7.0), {"count": count})
    made = rule("sum by (service) (rate(http_requests_total[1m])) > 10")
    found = fired(group_alerts_of(Rules((made,)), [given_], WindowSettings()), Range(0, inf))
    assert [(each.labels, each.from_unix_s, each.to_unix_s) for each in found] == [
        ({"service": "bank"}, 120.0, 360.0),
        ({"service": "shop"}, 360.0, None),
    ]


def test_a_line_through_the_past_is_a_forecast() -> None:
    found = translate(
        "node_filesystem_avail_bytes / node_filesystem_size_bytes < 0.4 and "
        "predict_linear(node_filesystem_avail_bytes[6h], 24 * 60 * 60) < 0"
    )
    assert found.fields["expr"] == (
        'gauges.free_bytes.last / gauges.total_bytes.last < 0.4 && forecast(gauges.free_bytes.mean, "1d", "6h") < 0'
    )
    assert found.fields["window"] == "1m"
    assert "least squares" in " ".join(found.remarks)
    rule("predict_linear(node_load1[3d], 3600) > 9 and avg_over_time(node_load1[1d]) > 1")  # and it is a rule


def test_gauges_whose_names_are_no_identifiers_are_named_all_the_same() -> None:
    known = Knowledge({"temperature": meaning_of("gauges.gpu-temperature")}, {})
    assert translate("rate(temperature[5m]) > 1", known).fields["expr"] == (
        'rate(gauges["gpu-temperature"].last, "5m") > 1'
    )
    assert fires("temperature > 80", {"host": "a"}, known, **gauges(**{"gpu-temperature": 81.0}))
    assert not fires("temperature > 80", {"host": "a"}, known, **gauges(**{"gpu-temperature": 79.0}))


@pytest.mark.parametrize(
    ("pattern", "device", "is_one"),
    [
        ("\\\\w+\\\\d$", "eth0", True),
        ("\\\\w+\\\\d$", "eth", False),
        ("(?i)ETH.", "eth0", True),
        ("\\\\pL*", "é", True),
        ("^eth", "eth0", False),
    ],
)
def test_regular_expressions_are_those_of_prometheus(pattern: str, device: str, is_one: bool) -> None:
    expr = f'rate(node_network_receive_errs_total{{device=~"{pattern}"}}[1m]) > 1'
    series = {"host": "a", "entity": "network", "id": device}
    assert fires(expr, series, **gauges(receive_errors_per_s=2.0)) is is_one
