"""Calls of language models, watched at their client: ``client = monitor.llm(OpenAI())``, and nothing else changes.

The client stays the object it was; its methods that ask a model are watched from then on, sync and async, streaming or
not, for OpenAI's shape (``chat.completions``, ``responses``, ``completions``, ``embeddings``) and Anthropic's
(``messages``), also below ``beta``. One call, its retries included, is one inference event with

* the model that answered (``model_version``), its provider, what was asked for (``endpoint``), and the answer's id
  (``event_id``: what `Monitor.feedback` is given later);
* its tokens, as the provider counted them: ``input_tokens`` are all that were read, from a cache or not;
* of a stream, the time to the first piece of the answer (``ttft_s``) and, if its tokens were counted, the mean time
  for each further one (``tpot_s``). OpenAI counts tokens of a chat stream only if it is asked to, by
  ``stream_options={"include_usage": True}``; without that these fields are absent.

**Content stays where it is**: neither prompts nor answers are read, unless the client is watched with
``content=True``; then the features ``prompt`` and ``completion`` have them, cut after `MAX_TEXT` characters.

It cannot see what goes around the client's methods, and counts no tokens of a raw response. Whatever shape an answer
has, the service gets it unchanged, and a call is never failed by being watched.
"""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from streammon_agents.sdk import trace

MAX_TEXT = 8000
"""Characters of a prompt or an answer that are sent at most, where content is wanted."""

Client = TypeVar("Client")
Record = Callable[[dict[str, Any]], None]

_ASKING = {
    "chat.completions": ("create", "parse", "stream"),
    "responses": ("create", "parse", "stream"),
    "completions": ("create",),
    "embeddings": ("create",),
    "messages": ("create", "parse", "stream"),
}
"""By resource of a client, the methods that ask a model."""

_PROVIDERS = (
    ("AzureOpenAI", "azure.ai.openai"),
    ("Bedrock", "aws.bedrock"),
    ("Vertex", "gcp.vertex_ai"),
    ("Anthropic", "anthropic"),
    ("OpenAI", "openai"),
)
"""What is in the name of a client's class, and the provider's name in OpenTelemetry's conventions."""

_inside: ContextVar[bool] = ContextVar("streammon_llm_inside", default=False)
"""Whether a watched call is being made: clients make some of their calls by others."""


def watch_client(client: Client, record: Record, *, provider: str | None = None, content: bool = False) -> Client:
    """Watch a client in place; the same client. ``record`` is given the fields of each call.

    Raises:
        TypeError: it has none of the methods that are known.
    """
    found = provider or _provider(client)
    watched = [
        _watch(root, name, method, _Describe(record, found, name, content))
        for root in (client, getattr(client, "beta", None))
        for name, methods in _ASKING.items()
        for method in methods
    ]
    if not any(watched):
        raise TypeError(
            f"{type(client).__name__} is no client that can be watched: it has none of "
            f"{', '.join(f'{name}.{methods[0]}' for name, methods in _ASKING.items())}"
        )
    return client


def _provider(client: object) -> str | None:
    name = type(client).__name__
    return next((provider for part, provider in _PROVIDERS if part in name), None)


def _resource(root: Any, path: str) -> Any:
    for name in path.split("."):
        root = getattr(root, name, None)
    return root


@dataclass(frozen=True)
class _Describe:
    """What all calls of one resource have in common."""

    record: Record
    provider: str | None
    endpoint: str
    content: bool
    in_a_block: bool = False
    """Whether what it gives is entered first: ``with client.messages.stream(…) as stream``."""


def _watch(root: Any, name: str, method: str, about: _Describe) -> bool:
    """Put a watched method in the place of one; whether there is one now."""
    resource = _resource(root, name)
    original = getattr(resource, method, None)
    if not callable(original):
        return False
    if not getattr(original, "_streammon", False):  # a client that is watched twice is watched once
        about = replace(about, in_a_block=method == "stream")
        watched = (_async_call if inspect.iscoroutinefunction(original) else _call)(original, about)
        watched._streammon = True
        setattr(resource, method, watched)
    return getattr(getattr(_resource(root, name), method), "_streammon", False)  # not if it is made anew at each look


def _call(original: Callable[..., Any], about: _Describe) -> Any:
    @functools.wraps(original)
    def watched(*args: Any, **kwargs: Any) -> Any:
        if _inside.get():
            return original(*args, **kwargs)
        call = _Call(about, kwargs)
        with call.failing():
            answer = _alone(original, *args, **kwargs)
            if inspect.isawaitable(answer):  # a coroutine function in disguise
                return _awaited(answer, call)
        return call.answered(answer)

    return watched


def _async_call(original: Callable[..., Any], about: _Describe) -> Any:
    @functools.wraps(original)
    async def watched(*args: Any, **kwargs: Any) -> Any:
        if _inside.get():
            return await original(*args, **kwargs)
        return await _awaited(original(*args, **kwargs), _Call(about, kwargs))

    return watched


async def _awaited(answer: Any, call: _Call) -> Any:
    with call.failing():
        token = _inside.set(True)
        try:
            found = await answer
        finally:
            _inside.reset(token)
    return call.answered(found)


def _alone(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function; what it calls itself is not watched."""
    token = _inside.set(True)
    try:
        return function(*args, **kwargs)
    finally:
        _inside.reset(token)


# --- one call -------------------------------------------------------------------------------------------------


class _Failing:
    """A block whose exception is the end of a call."""

    def __init__(self, call: _Call) -> None:
        self._call = call

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if error is not None:
            self._call.ended(error)


@dataclass
class _Learned:
    """What the answer, or the pieces of it so far, said."""

    id: str | None = None
    model: str | None = None
    usage: dict[str, float] = field(default_factory=dict)
    text: list[str] = field(default_factory=list)
    error: str | None = None


class _Call:
    def __init__(self, about: _Describe, request: Mapping[str, Any]) -> None:
        self._about = about
        self._request = request
        self._learned = _Learned()
        self._trace = _quietly(trace.current)
        self._started = time.perf_counter()
        self._first: float | None = None
        self._last = self._started
        self._over = False

    def failing(self) -> _Failing:
        return _Failing(self)

    def answered(self, answer: Any) -> Any:
        """The answer as the service gets it; a stream goes on, and anything else is the end."""
        if self._about.in_a_block:
            return _AsyncManager(answer, self) if hasattr(answer, "__aenter__") else _Manager(answer, self)
        if self._request.get("stream") and (hasattr(answer, "__next__") or hasattr(answer, "__anext__")):
            return self.streaming(answer)
        self._learn(answer)
        self.ended()
        return answer

    def streaming(self, stream: Any) -> Any:
        """The stream, whose pieces are looked at as they pass."""
        inner = getattr(stream, "_iterator", None)  # what both clients' streams, and those above them, read from
        asynchronous = hasattr(stream, "__anext__")
        if inner is None:
            if asynchronous:
                return _Async(stream, self._over_async(stream), self)
            return _Sync(stream, self._over_sync(stream), self)
        stream._iterator = self._over_async(inner) if asynchronous else self._over_sync(inner)
        stream.close = self._closing(stream.close)
        return stream

    def _closing(self, close: Callable[[], Any]) -> Callable[[], Any]:
        """Both kinds: that of an asynchronous stream gives something to wait for."""

        def closing() -> Any:
            self.ended()
            return close()

        return closing

    def _over_sync(self, pieces: Iterator[Any]) -> Iterator[Any]:
        with self.failing():
            for piece in pieces:
                self._take(piece)
                yield piece
        self.ended()

    async def _over_async(self, pieces: AsyncIterator[Any]) -> AsyncIterator[Any]:
        with self.failing():
            async for piece in pieces:
                self._take(piece)
                yield piece
        self.ended()

    def _take(self, piece: Any) -> None:
        if _quietly(lambda: _has_content(piece)):
            self._last = time.perf_counter()
            self._first = self._first or self._last
        self._learn(piece)

    def _learn(self, answer: Any) -> None:
        with suppress(Exception):  # a shape that nobody knows yet costs its fields, not the service
            _learn(answer, self._learned, content=self._about.content)

    def ended(self, error: BaseException | None = None) -> None:
        """Report the call, once. Whoever stops reading a stream has what they wanted."""
        if self._over:
            return
        self._over = True
        with suppress(Exception):
            self._about.record(self._fields(None if isinstance(error, GeneratorExit) else error))

    def _fields(self, error: BaseException | None) -> dict[str, Any]:
        learned, ended = self._learned, time.perf_counter()
        fields: dict[str, Any] = {
            "duration_s": ended - self._started,
            "status": "ok",
            "provider": self._about.provider,
            "endpoint": self._about.endpoint,
            "model": self._request.get("model"),
            "model_version": learned.model,
            "event_id": learned.id,
            **_tokens(learned.usage),
        }
        if error is not None or learned.error is not None:
            status = getattr(error, "status_code", None)
            fields |= {"status": "error", "error_type": type(error).__name__ if error else learned.error}
            fields["http_status"] = status if isinstance(status, int) else None
        if self._trace is not None:
            fields |= {"trace_id": self._trace.trace_id, "span_id": self._trace.span_id}
        if self._first is not None:
            fields["ttft_s"] = self._first - self._started
            if (further := (fields.get("output_tokens") or 0) - 1) > 0:
                fields["tpot_s"] = (self._last - self._first) / further
        if self._about.content:
            fields["features"] = {"prompt": _prompt(self._request), "completion": _cut("".join(learned.text))}
        return fields


def _quietly(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception:
        return None


# --- streams, as the service sees them ----------------------------------------------------------------------------


class _Wrapped:
    """All of another object, but for what a subclass does itself."""

    def __init__(self, wrapped: Any, call: _Call) -> None:
        self._wrapped, self._call = wrapped, call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)


class _Manager(_Wrapped):
    """What a stream is read in; the call began when it was asked for."""

    def __enter__(self) -> Any:
        with self._call.failing():
            return self._call.streaming(_alone(self._wrapped.__enter__))

    def __exit__(self, kind: Any, error: BaseException | None, where: Any) -> Any:
        self._call.ended(error)
        return self._wrapped.__exit__(kind, error, where)


class _AsyncManager(_Wrapped):
    async def __aenter__(self) -> Any:
        with self._call.failing():
            token = _inside.set(True)
            try:
                stream = await self._wrapped.__aenter__()
            finally:
                _inside.reset(token)
            return self._call.streaming(stream)

    async def __aexit__(self, kind: Any, error: BaseException | None, where: Any) -> Any:
        self._call.ended(error)
        return await self._wrapped.__aexit__(kind, error, where)


class _Sync(_Wrapped):
    """A stream of a client that is shaped like the others, but made otherwise."""

    def __init__(self, stream: Any, pieces: Iterator[Any], call: _Call) -> None:
        super().__init__(stream, call)
        self._pieces = pieces

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self._pieces)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, _: Any, error: BaseException | None, __: Any) -> None:
        self._call.ended(error)
        self.close()

    def close(self) -> None:
        self._call.ended()
        getattr(self._wrapped, "close", bool)()


class _Async(_Wrapped):
    def __init__(self, stream: Any, pieces: AsyncIterator[Any], call: _Call) -> None:
        super().__init__(stream, call)
        self._pieces = pieces

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        return await anext(self._pieces)

    async def __aenter__(self) -> Any:
        return self

    async def __aexit__(self, _: Any, error: BaseException | None, __: Any) -> None:
        self._call.ended(error)
        await self.close()

    async def close(self) -> None:
        self._call.ended()
        close = getattr(self._wrapped, "close", None) or getattr(self._wrapped, "aclose", None)
        if close is not None:
            await close()


# --- what an answer says -------------------------------------------------------------------------------------------


def _get(value: Any, *path: str) -> Any:
    """An attribute of an attribute, of objects or of mappings; None where there is none."""
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
    return value


def _learn(answer: Any, learned: _Learned, *, content: bool, depth: int = 1) -> None:
    """Of a whole answer, a piece, or an event with one of them inside."""
    for inner in ("message", "response", "chunk"):  # Anthropic's message_start, OpenAI's response.*, helpers' events
        if depth and (inside := _get(answer, inner)) is not None:
            _learn(inside, learned, content=False, depth=depth - 1)
    for name in ("id", "model"):
        if isinstance(value := _get(answer, name), str) and value and getattr(learned, name) is None:
            setattr(learned, name, value)
    _learn_usage(_get(answer, "usage"), learned.usage)
    if (kind := _get(answer, "type")) in ("response.failed", "error"):
        learned.error = str(_get(answer, "response", "error", "code") or _get(answer, "code") or kind)
    if content:
        learned.text += _texts(answer)


_DETAILS = {
    "prompt_tokens_details": "cached_tokens",
    "input_tokens_details": "cached_tokens",
    "completion_tokens_details": "reasoning_tokens",
    "output_tokens_details": "reasoning_tokens",
}
_COUNTS = (
    "prompt_tokens", "completion_tokens", "input_tokens", "output_tokens",
    "cache_read_input_tokens", "cache_creation_input_tokens",
)  # fmt: skip


def _learn_usage(usage: Any, known: dict[str, float]) -> None:
    """Later numbers replace earlier ones: Anthropic's grow while an answer does."""
    if usage is None:
        return
    counts = {name: _get(usage, name) for name in _COUNTS}
    counts |= {name: _get(usage, details, name) for details, name in _DETAILS.items() if _get(usage, details)}
    known.update({name: count for name, count in counts.items() if isinstance(count, int | float)})


def _tokens(usage: Mapping[str, float]) -> dict[str, Any]:
    """Anthropic does not count in ``input_tokens`` what its cache read or took in; OpenAI does."""
    read, written = usage.get("cache_read_input_tokens"), usage.get("cache_creation_input_tokens")
    given = usage.get("input_tokens", usage.get("prompt_tokens"))
    return {
        "input_tokens": None if given is None else given + (read or 0) + (written or 0),
        "output_tokens": usage.get("output_tokens", usage.get("completion_tokens")),
        "cache_read_tokens": usage.get("cached_tokens", read),
        "cache_write_tokens": written,
        "reasoning_tokens": usage.get("reasoning_tokens"),
    }


_CONTENT = ("content", "tool_calls", "function_call", "refusal", "reasoning_content", "reasoning", "audio")


def _has_content(piece: Any) -> bool:
    """Whether a piece of a stream brings something of the answer itself."""
    piece = _get(piece, "chunk") or piece
    if isinstance(kind := _get(piece, "type"), str):
        return bool(_get(piece, "delta")) and (kind == "content_block_delta" or kind.endswith(".delta"))
    return any(
        _get(choice, "text") or any(_get(choice, "delta", name) for name in _CONTENT)
        for choice in _get(piece, "choices") or ()
    )


# --- content, where it is wanted -----------------------------------------------------------------------------------


def _texts(answer: Any) -> list[str]:
    """The texts of an answer, or of a piece of one."""
    kind = _get(answer, "type")
    if kind == "content_block_delta":
        return _strings(_get(answer, "delta", "text"))
    if kind == "response.output_text.delta":
        return _strings(_get(answer, "delta"))
    found = [
        text
        for choice in _get(answer, "choices") or ()
        for text in _strings(
            _get(choice, "message", "content") or _get(choice, "delta", "content") or _get(choice, "text")
        )
    ]
    if kind == "message":
        found += [text for block in _get(answer, "content") or () for text in _strings(_get(block, "text"))]
    for item in _get(answer, "output") or ():
        found += [text for block in _get(item, "content") or () for text in _strings(_get(block, "text"))]
    return found


def _strings(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else []


def _prompt(request: Mapping[str, Any]) -> str | None:
    """The texts of a request, in order."""
    asked = [request.get(name) for name in ("system", "instructions", "messages", "input", "prompt")]
    return _cut("\n".join(_all_texts(asked, 6)))


def _all_texts(value: Any, depth: int) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif depth and isinstance(value, list | tuple):
        for inner in value:
            yield from _all_texts(inner, depth - 1)
    elif depth and value is not None:
        yield from _all_texts(_get(value, "content") or _get(value, "text"), depth - 1)


def _cut(text: str) -> str | None:
    return text[:MAX_TEXT] or None
