"""CloudEvents as their real senders make them: what becomes of requests, responses, feedback and our own events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from cloudevents.core.bindings.http import HTTPMessage, to_binary, to_structured
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from streammon.config import load
from streammon.errors import Reason, Rejected
from streammon.events import EventType
from streammon_agents.gateway import cloudevents
from streammon_agents.gateway.pairs import Half, Id, Loss, Pairs, inferences
from streammon_agents.gateway.payloads import MAX_INSTANCES, Payload, payload, payload_of, prediction_of
from tests.outlets import Kept
from tests.support import eventually

Client = TestClient[web.Request, web.Application]
Mode = Callable[[CloudEvent], HTTPMessage]
KSERVE, SELDON = "org.kubeflow.serving.inference.", "io.seldon.serving."
AT = datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)  # 1.7e9


def binary(event: CloudEvent) -> HTTPMessage:
    return to_binary(event, JSONFormat())


def structured(event: CloudEvent) -> HTTPMessage:
    return to_structured(event, JSONFormat())


def kserve(kind: str, data: Any, after_s: float = 0.0, **attributes: Any) -> CloudEvent:
    """As KServe's ``pkg/logger`` makes it."""
    return CloudEvent(
        {
            "specversion": "1.0",
            "id": "a1",
            "source": "http://localhost:9081/",
            "type": KSERVE + kind,
            "time": AT + timedelta(seconds=after_s),
            "datacontenttype": "application/json",
            "inferenceservicename": "iris",
            "namespace": "default",
            "component": "predictor",
            "endpoint": "default",
            "metadata": "{}",
            **attributes,
        },
        data,
    )


def seldon(kind: str, data: Any, after_s: float = 0.0, **attributes: Any) -> CloudEvent:
    """As Seldon Core's ``executor/logger`` makes it: an id of its own each, joined by ``requestid``."""
    own = {"component": None, "metadata": None, "requestid": "r7", "modelid": "classifier", "protocol": "seldon"}
    attributes = {"inferenceservicename": "income", "namespace": "models", "endpoint": "main", **own, **attributes}
    event = kserve("", data, after_s, type=SELDON + kind, id=f"{kind}-{after_s}", **attributes)
    return CloudEvent({name: value for name, value in event.get_attributes().items() if value is not None}, data)


@pytest.fixture
def out() -> Kept:
    return Kept()


@pytest.fixture
async def client(out: Kept) -> AsyncIterator[Client]:
    settings = load(agent={"gateway": {"answer_within_s": 0.3, "max_features": 4}}).agent.gateway
    app = web.Application()
    app.add_routes(cloudevents.routes(out, settings, lambda: 1.8e9))
    async with TestClient(TestServer(app)) as client:
        yield client


async def send(client: Client, *events: CloudEvent, mode: Mode = binary) -> list[int]:
    statuses = []
    for event in events:
        message = mode(event)
        response = await client.post(cloudevents.PATH, data=message.body, headers=message.headers)
        statuses.append(response.status)
        assert response.status != 200 or await response.read() == b""
    return statuses


# --- requests and responses -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [binary, structured])
async def test_a_request_and_its_response_are_an_inference(client: Client, out: Kept, mode: Mode) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    request = kserve("request", {"instances": [[5.1, 3.5, "red"]]}, traceparent=parent)
    assert await send(client, request, kserve("response", {"predictions": [2]}, 0.25), mode=mode) == [200, 200]
    [event] = out.of(EventType.INFERENCE)
    assert event == {
        "time_unix_s": 1.7e9,
        "service": "iris",
        "model": "iris",
        "endpoint": "default/predictor",
        "event_id": "a1",
        "request_id": "a1",
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
        "duration_s": 0.25,
        "status": "ok",
        "features": {"x0": 5.1, "x1": 3.5, "x2": "red"},
        "prediction": 2.0,
    }


async def test_the_response_may_come_first_and_repetitions_count_once(client: Client, out: Kept) -> None:
    request, response = kserve("request", {"instances": [1.0]}, 0.002), kserve("response", {"predictions": [0]})
    assert await send(client, response, response, request, response, request) == [200] * 5
    [event] = out.of(EventType.INFERENCE)
    assert (event["duration_s"], event["features"], event["prediction"]) == (0.0, {"x0": 1.0}, 0.0)


async def test_every_instance_of_a_request_is_an_event_that_a_label_can_name(client: Client, out: Kept) -> None:
    rows = [{"age": 30 + n, "plan": "pro", "photo": [[1, 2]], "essay": "x" * 100} for n in range(3)]
    await send(client, kserve("request", {"instances": rows}), kserve("response", {"predictions": [0, 1, 0]}, 0.1))
    events = out.of(EventType.INFERENCE)
    assert [event["event_id"] for event in events] == ["a1/0", "a1/1", "a1/2"]
    assert [event["prediction"] for event in events] == [0.0, 1.0, 0.0]
    assert [event["features"] for event in events] == [{"age": 30.0 + n, "plan": "pro"} for n in range(3)]
    assert {event["request_id"] for event in events} == {"a1"}


async def test_tensors_of_v2_are_columns_and_name_the_model_and_its_version(client: Client, out: Kept) -> None:
    asked = [
        {"name": "age", "shape": [2, 1], "datatype": "INT64", "data": [30, 31]},
        {"name": "plan", "shape": [2], "datatype": "BYTES", "data": ["pro", "free"]},
        {"name": "spent", "shape": [2, 2], "datatype": "FP64", "data": [[1.5, 2.5], [3.5, 4.5]]},
    ]
    said = {
        "model_name": "churn",
        "model_version": "v3",
        "outputs": [
            {"name": "predict", "shape": [2], "datatype": "INT64", "data": [1, 0]},
            {"name": "predict_proba", "shape": [2, 2], "datatype": "FP64", "data": [0.2, 0.8, 0.9, 0.1]},
        ],
    }
    await send(client, kserve("request", {"inputs": asked}), kserve("response", said, 0.1))
    first, second = out.of(EventType.INFERENCE)
    assert (first["model"], first["model_version"]) == ("churn", "v3")
    assert first["features"] == {"age": 30.0, "plan": "pro", "spent.0": 1.5, "spent.1": 2.5}
    assert (first["prediction"], first["confidence"]) == (1.0, 0.8)
    assert first["metrics"] == {"predict_proba.0": 0.2, "predict_proba.1": 0.8}
    assert (second["prediction"], second["confidence"]) == (0.0, 0.9)


async def test_seldons_events_are_joined_by_requestid_and_its_feedback_is_a_label(client: Client, out: Kept) -> None:
    asked = {"meta": {}, "data": {"names": ["age", "hours"], "ndarray": [[53, 40]]}}
    said = {"meta": {"puid": "r7"}, "data": {"names": ["<=50K", ">50K"], "ndarray": [[0.86, 0.14]]}}
    feedback = {"request": asked, "response": said, "reward": 1.0, "truth": {"data": {"ndarray": [["<=50K"]]}}}
    events = (seldon("inference.request", asked), seldon("inference.response", said, 0.5), seldon("feedback", feedback))
    assert await send(client, *events) == [200] * 3
    [event] = out.of(EventType.INFERENCE)
    assert (event["service"], event["model"], event["endpoint"]) == ("income.models", "classifier", "main")
    assert (event["event_id"], event["duration_s"]) == ("r7", 0.5)
    assert event["features"] == {"age": 53.0, "hours": 40.0}
    assert (event["prediction"], event["confidence"]) == ("<=50K", 0.86)
    [label] = out.of(EventType.LABEL)
    assert label == {
        "time_unix_s": 1.7e9,
        "service": "income.models",
        "model": "classifier",
        "event_id": "r7",
        "label": "<=50K",
        "score": 1.0,
        "source": "seldon",
    }


@pytest.mark.parametrize("mode", [binary, structured])
async def test_attributes_may_hold_any_text(client: Client, out: Kept, mode: Mode) -> None:
    for kind, data in (("request", {"instances": [1]}), ("response", {"predictions": [1]})):
        await send(client, kserve(kind, data, inferenceservicename="Größe 100%"), mode=mode)
    assert out.of(EventType.INFERENCE)[0]["service"] == "Größe 100%"


async def test_feedback_with_a_reward_alone_is_a_score(client: Client, out: Kept) -> None:
    assert await send(client, seldon("feedback", {"reward": 0.5})) == [200]
    [label] = out.of(EventType.LABEL)
    assert (label["event_id"], label["score"], "label" in label) == ("r7", 0.5, False)


@pytest.mark.parametrize(
    "said", [{"error": "out of memory"}, {"status": {"status": "FAILURE", "info": "out of memory"}, "data": {}}]
)
async def test_a_response_that_tells_of_an_error_is_an_error(client: Client, out: Kept, said: Any) -> None:
    await send(client, kserve("request", {"instances": [1]}), kserve("response", said, 0.1))
    [event] = out.of(EventType.INFERENCE)
    assert (event["status"], event["error_type"], event["features"]) == ("error", "out of memory", {"x0": 1.0})


async def test_what_is_never_answered_is_dropped_and_counted(client: Client, out: Kept) -> None:
    await send(client, kserve("request", {"instances": [1, 2]}), kserve("response", {"predictions": [1]}, id="b2"))
    await eventually(lambda: out.dropped.total() == 3)
    assert out.dropped == {Loss.UNANSWERED: 2, Loss.UNASKED: 1}
    assert not out.events


async def test_times_that_are_missing_are_when_it_came(client: Client, out: Kept) -> None:
    await send(client, kserve("request", {"instances": [1]}), mode=lambda event: timeless(binary(event)))
    await send(client, kserve("response", {"predictions": [1]}), mode=lambda event: timeless(binary(event)))
    [event] = out.of(EventType.INFERENCE)
    assert (event["time_unix_s"], event["duration_s"]) == (1.8e9, 0.0)


def timeless(message: HTTPMessage) -> HTTPMessage:
    return HTTPMessage({name: value for name, value in message.headers.items() if name != "ce-time"}, message.body)


async def test_instances_beyond_the_limit_are_dropped_and_counted(client: Client, out: Kept) -> None:
    many = list(range(MAX_INSTANCES + 7))
    await send(client, kserve("request", {"instances": many}), kserve("response", {"predictions": many}))
    assert len(out.of(EventType.INFERENCE)) == MAX_INSTANCES
    assert out.dropped == {Loss.INSTANCES: 7}


# --- our own events, batches, and what is refused -------------------------------------------------------------


def own(**attributes: Any) -> CloudEvent:
    event = {"time_unix_s": 1.7e9, "service": "s", "model": "m", "duration_s": 0.1, "status": "ok"}
    named = {"specversion": "1.0", "id": "1", "source": "/s", "type": "streammon.inference"}
    return CloudEvent({**named, "datacontenttype": "application/json", **attributes}, event)


@pytest.mark.parametrize("mode", [binary, structured])
async def test_an_event_of_ours_in_their_envelope_is_durable_when_answered(
    client: Client, out: Kept, mode: Mode
) -> None:
    assert await send(client, own(), mode=mode) == [200]
    [record] = out.records
    assert (record.topic, record.key) == ("inference", b"s/m")
    assert json.loads(record.value or b"")["duration_s"] == 0.1


async def test_a_batch_is_many_and_one_that_is_refused_does_not_spoil_the_others(client: Client, out: Kept) -> None:
    odd = own(type="com.example.odd")
    batch = b"[%s]" % b",".join(structured(each).body for each in (own(), odd, own(id="2")))
    response = await client.post(cloudevents.PATH, data=batch, headers={"Content-Type": cloudevents.BATCH})
    assert response.status == 400
    assert (await response.json())["reason"] == "wrong_type"
    assert len(out.records) == 2
    assert out.refused == {Reason.WRONG_TYPE: 1}


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (own(type="streammon.cat"), "wrong_type"),
        (kserve("request", {"instances": [1]}, inferenceservicename=""), "invalid_event"),
        (seldon("feedback", [1], inferenceservicename=""), "invalid_event"),
        (seldon("feedback", {"truth": {"cats": 1}}), "invalid_event"),
    ],
)
async def test_what_cannot_be_understood_is_refused_with_its_reason(
    client: Client, out: Kept, event: CloudEvent, reason: str
) -> None:
    message = binary(event)
    response = await client.post(cloudevents.PATH, data=message.body, headers=message.headers)
    assert (response.status, (await response.json())["reason"]) == (400, reason)
    assert out.refused == {reason: 1}
    assert not out.events


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (kserve("request", {"cats": 1}), "invalid_event"),
        (kserve("request", [1]), "invalid_event"),
        (kserve("request", {"inputs": [{"name": "x", "shape": [3], "data": [1]}]}), "unequal_lengths"),
        (kserve("request", "<x/>", datacontenttype="application/xml"), "invalid_event"),
    ],
)
async def test_a_request_whose_payload_cannot_be_read_is_counted_and_still_a_prediction(
    client: Client, out: Kept, event: CloudEvent, reason: str
) -> None:
    assert await send(client, event, kserve("response", {"predictions": [3]}, 0.5)) == [200, 200]
    [inference] = out.of(EventType.INFERENCE)
    assert (inference["duration_s"], inference["prediction"], "features" in inference) == (0.5, 3.0, False)
    assert out.refused == {reason: 1}


async def test_of_a_language_model_tokens_are_kept_and_no_content(client: Client, out: Kept) -> None:
    usage = {"prompt_tokens": 12, "completion_tokens": 34, "prompt_tokens_details": {"cached_tokens": 8}}
    asked = {"model": "llama", "messages": [{"role": "user", "content": "a secret"}]}
    said = {"model": "llama-3", "choices": [{"message": {"content": "another"}}], "usage": usage}
    await send(client, kserve("request", asked), kserve("response", said, 2.0))
    [event] = out.of(EventType.INFERENCE)
    assert (event["model"], event["input_tokens"], event["output_tokens"]) == ("llama-3", 12.0, 34.0)
    assert event["cache_read_tokens"] == 8.0
    assert "secret" not in str(event)
    assert "another" not in str(event)


async def test_classes_beyond_the_number_of_features_are_still_probabilities(client: Client, out: Kept) -> None:
    probabilities = [0.005] * 100 + [0.5]
    await send(client, kserve("request", {"instances": [1]}), kserve("response", {"predictions": [probabilities]}))
    [event] = out.of(EventType.INFERENCE)
    assert (event["prediction"], event["confidence"]) == (100.0, 0.5)


async def test_a_backlog_and_a_web_page_are_refused(client: Client, out: Kept) -> None:
    out.backlog = 10**9
    assert await send(client, own()) == [429]
    out.backlog = 0
    message = binary(own())
    headers = {**message.headers, "Origin": "http://evil.example"}
    assert (await client.post(cloudevents.PATH, data=message.body, headers=headers)).status == 403


# --- bounds and fuzz ------------------------------------------------------------------------------------------


def test_what_waits_is_bounded_in_number_and_bytes_and_the_oldest_is_given_up() -> None:
    pairs = Pairs(within_s=60, most=3, most_bytes=10_000)
    half = Half(True, 1.0, Payload([{"x0": 1.0}], 1))
    for n in range(4):
        assert pairs.add(Id("s", "m", "", f"r{n}"), half, now=n) is None
    assert list(pairs.give_up(4)) == [(Loss.UNANSWERED, 1)]
    assert pairs.add(Id("s", "m", "", "r0"), Half(False, 2.0, Payload([], 1)), now=5) is None, "r0 was given up"
    large = Half(True, 1.0, Payload([{"x0": "y" * 20_000}], 1))
    pairs.add(Id("s", "m", "", "large"), large, now=5)
    assert sum(predictions for _, predictions in pairs.give_up(5)) == 5
    assert pairs.waiting == 0


def test_seldons_tensors_and_strings_are_rows() -> None:
    tensor = payload({"data": {"names": ["a", "b"], "tensor": {"shape": [2, 2], "values": [1, 2, 3, 4]}}}, 9)
    assert (tensor.rows, tensor.named) == ([{"a": 1.0, "b": 2.0}, {"a": 3.0, "b": 4.0}], True)
    assert payload({"strData": "hello"}, 9).rows == [{"x0": "hello"}]


def test_several_outputs_that_are_no_probabilities_are_metrics() -> None:
    assert prediction_of({"x0": 3.0, "x1": 4.0}, named=False).metrics == {"x0": 3.0, "x1": 4.0}
    assert prediction_of({"x0": 0.25, "x1": 0.75}, named=False)[:2] == (1.0, 0.75)
    assert prediction_of({}, named=False) == (None, None, None)


JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)
KEYS = st.sampled_from(
    ["instances", "predictions", "inputs", "outputs", "data", "strData", "status", "error", "usage", "choices"]
)
TENSORS = st.lists(
    st.fixed_dictionaries({"name": JSONS, "shape": st.lists(st.integers(-1, 3), max_size=3), "data": JSONS}), max_size=2
)
BODIES = JSONS | st.dictionaries(KEYS, JSONS | TENSORS, max_size=4)


@examples(max_examples=200)
@given(BODIES, BODIES)
def test_any_payload_is_events_that_are_valid_or_refused(asked: Any, said: Any) -> None:
    out = Kept()
    try:
        request, response = payload(asked, 4), payload(said, 4)
    except Rejected:
        return
    events, _ = inferences(Id("s", "m", "", "1"), Half(True, 1.0, request), Half(False, 2.0, response))
    out.put(EventType.INFERENCE, events)


@examples(max_examples=200)
@given(st.binary(max_size=60), st.sampled_from([cloudevents.STRUCTURED, cloudevents.BATCH, "application/json"]))
def test_any_bytes_are_cloudevents_or_refused(body: bytes, kind: str) -> None:
    headers = {"Ce-Specversion": "1.0", "ce-id": "1", "ce-source": "/", "ce-type": "t", "ce-time": "2023-11-14T22:13Z"}
    try:
        for event in cloudevents.cloud_events(kind, headers, body):
            payload_of(cloudevents.data_of(event), 4)
    except Rejected:
        pass


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(Rejected):
        payload_of(b'{"inputs":[{"name":"x","shape":[1],"data":' + b"[" * 5000 + b"1" + b"]" * 5000 + b"}]}", 4)
