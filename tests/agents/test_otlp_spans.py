"""Which spans become inference events, and what is read of them; and log records, which all do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

pytest.importorskip("opentelemetry.proto")

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from streammon_agents.gateway.otlp import logs, spans, values
from streammon_agents.gateway.otlp.logs import Logs
from streammon_agents.gateway.otlp.spans import Read, Spans
from streammon_agents.gateway.otlp.values import Refusal
from streammon_agents.logs.redaction import redactor

Attributes = Mapping[str, Any]
START, END = 1_700_000_000 * 10**9, 1_700_000_000 * 10**9 + 250_000_000


_FIELDS = {bool: "bool_value", int: "int_value", float: "double_value", bytes: "bytes_value", str: "string_value"}


def any_value(value: Any) -> AnyValue:
    if isinstance(value, list):
        return AnyValue(array_value=ArrayValue(values=map(any_value, value)))
    if isinstance(value, dict):
        return AnyValue(kvlist_value=KeyValueList(values=key_values(value)))
    return AnyValue() if value is None else AnyValue(**{_FIELDS[type(value)]: value})


def key_values(attributes: Attributes) -> list[KeyValue]:
    return [KeyValue(key=key, value=any_value(value)) for key, value in attributes.items()]


def span(attributes: Attributes, kind: str = "SERVER", **fields: Any) -> Span:
    fields = {"start_time_unix_nano": START, "end_time_unix_nano": END, **fields}
    return Span(kind=Span.SpanKind.Value(f"SPAN_KIND_{kind}"), attributes=key_values(attributes), **fields)


def traces(*spans: Span, **resource: str) -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    resource_spans = request.resource_spans.add()
    attributes = {name.replace("_", "."): value for name, value in {"service_name": "shop", **resource}.items()}
    resource_spans.resource.attributes.extend(key_values(attributes))
    resource_spans.scope_spans.add().spans.extend(spans)
    return request


def reader() -> Spans:
    return Spans("here", ["ml.model.name"], ["ml.model.version"])


def read(*spans: Span, **resource: str) -> Read:
    return reader().read(traces(*spans, **resource))


def one(*spans: Span, **resource: str) -> dict[str, Any]:
    [event] = read(*spans, **resource).events
    return event


CHAT = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "gpt-4o"}
GET = {"http.request.method": "GET", "http.route": "/rank"}


@pytest.mark.parametrize(
    ("kind", "attributes", "model", "endpoint"),
    [
        ("CLIENT", CHAT, "gpt-4o", "chat"),
        ("INTERNAL", {**CHAT, "gen_ai.operation.name": "embeddings"}, "gpt-4o", "embeddings"),
        ("CLIENT", {"gen_ai.response.model": "m7"}, "m7", None),
        ("SERVER", {"gen_ai.usage.prompt_tokens": 9, "gen_ai.request.id": "r"}, "-", None),  # vLLM names no model
        ("SERVER", {**GET, **CHAT}, "gpt-4o", "/rank"),  # a proxy before models
        ("SERVER", GET, "-", "/rank"),
        ("SERVER", {"http.method": "GET", "http.target": "/rank?user=7"}, "-", None),
        ("SERVER", {"rpc.system": "grpc", "rpc.service": "a.Ranker", "rpc.method": "Rank"}, "-", "a.Ranker/Rank"),
        ("SERVER", {"rpc.system.name": "grpc", "rpc.method": "a.Ranker/Rank"}, "-", "a.Ranker/Rank"),
        ("INTERNAL", {"ml.model.name": "ranker"}, "ranker", None),
        ("SERVER", {**GET, "ml.model.name": "ranker"}, "ranker", "/rank"),
    ],
)
def test_model_calls_and_requests_served_count(
    kind: str, attributes: Attributes, model: str, endpoint: str | None
) -> None:
    event = one(span(attributes, kind))
    assert (event["model"], event.get("endpoint")) == (model, endpoint)


@pytest.mark.parametrize(
    ("kind", "attributes"),
    [
        ("CLIENT", GET),
        ("INTERNAL", GET),
        ("CONSUMER", {"messaging.system": "kafka"}),
        ("CLIENT", {"db.system.name": "postgresql"}),
        ("SERVER", {}),
        ("INTERNAL", {"gen_ai.operation.name": "invoke_agent", "gen_ai.request.model": "gpt-4o"}),
        ("INTERNAL", {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "search"}),
    ],
)
def test_other_spans_are_ignored_not_refused(kind: str, attributes: Attributes) -> None:
    assert read(span(attributes, kind)) == Read([], Counter(), 1)


def test_what_vllm_says_is_read_as_it_means_it() -> None:
    event = one(
        span(
            {
                "gen_ai.response.model": "qwen",
                "gen_ai.request.id": "cmpl-1-0",
                "gen_ai.usage.prompt_tokens": 12,
                "gen_ai.usage.completion_tokens": 34,
                "gen_ai.latency.time_in_queue": 0.25,
                "gen_ai.latency.time_to_first_token": 0.5,
            }
        )
    )
    assert event == {
        "time_unix_s": 1_700_000_000.25,
        "service": "shop",
        "model": "qwen",
        "host": "here",
        "duration_s": 0.25,
        "status": "ok",
        "request_id": "cmpl-1-0",
        "input_tokens": 12,
        "output_tokens": 34,
        "queue_s": 0.25,
        "ttft_s": 0.5,
    }


def test_of_two_attributes_for_one_thing_the_current_one_counts() -> None:
    for turn in (1, -1):
        pairs = [("gen_ai.system", "az.ai.openai"), ("gen_ai.provider.name", "azure.ai.openai")][::turn]
        assert one(span({**CHAT, **dict(pairs)}))["provider"] == "azure.ai.openai"


@pytest.mark.parametrize(
    ("attributes", "fields", "error_type"),
    [
        (GET, {}, None),
        ({**GET, "http.response.status_code": 404}, {}, None),
        ({**GET, "http.status_code": 502}, {}, "502"),
        ({**GET, "error.type": "Full"}, {}, "Full"),
        (GET, {"status": {"code": "STATUS_CODE_ERROR"}}, "error"),
        ({**GET, "rpc.response.status_code": "INTERNAL"}, {"status": {"code": "STATUS_CODE_ERROR"}}, "INTERNAL"),
        ({**GET, "http.response.status_code": 500}, {"status": {"code": "STATUS_CODE_OK"}}, None),
    ],
)
def test_what_went_wrong_is_named(attributes: Attributes, fields: dict[str, Any], error_type: str | None) -> None:
    event = one(span(attributes, **fields))
    assert (event["status"], event.get("error_type")) == ("ok" if error_type is None else "error", error_type)


def test_an_exception_names_the_error_where_nothing_else_does() -> None:
    failed = span(GET, status={"code": "STATUS_CODE_ERROR"})
    failed.events.add(name="exception", attributes=key_values({"exception.type": "KeyError"}))
    assert one(failed)["error_type"] == "KeyError"


def test_a_wrapper_of_the_same_model_call_is_ignored_whichever_comes_first() -> None:
    inner = span(CHAT, "CLIENT", span_id=b"i" * 8, parent_span_id=b"o" * 8)
    outer = span(CHAT, "CLIENT", span_id=b"o" * 8, parent_span_id=b"r" * 8)
    for calls in ((inner, outer), (outer, inner)):
        found = read(*calls)
        assert [event["span_id"] for event in found.events] == [(b"i" * 8).hex()]
        assert found.ignored == 1


def test_a_wrapper_that_comes_in_a_later_request_is_known() -> None:
    remembering = reader()
    remembering.read(traces(span(CHAT, "CLIENT", span_id=b"i" * 8, parent_span_id=b"o" * 8)))
    outer = span(CHAT, "CLIENT", span_id=b"o" * 8)
    assert remembering.read(traces(outer)).events == []
    assert len(remembering.read(traces(outer, service_name="other")).events) == 1, "another service is another series"


def test_a_request_and_the_model_call_in_it_both_count() -> None:
    request = span(GET, span_id=b"r" * 8)
    call = span(CHAT, "CLIENT", span_id=b"c" * 8, parent_span_id=b"r" * 8)
    other = span({**CHAT, "gen_ai.request.model": "small"}, "CLIENT", span_id=b"d" * 8, parent_span_id=b"c" * 8)
    assert {event["model"] for event in read(call, request, other).events} == {"-", "gpt-4o", "small"}


def test_what_is_remembered_of_wrappers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "MAX_REMEMBERED", 3)
    remembering = reader()
    for number in range(9):
        remembering.read(traces(span(CHAT, parent_span_id=bytes([number] * 8))))
    outer = [span(CHAT, span_id=bytes([number] * 8)) for number in range(9)]
    assert len(remembering.read(traces(*outer)).events) == 6


@pytest.mark.parametrize(("start", "end"), [(0, END), (START, 0), (END, START)])
def test_a_span_with_an_impossible_time_is_refused(start: int, end: int) -> None:
    found = read(span(GET, start_time_unix_nano=start, end_time_unix_nano=end), span(GET))
    assert (len(found.events), found.refused) == (1, {Refusal.BAD_TIME: 1})


def test_attributes_of_the_wrong_kind_cost_themselves_only() -> None:
    event = one(
        span(
            {
                "gen_ai.request.model": 7,
                "gen_ai.usage.input_tokens": "many",
                "gen_ai.usage.output_tokens": -1,
                "gen_ai.response.time_to_first_chunk": float("nan"),
                "gen_ai.usage.cache_read.input_tokens": True,
                "gen_ai.response.finish_reasons": [],
                "gen_ai.response.id": ["x"],
            },
            trace_id=b"short",
            span_id=bytes(8),
        )
    )
    assert event == {
        "time_unix_s": 1_700_000_000.25,
        "service": "shop",
        "model": "7",
        "host": "here",
        "duration_s": 0.25,
        "status": "ok",
    }


def test_a_service_without_a_name_and_one_on_a_node() -> None:
    assert one(span(GET), service_name="")["service"] == "unknown_service"
    assert one(span(GET), k8s_node_name="node-7")["host"] == "node-7"
    assert len(one(span(GET), service_name="s" * 10_000)["service"]) == values.MAX_TEXT


# --- log records ----------------------------------------------------------------------------------------------


def log_event(**record: Any) -> dict[str, Any]:
    request = ExportLogsServiceRequest()
    attributes = record.pop("attributes", {})
    body = any_value(record.pop("body", "hello"))
    scope = request.resource_logs.add().scope_logs.add()
    scope.log_records.add(body=body, attributes=key_values(attributes), **record)
    [event] = Logs("here", lambda: 1_700_000_000.5, redactor()).read(request).events
    return event


def test_secrets_leave_no_log_record() -> None:
    event = log_event(
        body="password=hunter2 of ann@example.org",
        attributes={"api_key": "abc", "url": "https://u:pw@db/", "size": 3, "exception.message": "token=t0ps3cret"},
    )
    said = str(event)
    assert not any(secret in said for secret in ("hunter2", "ann@", "abc", "pw@", "t0ps3cret"))
    assert event["fields"]["size"] == 3


@pytest.mark.parametrize("named", [{"event_name": "gen_ai.user.message"}, {"event.name": "gen_ai.choice"}])
def test_what_is_said_to_a_language_model_and_by_it_is_in_no_log_event(named: dict[str, str]) -> None:
    contents = {
        "gen_ai.input.messages": "my prompt",
        "gen_ai.output.messages": "my prompt",
        "gen_ai.system_instructions": "my prompt",
        "gen_ai.prompt.0.content": "my prompt",
        "gen_ai.tool.call.arguments": "my prompt",
    }
    known = {"gen_ai.system": "openai", "gen_ai.request.model": "gpt-5", "gen_ai.usage.input_tokens": 7}
    attributes = contents | known | {name: value for name, value in named.items() if "." in name}
    event = log_event(
        body={"content": "my prompt"},
        attributes=attributes,
        **{name: value for name, value in named.items() if "." not in name},
    )
    assert "my prompt" not in str(event)
    assert event["message"] == next(iter(named.values()))
    assert known.items() <= event["fields"].items()
    assert log_event(body="as it is", attributes=known)["message"] == "as it is"


@pytest.mark.parametrize(
    ("number", "text", "level"),
    [
        *[(1, "", "trace"), (8, "", "debug"), (9, "x", "info"), (13, "", "warn"), (17, "", "error"), (24, "", "fatal")],
        *[(0, "WARNING", "warn"), (0, "Purple", "purple"), (0, "", None), (99, "", None)],
    ],
)
def test_the_level_follows_the_number_of_the_severity(number: int, text: str, level: str | None) -> None:
    assert log_event(severity_number=number, severity_text=text).get("level") == level


def test_a_record_without_a_time_has_that_of_its_observer_or_ours() -> None:
    assert log_event(time_unix_nano=10**18)["time_unix_s"] == 10**9
    assert log_event(observed_time_unix_nano=2 * 10**18)["time_unix_s"] == 2 * 10**9
    assert log_event()["time_unix_s"] == 1_700_000_000.5


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("text", "text"),
        (None, ""),
        (7, "7"),
        (float("nan"), "nan"),
        (b"\xff", "/w=="),
        ([1, [True, None]], "[1,[true,null]]"),
        ({"a": {"b": 0.5}}, '{"a":{"b":0.5}}'),
    ],
)
def test_any_body_is_a_message(body: Any, message: str) -> None:
    assert log_event(body=body)["message"] == message


def test_a_category_that_is_none_of_ours_is_a_field_like_others() -> None:
    event = log_event(attributes={"event.category": "database"})
    assert "category" not in event
    assert event["fields"]["event.category"] == "database"


def test_a_log_event_is_bounded_however_much_is_in_it() -> None:
    deep: Any = "bottom"
    for _ in range(40):
        deep = [deep]
    event = log_event(
        body="m" * 10**6,
        attributes={"deep": deep, "wide": ["x" * 1000] * 10_000, **{f"a{n}": "v" for n in range(1000)}},
    )
    assert len(event["message"]) == logs.MAX_MESSAGE + 1
    assert len(str(event)) < 4 * (logs.MAX_MESSAGE + logs.MAX_CHARACTERS)
    assert depth_of(event["fields"]["deep"]) == values.MAX_DEPTH


def depth_of(value: Any) -> int:
    return 1 + max(map(depth_of, value)) if isinstance(value, list | Sequence) and not isinstance(value, str) else 0
