"""Relabelling and targets, on the examples that Prometheus tests its own with."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streammon.errors import ConfigError
from streammon_agents.scrape.discovery import of_file
from streammon_agents.scrape.jobs import ANNOTATED_PODS, Job, jobs_of
from streammon_agents.scrape.relabel import Rule, relabelling
from streammon_agents.scrape.targets import Target, targets_of

Labels = dict[str, str]
FIELDS = [*Job.__struct_fields__, "targets", "labels", "files", "role", "regex", "action", "target_label"]
ABC = {"a": "foo", "b": "bar", "c": "baz"}
RULES: list[tuple[Labels, list[dict[str, Any]], Labels | None]] = [
    (ABC, [{"source_labels": ["a"], "regex": "f(.*)", "target_label": "d", "replacement": "ch${1}-ch${1}"}],
     {**ABC, "d": "choo-choo"}),
    (ABC, [{"source_labels": ["a", "b"], "regex": "f(.*);(.*)r", "target_label": "a", "replacement": "b${1}${2}m"},
           {"source_labels": ["c", "a"], "regex": "(b).*b(.*)ba(.*)", "target_label": "d", "replacement": "$1$2$2$3"}],
     {"a": "boobam", "b": "bar", "c": "baz", "d": "boooom"}),
    ({"a": "foo"}, [{"source_labels": ["a"], "regex": ".*o.*", "action": "drop"}], None),
    ({"a": "foo", "b": "x"}, [{"source_labels": ["a"], "regex": "no-match", "action": "drop"}], {"a": "foo", "b": "x"}),
    ({"a": "foo"}, [{"source_labels": ["a"], "regex": "f|o", "action": "drop"}], {"a": "foo"}),
    ({"a": "foo"}, [{"source_labels": ["a"], "regex": "no-match", "action": "keep"}], None),
    ({"a": "foo"}, [{"source_labels": ["a"], "regex": "f.*", "action": "keep"}], {"a": "foo"}),
    ({"a": "boo"}, [{"source_labels": ["a"], "regex": "(b).*b", "target_label": "d"}], {"a": "boo"}),
    (ABC, [{"source_labels": ["c"], "target_label": "d", "action": "hashmod", "modulus": 1000}], {**ABC, "d": "976"}),
    ({"a": "foo\nbar"}, [{"source_labels": ["a"], "target_label": "b", "action": "hashmod", "modulus": 1000}],
     {"a": "foo\nbar", "b": "734"}),
    ({"a": "foo", "b1": "bar", "b2": "baz"}, [{"regex": "(b.*)", "replacement": "bar_${1}", "action": "labelmap"}],
     {"a": "foo", "b1": "bar", "b2": "baz", "bar_b1": "bar", "bar_b2": "baz"}),
    ({"a": "foo", "__meta_my_bar": "aaa", "__meta_my_baz": "bbb"}, [{"regex": "__meta_(my.*)", "action": "labelmap"}],
     {"a": "foo", "__meta_my_bar": "aaa", "__meta_my_baz": "bbb", "my_bar": "aaa", "my_baz": "bbb"}),
    ({"a": "some-name-value"}, [{"source_labels": ["a"], "regex": "some-([^-]+)-([^,]+)", "replacement": "${2}",
                                 "target_label": "${1}"}], {"a": "some-name-value", "name": "value"}),
    ({"a": "some-name-0"}, [{"source_labels": ["a"], "regex": "some-([^-]+)-([^,]+)", "replacement": "${2}",
                             "target_label": "${3}"}], {"a": "some-name-0"}),
    ({"a": "some-name-value"}, [{"source_labels": ["a"], "regex": "some-(?P<key>[^-]+)-(.+)", "replacement": "$key.$$",
                                 "target_label": "k"}], {"a": "some-name-value", "k": "name.$"}),
    ({"a": "foo", "b1": "bar"}, [{"regex": "(b.*)", "action": "labeldrop"}], {"a": "foo"}),
    ({"a": "foo", "b1": "bar"}, [{"regex": "(b.*)", "action": "labelkeep"}], {"b1": "bar"}),
    ({"a": "fOo"}, [{"source_labels": ["a"], "target_label": "u", "action": "uppercase"},
                    {"source_labels": ["a"], "target_label": "l", "action": "lowercase"}],
     {"a": "fOo", "u": "FOO", "l": "foo"}),
    ({"a": "x", "b": "x"}, [{"source_labels": ["a"], "target_label": "b", "action": "keepequal"}],
     {"a": "x", "b": "x"}),
    ({"a": "x", "b": "y"}, [{"source_labels": ["a"], "target_label": "b", "action": "keepequal"}], None),
    ({"a": "x", "b": "x"}, [{"source_labels": ["a"], "target_label": "b", "action": "dropequal"}], None),
    ({"a": "foo"}, [{"source_labels": ["a"], "target_label": "a", "replacement": ""}], {}),
    ({"a": "true"}, [{"source_labels": ["a"], "regex": True, "action": "keep"}], {"a": "true"}),
    ({"a": "line\nbreak"}, [{"source_labels": ["a"], "target_label": "b"}], {"a": "line\nbreak", "b": "line\nbreak"}),
]  # fmt: skip


@pytest.mark.parametrize(("labels", "rules", "expected"), RULES)
def test_rules_do_what_they_do_in_prometheus(
    labels: Labels, rules: list[dict[str, Any]], expected: Labels | None
) -> None:
    relabel = relabelling(msgspec.convert(rules, list[Rule], strict=False))
    before = dict(labels)
    assert relabel(labels) == expected
    assert labels == before, "the labels that came are left alone"


def job(**fields: Any) -> dict[str, Any]:
    return {"job_name": "shop", **fields}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"consul_sd_configs": []}, "unknown field `consul_sd_configs`"),
        ({"relabel_configs": [{"action": "shrink"}]}, "Invalid enum value 'shrink'"),
        ({"relabel_configs": [{"regex": "(", "target_label": "a"}]}, "regex = '(' is no regular expression"),
        ({"relabel_configs": [{"target_label": "1a"}]}, "target_label = '1a'"),
        ({"relabel_configs": [{"action": "hashmod", "target_label": "a"}]}, "modulus has to be given"),
        ({"relabel_configs": [{"action": "labelmap", "replacement": "-"}]}, "replacement = '-'"),
        ({"relabel_configs": [{"action": "labeldrop", "source_labels": ["a"]}]}, "source_labels have no part"),
        ({"scrape_interval": "soon"}, "scrape_interval = 'soon' is no duration"),
        ({"scrape_interval": "5s", "scrape_timeout": "6s"}, "scrape_timeout = '6s'"),
        ({"body_size_limit": "much"}, "body_size_limit = 'much'"),
        ({"bearer_token": "s3cret", "basic_auth": {}}, "only one may be given"),
        ({"bearer_token": ["s3cret"]}, "a secret has to be a text"),
        ({"basic_auth": "s3cret"}, "Expected `object | null`"),
        ({"kubernetes_sd_configs": [{"role": "node"}]}, "Invalid enum value 'node'"),
        ({"job_name": 5.5, "static_configs": "s3cret"}, "Expected `array`"),
    ],
)
def test_what_is_not_understood_is_named(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        jobs_of(
            [job(), job(job_name="other", **given) if "job_name" not in given else job(**{**given, "job_name": "x"})]
        )
    assert said in str(error.value)
    assert "agent.scrape.jobs[1]" in str(error.value)
    assert "s3cret" not in str(error.value)


def test_jobs_are_told_apart_by_name() -> None:
    with pytest.raises(ConfigError, match="given twice"):
        jobs_of([job(), job()])


def test_a_job_says_no_secret() -> None:
    [made] = jobs_of([job(basic_auth={"username": "u", "password": "s3cret"})])
    assert "s3cret" not in repr(made)


def test_limits_and_times_have_defaults() -> None:
    [made] = jobs_of([job(body_size_limit="10MB", sample_limit=5)])
    assert (made.interval_s, made.timeout_s, made.max_body_bytes, made.max_samples) == (15.0, 10.0, 10 * 1024**2, 5)
    assert made.limits.samples == 20_000, "before relabelling"
    assert made.limits.labels > 0


def targets(discovered: list[Labels], **fields: Any) -> list[Target]:
    [made] = jobs_of([job(**fields)])
    found = targets_of(made, discovered)
    assert not found.faults
    return found.targets


def test_labels_steer_the_target_and_those_in_two_underscores_are_gone() -> None:
    [target] = targets(
        [{"__address__": "a:80", "__meta_zone": "z", "team": "x"}],
        params={"module": ["http", "more"]},
        relabel_configs=[
            {"source_labels": ["__meta_zone"], "target_label": "zone"},
            {"target_label": "__param_module", "replacement": "tcp"},
            {"target_label": "__param_new", "replacement": "a b"},
            {"target_label": "__scheme__", "replacement": "https"},
            {"target_label": "__metrics_path__", "replacement": "probe"},
            {"target_label": "__scrape_interval__", "replacement": "1m"},
        ],
    )
    assert target == Target(
        "shop",
        "https://a:80/probe?module=tcp&module=more&new=a+b",
        (("instance", "a:80"), ("job", "shop"), ("team", "x"), ("zone", "z")),
        60.0,
        10.0,
    )


def test_targets_that_cannot_be_are_told_and_too_many_are_left_out() -> None:
    [made] = jobs_of([job(target_limit=2)])
    discovered = [{"__address__": address} for address in ("a/b", "", "a:1", "a:2", "a:2", "a:3")]
    found = targets_of(made, [*discovered, {"__address__": "a:4", "__scrape_interval__": "soon"}])
    assert [target.url for target in found.targets] == ["http://a:1/metrics", "http://a:2/metrics"]
    assert (len(found.faults), found.omitted) == (3, 1)


def test_annotated_pods_are_scraped_where_they_say() -> None:
    def pod(**labels: str) -> Labels:
        meta = {f"__meta_kubernetes_{name}": value for name, value in labels.items()}
        return {"__address__": f"{meta['__meta_kubernetes_pod_ip']}:8080", **meta}

    scrape = {"pod_annotation_prometheus_io_scrape": "true"}
    port = {"pod_annotation_prometheus_io_port": "9100"}
    [made] = jobs_of([ANNOTATED_PODS])
    found = targets_of(
        made,
        [
            pod(pod_ip="10.0.0.1", pod_phase="Running"),
            pod(pod_ip="10.0.0.2", pod_phase="Pending", **scrape),
            pod(pod_ip="10.0.0.3", pod_phase="Running", **scrape),
            pod(pod_ip="10.0.0.4", pod_name="p", namespace="n", pod_label_app="ranker", **scrape, **port),
            pod(pod_ip="fd00::5", pod_annotation_prometheus_io_path="/m", **scrape, **port),
        ],
    )
    assert [target.url for target in found.targets] == [
        "http://10.0.0.3:8080/metrics",
        "http://10.0.0.4:9100/metrics",
        "http://[fd00::5]:9100/m",
    ]
    assert dict(found.targets[1].labels) == {
        "instance": "10.0.0.4:9100",
        "job": "kubernetes-pods",
        "namespace": "n",
        "pod": "p",
        "service": "ranker",
    }


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS) | st.text(), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=200)
@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4))
def test_any_job_is_taken_or_named_as_wrong(given_: dict[str, Any]) -> None:
    with contextlib.suppress(ConfigError):
        [made] = jobs_of([{"job_name": "shop", **given_}])
        assert targets_of(made, [{"__address__": "a:80"}]).omitted == 0


@settings(max_examples=200)
@given(st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode()), st.sampled_from(["json", "yml"]))
def test_any_file_of_targets_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, text: bytes, end: str
) -> None:
    file = tmp_path_factory.getbasetemp() / f"targets.{end}"
    file.write_bytes(text)
    with contextlib.suppress(ValueError):
        assert isinstance(of_file(file), list)
