"""Calls of language models, watched at the real clients of OpenAI and Anthropic; the server is a fake that speaks like
theirs."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from anthropic import Anthropic, AsyncAnthropic
from openai import AsyncOpenAI, OpenAI, RateLimitError

from streammon.wire import decode
from streammon_agents import Monitor
from streammon_agents.packing import Batch
from streammon_agents.sdk.llm import watch_client
from streammon_agents.sdk.summaries import Text
from tests.support import eventually

ASKED: dict[str, Any] = {"model": "gpt-x", "messages": [{"role": "user", "content": "What is the secret word?"}]}
ASKED_CLAUDE: dict[str, Any] = {"model": "claude-x", "max_tokens": 50, "messages": ASKED["messages"]}
GAP_S = 0.05
"""Between the pieces of an answer."""

CHAT = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-x-2026-01-01",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "marzipan"}, "finish_reason": "stop"}],
    "usage": {
        "prompt_tokens": 100,
        "completion_tokens": 20,
        "total_tokens": 120,
        "prompt_tokens_details": {"cached_tokens": 64},
        "completion_tokens_details": {"reasoning_tokens": 12},
    },
}
RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1,
    "model": "gpt-x-2026-01-01",
    "status": "completed",
    "output": [
        {
            "type": "message", "id": "m", "role": "assistant", "status": "completed",
            "content": [{"type": "output_text", "text": "marzipan", "annotations": []}],
        }
    ],
    "parallel_tool_calls": False, "tool_choice": "auto", "tools": [],
    "usage": {
        "input_tokens": 100, "output_tokens": 20, "total_tokens": 120,
        "input_tokens_details": {"cached_tokens": 64},
        "output_tokens_details": {"reasoning_tokens": 12},
    },
}  # fmt: skip
EMBEDDINGS = {
    "object": "list", "model": "embed-x", "data": [{"object": "embedding", "index": 0, "embedding": [0.1, 0.2]}],
    "usage": {"prompt_tokens": 7, "total_tokens": 7},
}  # fmt: skip
MESSAGE = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x-20260101", "stop_reason": "end_turn",
    "stop_sequence": None, "content": [{"type": "text", "text": "marzipan"}],
    "usage": {
        "input_tokens": 30, "output_tokens": 20, "cache_read_input_tokens": 64, "cache_creation_input_tokens": 6,
    },
}  # fmt: skip
CHAT_TOKENS = {"input_tokens": 100, "output_tokens": 20, "cache_read_tokens": 64, "reasoning_tokens": 12}
CLAUDE_TOKENS = {"input_tokens": 100, "output_tokens": 20, "cache_read_tokens": 64, "cache_write_tokens": 6}


def chunk(delta: dict[str, Any], **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-x-2026-01-01"}
    return {**head, "choices": [choice], **more}


CHAT_STREAM = [
    chunk({"role": "assistant", "content": ""}),
    *(chunk({"content": piece}) for piece in ("mar", "zi", "pan")),
    {**chunk({}), "choices": [], "usage": CHAT["usage"]},
]
RESPONSE_STREAM = [
    {
        "type": "response.created", "sequence_number": 0,
        "response": {**RESPONSE, "status": "in_progress", "usage": None},
    },
    *(
        {
            "type": "response.output_text.delta", "sequence_number": 1, "item_id": "m", "output_index": 0,
            "content_index": 0, "delta": piece, "logprobs": [],
        }
        for piece in ("mar", "zi", "pan")
    ),
    {"type": "response.completed", "sequence_number": 2, "response": RESPONSE},
]  # fmt: skip
CLAUDE_STREAM = [
    {
        "type": "message_start",
        "message": {**MESSAGE, "content": [], "stop_reason": None, "usage": {**MESSAGE["usage"], "output_tokens": 1}},  # type: ignore[dict-item]
    },
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    *(
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece}}
        for piece in ("mar", "zi", "pan")
    ),
    {"type": "content_block_stop", "index": 0},
    {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn", "stop_sequence": None},
        "usage": {"output_tokens": 20},
    },
    {"type": "message_stop"},
]
WHOLE = {"chat/completions": CHAT, "responses": RESPONSE, "embeddings": EMBEDDINGS, "messages": MESSAGE}
PIECES: dict[str, list[Any]] = {
    "chat/completions": CHAT_STREAM,
    "responses": RESPONSE_STREAM,
    "messages": CLAUDE_STREAM,
}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        resource = self.path.removeprefix("/v1/").partition("?")[0]
        if asked["model"] == "busy":
            self._answer(429, {"error": {"message": "busy", "type": "rate_limit_error", "code": None, "param": None}})
        elif asked.get("stream"):
            self._stream(PIECES[resource])
        else:
            self._answer(200, WHOLE[resource])

    def _answer(self, status: int, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, pieces: list[dict[str, Any]]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        with suppress(ConnectionError):  # who has heard enough hangs up
            for piece in pieces:
                time.sleep(GAP_S)
                name = f"event: {piece['type']}\n" if "type" in piece else ""
                self.wfile.write(f"{name}data: {json.dumps(piece)}\n\n".encode())
            if "type" not in pieces[0]:
                self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def provider() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


class Sent:
    """A transport that keeps what it is given."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []

    def send(self, batch: Batch) -> None:
        self.batches.append(batch)

    def close(self) -> None:
        pass

    def events(self) -> list[dict[str, Any]]:
        return [
            decoded.rows.event(row)
            for batch in self.batches
            for decoded in decode(batch.event_type, batch.value)
            for row in range(len(decoded.rows))
        ]


@contextmanager
def monitored(**options: Any) -> Iterator[tuple[Monitor, Callable[[], dict[str, Any]]]]:
    """A monitor, and its one event."""
    sent = Sent()
    monitor = Monitor(service="assistant", host="here", transport=lambda: sent, **options)

    def only() -> dict[str, Any]:
        monitor.close()
        [event] = sent.events()
        return event

    try:
        yield monitor, only
    finally:
        monitor.close()


def openai(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def anthropic(url: str) -> Anthropic:
    return Anthropic(base_url=url, api_key="none", max_retries=0)


def chosen(event: dict[str, Any], names: dict[str, Any]) -> dict[str, Any]:
    tokens = {name: value for name, value in event.items() if name.endswith("_tokens")}
    assert set(tokens) == set(names)
    return tokens


# --- whole answers ------------------------------------------------------------------------------------------------


def ask_chat(url: str, monitor: Monitor) -> Any:
    return monitor.llm(openai(url)).chat.completions.create(**ASKED).choices[0].message.content


def ask_responses(url: str, monitor: Monitor) -> Any:
    return monitor.llm(openai(url)).responses.create(model="gpt-x", input="What?").output_text


def ask_messages(url: str, monitor: Monitor) -> Any:
    block = monitor.llm(anthropic(url)).messages.create(**ASKED_CLAUDE).content[0]
    return block.text if block.type == "text" else None


@pytest.mark.parametrize(
    ("ask", "expected", "tokens"),
    [
        (ask_chat, ("gpt-x", "gpt-x-2026-01-01", "openai", "chat.completions", "chatcmpl-1"), CHAT_TOKENS),
        (ask_responses, ("gpt-x", "gpt-x-2026-01-01", "openai", "responses", "resp_1"), CHAT_TOKENS),
        (ask_messages, ("claude-x", "claude-x-20260101", "anthropic", "messages", "msg_1"), CLAUDE_TOKENS),
    ],
)
def test_whole_answer_is_one_event_with_its_tokens(
    provider: str, ask: Callable[[str, Monitor], Any], expected: tuple[str, ...], tokens: dict[str, int]
) -> None:
    with monitored() as (monitor, only):
        assert ask(provider, monitor) == "marzipan", "the service gets the answer it would have got"
        event = only()
    assert tuple(event[name] for name in ("model", "model_version", "provider", "endpoint", "event_id")) == expected
    assert chosen(event, tokens) == tokens
    assert event["status"] == "ok"
    assert event["duration_s"] > 0
    assert "ttft_s" not in event
    assert "secret" not in str(event)
    assert "marzipan" not in str(event), "content is off by default"


def test_embeddings_are_watched(provider: str) -> None:
    with monitored() as (monitor, only):
        client = monitor.llm(openai(provider))
        client.embeddings.create(model="embed-x", input="some text")
        event = only()
    assert (event["endpoint"], event["input_tokens"], event["model_version"]) == ("embeddings", 7, "embed-x")


def test_monitor_of_one_model_keeps_its_name_and_tells_what_answered_as_the_version(provider: str) -> None:
    with monitored(model="assistant") as (monitor, only):
        ask_chat(provider, monitor)
        event = only()
    assert (event["model"], event["model_version"]) == ("assistant", "gpt-x-2026-01-01")


def test_error_of_the_provider_is_an_error_and_comes_out_unchanged(provider: str) -> None:
    with monitored() as (monitor, only):
        with pytest.raises(RateLimitError):
            monitor.llm(openai(provider)).chat.completions.create(**{**ASKED, "model": "busy"})
        event = only()
    assert (event["status"], event["error_type"], event["http_status"]) == ("error", "RateLimitError", 429)
    assert event["model"] == "busy"


def test_raw_response_stays_raw_and_is_timed(provider: str) -> None:
    with monitored() as (monitor, only):
        raw = monitor.llm(openai(provider)).chat.completions.with_raw_response.create(**ASKED)
        assert raw.parse().id == "chatcmpl-1"
        event = only()
    assert event["status"] == "ok"


# --- streams ------------------------------------------------------------------------------------------------------


def stream_chat(url: str, monitor: Monitor) -> str:
    stream = monitor.llm(openai(url)).chat.completions.create(
        **ASKED, stream=True, stream_options={"include_usage": True}
    )
    return "".join(piece.choices[0].delta.content or "" for piece in stream if piece.choices)


def stream_chat_in_a_block(url: str, monitor: Monitor) -> str:
    asked: Any = {**ASKED, "stream_options": {"include_usage": True}}
    with monitor.llm(openai(url)).chat.completions.stream(**asked) as stream:
        return "".join(event.delta for event in stream if event.type == "content.delta")


def stream_responses(url: str, monitor: Monitor) -> str:
    stream = monitor.llm(openai(url)).responses.create(model="gpt-x", input="What?", stream=True)
    return "".join(event.delta for event in stream if event.type == "response.output_text.delta")


def stream_messages(url: str, monitor: Monitor) -> str:
    stream = monitor.llm(anthropic(url)).messages.create(**ASKED_CLAUDE, stream=True)
    return "".join(
        event.delta.text for event in stream if event.type == "content_block_delta" and event.delta.type == "text_delta"
    )


def stream_messages_in_a_block(url: str, monitor: Monitor) -> str:
    with monitor.llm(anthropic(url)).messages.stream(**ASKED_CLAUDE) as stream:
        return "".join(stream.text_stream)


def stream_chat_async(url: str, monitor: Monitor) -> str:
    async def ask() -> str:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            stream = await monitor.llm(client).chat.completions.create(
                **ASKED, stream=True, stream_options={"include_usage": True}
            )
            return "".join([piece.choices[0].delta.content or "" async for piece in stream if piece.choices])

    return asyncio.run(ask())


def stream_chat_async_in_a_block(url: str, monitor: Monitor) -> str:
    async def ask() -> str:
        asked: Any = {**ASKED, "stream_options": {"include_usage": True}}
        client = monitor.llm(AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0))
        async with client, client.chat.completions.stream(**asked) as stream:
            return "".join([event.delta async for event in stream if event.type == "content.delta"])

    return asyncio.run(ask())


def stream_messages_async_in_a_block(url: str, monitor: Monitor) -> str:
    async def ask() -> str:
        client = monitor.llm(AsyncAnthropic(base_url=url, api_key="none", max_retries=0))
        async with client, client.messages.stream(**ASKED_CLAUDE) as stream:
            return "".join([text async for text in stream.text_stream])

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("ask", "tokens", "before"),
    [
        (stream_chat, CHAT_TOKENS, 2),
        (stream_chat_in_a_block, CHAT_TOKENS, 2),
        (stream_chat_async, CHAT_TOKENS, 2),
        (stream_chat_async_in_a_block, CHAT_TOKENS, 2),
        (stream_responses, CHAT_TOKENS, 2),
        (stream_messages, CLAUDE_TOKENS, 3),
        (stream_messages_in_a_block, CLAUDE_TOKENS, 3),
        (stream_messages_async_in_a_block, CLAUDE_TOKENS, 3),
    ],
)
def test_stream_is_one_event_with_the_time_to_its_first_token(
    provider: str, ask: Callable[[str, Monitor], str], tokens: dict[str, int], before: int
) -> None:
    """``before``: pieces until the answer begins, `GAP_S` apart."""
    with monitored() as (monitor, only):
        assert ask(provider, monitor) == "marzipan"
        event = only()
    assert chosen(event, tokens) == tokens
    assert event["status"] == "ok"
    assert event["ttft_s"] >= before * GAP_S
    assert event["tpot_s"] == pytest.approx(2 * GAP_S / 19, rel=1.0), "from the first token to the last"
    assert event["ttft_s"] + 19 * event["tpot_s"] <= event["duration_s"]
    assert event["duration_s"] >= 5 * GAP_S


def test_chat_stream_whose_tokens_nobody_counted_has_none(provider: str) -> None:
    with monitored() as (monitor, only):
        stream = monitor.llm(openai(provider)).chat.completions.create(**ASKED, stream=True)
        for piece in stream:
            if piece.choices and piece.choices[0].delta.content == "pan":
                break
        stream.close()
        event = only()
    assert event["ttft_s"] > 0
    assert event["status"] == "ok", "who stops reading has what they wanted"
    assert "tpot_s" not in event
    assert "output_tokens" not in event


def test_stream_that_is_just_forgotten_is_reported(provider: str) -> None:
    with monitored() as (monitor, only):
        stream = monitor.llm(openai(provider)).chat.completions.create(**ASKED, stream=True)
        next(iter(stream))
        del stream
        gc.collect()  # the client's own streams refer to themselves
        assert only()["status"] == "ok"


def test_stream_that_breaks_is_an_error(provider: str) -> None:
    def breaking() -> Iterator[Any]:
        yield chunk({"content": "mar"})
        raise ConnectionResetError

    client = shaped(lambda **_: breaking())
    with monitored() as (monitor, only):
        with pytest.raises(ConnectionResetError):
            list(monitor.llm(client).chat.completions.create(**ASKED, stream=True))
        event = only()
    assert (event["status"], event["error_type"]) == ("error", "ConnectionResetError")
    assert event["ttft_s"] >= 0


# --- clients of the same shape ------------------------------------------------------------------------------------


def shaped(create: Callable[..., Any]) -> Any:
    return SimpleNamespace(chat=SimpleNamespace(completions=SimpleNamespace(create=create)))


def test_client_of_the_same_shape_that_answers_with_dicts_is_watched() -> None:
    with monitored() as (monitor, only):
        client = monitor.llm(shaped(lambda **_: CHAT), provider="mistral_ai")
        assert client.chat.completions.create(**ASKED) is CHAT
        event = only()
    assert chosen(event, CHAT_TOKENS) == CHAT_TOKENS
    assert event["provider"] == "mistral_ai"


async def test_stream_of_dicts_without_a_client_class_is_watched() -> None:
    async def pieces() -> AsyncIterator[Any]:
        for piece in CHAT_STREAM:
            yield piece

    async def create(**_: Any) -> Any:
        return pieces()

    with monitored() as (monitor, only):
        stream = await monitor.llm(shaped(create)).chat.completions.create(**ASKED, stream=True)
        assert len([piece async for piece in stream]) == len(CHAT_STREAM)
        await eventually(lambda: sum(monitor.stats[:3]) == 1)
        assert chosen(only(), CHAT_TOKENS) == CHAT_TOKENS


@pytest.mark.parametrize("answer", [None, 7, "text", {"usage": "lots", "id": 3}, {"choices": [None]}, object()])
def test_answer_of_any_shape_comes_out_unchanged_and_is_timed(answer: Any) -> None:
    with monitored() as (monitor, only):
        assert monitor.llm(shaped(lambda **_: answer)).chat.completions.create(**ASKED) is answer
        assert only()["duration_s"] >= 0


def test_client_that_is_watched_twice_is_watched_once() -> None:
    with monitored() as (monitor, only):
        monitor.llm(monitor.llm(shaped(lambda **_: CHAT))).chat.completions.create(**ASKED)
        only()


def test_what_is_no_client_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"dict is no client .* chat\.completions\.create"):
        watch_client({}, lambda fields: None)


def test_client_that_makes_its_resources_anew_at_each_look_is_refused() -> None:
    class Client:
        @property
        def messages(self) -> Any:
            return SimpleNamespace(create=lambda **_: MESSAGE)

    with pytest.raises(TypeError, match="no client that can be watched"):
        watch_client(Client(), lambda fields: None)


def test_answer_that_can_be_entered_is_still_the_answer() -> None:
    answer = MagicMock()
    with monitored() as (monitor, only):
        assert monitor.llm(shaped(lambda **_: answer)).chat.completions.create(**ASKED) is answer
        only()


# --- content ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ask", [stream_chat, stream_messages_in_a_block, ask_chat, ask_messages, ask_responses])
def test_content_is_sent_where_it_is_wanted(
    provider: str, ask: Callable[[str, Monitor], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monitored() as (monitor, only):
        monkeypatch.setattr(monitor, "llm", partial(monitor.llm, content=True))
        ask(provider, monitor)
        features = only()["features"]
    assert features["completion"] == "marzipan"
    assert features["prompt"].startswith("What")


def test_of_content_only_its_length_can_be_sent(provider: str) -> None:
    with monitored(summaries={"prompt": Text(), "completion": Text()}) as (monitor, only):
        monitor.llm(openai(provider), content=True).chat.completions.create(**ASKED)
        event = only()
    assert event["features"] == {"prompt.length": len("What is the secret word?"), "completion.length": 8}
    assert "marzipan" not in str(event)
