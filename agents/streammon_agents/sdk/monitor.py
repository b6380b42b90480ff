"""The SDK: how a service says what its model did, without waiting for it and without failing because of it.

::

    from streammon_agents import Monitor

    monitor = Monitor(service="shop", model="ranker", model_version="3")

    @monitor.watch                                # plain, async and generator functions
    def rank(basket): ...

    with monitor.measure(endpoint="/rank") as call:   # `async with` too
        call.set(prediction=0.7, event_id="a1")

    monitor.record(duration_s=0.012, status="ok", input_tokens=310, queue_length=3, cache_hit=True)
    monitor.count("refunds", shop="berlin")       # and gauge, observe: metrics of your own
    monitor.label("a1", label=1.0)                # when the truth is known; `feedback` is what people say
    monitor.change("deploy", model_version="4")

    client = monitor.llm(OpenAI())                # every call of a language model, streams too

Fields are those of `streammon.events.Inference`, `Label` and `Change`. Events go to the HTTP intake of ``streammon
up`` or the gateway (``url``, or ``STREAMMON_URL``), or straight to Kafka (``bootstrap``, or
``STREAMMON_BOOTSTRAP``). They belong to the trace of the request that is being answered, if that is known: see
`streammon_agents.sdk.trace`.

An event carries the time at which its call *ended*: a long answer is then not a late event. What happens to
it between here and there, and what is dropped when nobody takes it, is told in `streammon_agents.sdk.courier`. A
monitor survives a fork (gunicorn's ``preload_app``): the child starts anew. A worker of `multiprocessing`
runs no exit handlers, and has to `Monitor.close` by itself.
"""

from __future__ import annotations

import atexit
import functools
import inspect
import os
import random
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import aclosing
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar, overload

from streammon.clock import Clock, system_clock
from streammon.errors import ConfigError
from streammon.events import EventType
from streammon_agents.sdk.courier import Courier, Limits, Stats
from streammon_agents.sdk.fields import admit
from streammon_agents.sdk.llm import Client, watch_client
from streammon_agents.sdk.metrics import Sample
from streammon_agents.sdk.summaries import Summary, summarized
from streammon_agents.sdk.trace import Trace, current
from streammon_agents.sdk.transport import HttpTransport, Transport, kafka_transport

DEFAULT_URL = "http://127.0.0.1:8080"

P = ParamSpec("P")
R = TypeVar("R")


class Monitor:
    """Reports the calls of one model of one service.

    Without ``model`` every call has to name its own, as those of `llm` do. ``summaries`` say what is sent of features
    that are embeddings or free text: see `streammon_agents.sdk.summaries`; ``features`` is the share of calls, drawn
    at random, whose features are sent at all. ``limits`` bound what waits; ``transport`` makes the way out, for tests
    and other intakes.

    Raises:
        ConfigError: from the constructor only, when a value cannot be sent or the address is none.
    """

    def __init__(
        self,
        *,
        service: str,
        model: str | None = None,
        model_version: str | None = None,
        endpoint: str | None = None,
        host: str | None = None,
        summaries: Mapping[str, Summary] | None = None,
        features: float = 1.0,
        url: str | None = None,
        bootstrap: str | None = None,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        transport: Callable[[], Transport] | None = None,
        clock: Clock = system_clock,
    ) -> None:
        host = host or socket.gethostname()
        call: dict[str, Any] = {"model_version": model_version, "endpoint": endpoint, "host": host}
        model_key: dict[str, Any] = {"service": service, "model": model}
        constant = {
            EventType.INFERENCE: model_key | call,
            EventType.LABEL: model_key,
            EventType.CHANGE: model_key,
            EventType.RESOURCE: {"host": host, "entity": "service", "id": service},
        }
        _check(constant[EventType.INFERENCE])
        if not 0 <= features <= 1:
            raise ConfigError(f"features is {features!r}, expected the share of calls whose features are sent, 0 to 1")
        connect = transport or _transport(url, bootstrap)
        self._clock = clock
        self._summaries = dict(summaries or {})
        self._features = features
        self._own = {name: value for name, value in (model_key | call).items() if value is not None}
        self._new_courier = functools.partial(Courier, f"sdk@{host}", constant, connect, limits)
        self._courier = self._new_courier()
        _OPEN.add(self)

    def record(self, /, *, duration_s: float, status: str = "ok", **fields: Any) -> None:
        """Report a call that took ``duration_s`` seconds and ended now; never blocks, never raises."""
        self._put(EventType.INFERENCE, {**fields, "duration_s": duration_s, "status": status})

    def label(
        self,
        event_id: str,
        *,
        label: float | str | bool | None = None,
        score: float | None = None,
        rating: float | None = None,
        source: str | None = None,
        model: str | None = None,
    ) -> None:
        """Report what the truth turned out to be for the call with this ``event_id``, of this monitor's model."""
        fields = {"event_id": event_id, "label": label, "score": score, "rating": rating, "source": source}
        self._put(EventType.LABEL, fields | ({} if model is None else {"model": model}))

    def feedback(self, event_id: str, rating: float, *, source: str = "user", model: str | None = None) -> None:
        """Report what somebody thought of the answer with this ``event_id``: stars, or True and False for thumbs."""
        self.label(event_id, rating=float(rating), source=source, model=model)

    def change(
        self, kind: str, *, model_version: str | None = None, actor: str | None = None, ref: str | None = None
    ) -> None:
        """Report that something was done to the model: ``deploy``, ``rollback``, ``config``, ``retrain``, ``scale``."""
        fields = {"kind": kind, "model_version": model_version, "actor": actor, "ref": ref}
        self._put(EventType.CHANGE, fields)

    def count(self, name: str, value: float = 1, /, **labels: Any) -> None:
        """Add to a counter of the service's own. Like all metrics it is added up here, and sent once a second."""
        self._courier.put(EventType.RESOURCE, Sample("count", name, value, labels))

    def gauge(self, name: str, value: float, /, **labels: Any) -> None:
        """Say what a quantity of the service's own is now."""
        self._courier.put(EventType.RESOURCE, Sample("gauge", name, value, labels))

    def observe(self, name: str, value: float, /, **labels: Any) -> None:
        """Add a value to a distribution of the service's own, such as a size: windows have its quantiles."""
        self._courier.put(EventType.RESOURCE, Sample("observe", name, value, labels))

    def llm(self, client: Client, *, provider: str | None = None, content: bool = False) -> Client:
        """Watch a client of language models, in place: see `streammon_agents.sdk.llm`.

        Its calls are events of this monitor's model, or of the one that was asked for if the monitor has none.
        ``content``: also send what was asked and answered.

        Raises:
            TypeError: a client of another shape.
        """
        return watch_client(client, self._record_llm, provider=provider, content=content)

    def _record_llm(self, fields: dict[str, Any]) -> None:
        """What the monitor was told itself comes first."""
        self._put(EventType.INFERENCE, fields | self._own)

    def measure(self, /, **fields: Any) -> Call:
        """A context manager that reports its block; an exception passes through, and makes it an error."""
        return Call(self, fields)

    @overload
    def watch(self, function: Callable[P, R], /) -> Callable[P, R]: ...
    @overload
    def watch(self, /, **fields: Any) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
    def watch(self, function: Callable[..., Any] | None = None, /, **fields: Any) -> Callable[..., Any]:
        """Report every call of a function: ``@monitor.watch``, or ``@monitor.watch(endpoint=…)`` with fields.

        A generator is measured from its first step to its end.
        """
        if function is None:
            return lambda decorated: _watched(self, decorated, fields)
        return _watched(self, function, fields)

    @property
    def stats(self) -> Stats:
        """What became of this process's events so far."""
        return self._courier.stats

    def close(self, timeout_s: float = 5.0) -> None:
        """Send what waits, for at most ``timeout_s``; runs by itself when the interpreter ends."""
        self._courier.close(timeout_s)
        _OPEN.discard(self)

    def _put(self, event_type: EventType, fields: dict[str, Any]) -> None:
        fields.setdefault("time_unix_s", self._clock())
        if event_type is EventType.INFERENCE:
            if "trace_id" not in fields and (trace := _current_trace()) is not None:
                fields["trace_id"], fields["span_id"] = trace.trace_id, trace.span_id
            if fields.get("features") is not None:
                self._choose_features(fields)
        self._courier.put(event_type, fields)

    def _choose_features(self, fields: dict[str, Any]) -> None:
        if self._features < 1 and random.random() >= self._features:
            del fields["features"]
        elif self._summaries and isinstance(features := fields["features"], Mapping):
            fields["features"] = summarized(features, self._summaries)

    def _forked(self) -> None:
        """In the child: what waits is the parent's to send; its numbers and its connection are not ours."""
        self._courier = self._new_courier()


class Call:
    """One measured call; what it learns on the way is added with `set`."""

    __slots__ = ("_fields", "_monitor", "_started")

    def __init__(self, monitor: Monitor, fields: dict[str, Any]) -> None:
        self._monitor = monitor
        self._fields = fields

    def set(self, /, **fields: Any) -> None:
        """Add fields to the event, or replace them."""
        self._fields.update(fields)

    def __enter__(self) -> Self:
        self._started = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        fields = {"duration_s": time.perf_counter() - self._started, "status": "ok", **self._fields}
        # Whoever stops reading a generator has what they wanted. A cancelled call has no answer: an error.
        if kind is not None and kind is not GeneratorExit:
            fields |= {"status": "error", "error_type": kind.__name__}
        self._monitor._put(EventType.INFERENCE, fields)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)


def _watched(monitor: Monitor, function: Callable[..., Any], fields: dict[str, Any]) -> Callable[..., Any]:
    for is_kind, wrap in _WRAPPERS:
        if is_kind(function):
            return functools.wraps(function)(wrap(monitor, function, fields))
    raise TypeError(f"monitor.watch decorates functions, not {function!r}")


def _coroutine(monitor: Monitor, function: Callable[..., Any], fields: dict[str, Any]) -> Callable[..., Any]:
    async def watched(*args: Any, **kwargs: Any) -> Any:
        with monitor.measure(**fields):
            return await function(*args, **kwargs)

    return watched


def _async_generator(monitor: Monitor, function: Callable[..., Any], fields: dict[str, Any]) -> Callable[..., Any]:
    async def watched(*args: Any, **kwargs: Any) -> Any:
        with monitor.measure(**fields):
            async with aclosing(function(*args, **kwargs)) as items:
                async for item in items:
                    yield item

    return watched


def _generator(monitor: Monitor, function: Callable[..., Any], fields: dict[str, Any]) -> Callable[..., Any]:
    def watched(*args: Any, **kwargs: Any) -> Any:
        with monitor.measure(**fields):
            return (yield from function(*args, **kwargs))

    return watched


def _plain(monitor: Monitor, function: Callable[..., Any], fields: dict[str, Any]) -> Callable[..., Any]:
    def watched(*args: Any, **kwargs: Any) -> Any:
        with monitor.measure(**fields):
            return function(*args, **kwargs)

    return watched


_WRAPPERS = (
    (inspect.iscoroutinefunction, _coroutine),
    (inspect.isasyncgenfunction, _async_generator),
    (inspect.isgeneratorfunction, _generator),
    (callable, _plain),
)


def _current_trace() -> Trace | None:
    try:
        return current()
    except Exception:  # another library's mistake is not the service's
        return None


def _transport(url: str | None, bootstrap: str | None) -> Callable[[], Transport]:
    if url and bootstrap:
        raise ConfigError(f"url ({url}) and bootstrap ({bootstrap}) are both given: choose one")
    if not (url or bootstrap):
        url, bootstrap = os.environ.get("STREAMMON_URL"), os.environ.get("STREAMMON_BOOTSTRAP")
    if bootstrap and not url:
        return functools.partial(kafka_transport, bootstrap)
    return functools.partial(HttpTransport, url or DEFAULT_URL)


def _check(constant: dict[str, Any]) -> None:
    """What goes with every event must be right from the start."""
    _, refused = admit(EventType.INFERENCE, constant)
    empty = [
        name for name in ("service", "model") if not constant[name] and (name == "service" or constant[name] == "")
    ]
    for name in (*refused, *empty):
        raise ConfigError(f"{name} is {constant[name]!r}, expected a text")


_OPEN: set[Monitor] = set()


def _after_fork() -> None:
    for monitor in _OPEN:
        monitor._forked()


def _at_exit() -> None:
    for monitor in list(_OPEN):
        monitor.close()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
