"""Faust on the log: typed topics of everything streammon writes, for agents of your own, and for the inventory.

::

    app = create_app("my-team", settings)
    windows = topic(app, "windows")            # records are `streammon.results.Window`

    @app.agent(windows)
    async def watch(stream):
        async for event in stream.noack().events():
            ...                                # event.value is a Window
            event.ack()                        # only now is the record done with

What it promises: a record comes decoded, as the Struct of its topic; one record of an input topic as the list of its
events, whatever their density. A record that cannot be decoded goes to the dead letter topic with the reason, is
counted, and never reaches or stops an agent. Ticks are left out; a tombstone is None.

What it cannot promise, because Faust does not: exactly once. A record may come again after a crash, and one whose agent
raised is lost unless it is acknowledged by hand, as above: measured, 0 lost and nearly every second record twice after
five kill -9 of 35,200 records; 12 of 19,500 lost after eight ends in order. Take Faust where one lost or doubled record
heals itself, as the next heartbeat does, and a processor (docs/component-contract.md) where it does not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import faust
import msgspec
from faust.auth import Credentials, OAuthCredentials, SASLCredentials, SSLCredentials
from faust.exceptions import ValueDecodeError
from prometheus_client import Counter

from streammon.broker.kafka.security import aiokafka_options
from streammon.commands import AnyCommand
from streammon.deadletter import dead_letter
from streammon.errors import ConfigError, Reason, Rejected
from streammon.events import SCHEMA, STRUCTS, Event
from streammon.heartbeat import Heartbeat
from streammon.results import RESULTS
from streammon.tick import TICK
from streammon.topics import HEARTBEATS, INPUT_TOPICS, LARGE_RECORD_BYTES
from streammon.wire import SCHEMA_HEADER, decode

if TYPE_CHECKING:
    from faust.types.tuples import Message

    from streammon.config import KafkaSettings, Settings

REFUSED = Counter("streammon_faust_refused", "Records that were no message of their topic", ["topic", "reason"])

_COMMIT_S: Final = 1.0
_LINGER_S: Final = 0.02
_REBALANCE_S: Final = 15.0

TYPES: Final[dict[str, Any]] = {**RESULTS, "commands": AnyCommand, HEARTBEATS: Heartbeat}
"""What a record of each topic holds; one of an input topic holds a list of events."""


class StreammonApp(faust.App):
    """A Faust application that knows our topic prefix."""

    prefix: str


def create_app(name: str, settings: Settings, **options: Any) -> StreammonApp:
    """A Faust application on our Kafka, with the settings that were measured to work.

    Its group, and the topics that Faust makes for its tables, begin with our topic prefix and ``name``. ``options`` go
    to `faust.App`, before ours. Create it where its event loop runs, or in the module that ``faust worker`` imports.

    Raises:
        ConfigError: no Kafka is configured, or its certificates or secrets cannot be read.
    """
    if not settings.bootstrap:
        raise ConfigError("Faust needs Kafka, and bootstrap is not set: give --bootstrap HOST:PORT")
    kafka = settings.kafka
    chosen: dict[str, Any] = {
        "broker": [f"kafka://{address.strip()}" for address in settings.bootstrap.split(",")],
        "broker_client_id": kafka.client_id,
        "broker_credentials": credentials(kafka),
        "broker_session_timeout": kafka.session_timeout_s,
        "broker_heartbeat_interval": kafka.heartbeat_s,
        "broker_rebalance_timeout": _REBALANCE_S,
        "broker_commit_interval": _COMMIT_S,
        "consumer_auto_offset_reset": "earliest",
        "consumer_max_fetch_size": LARGE_RECORD_BYTES,
        "producer_linger": _LINGER_S,
        "processing_guarantee": "at_least_once",
        "store": "memory://",
        "table_standby_replicas": 0,
        "topic_partitions": settings.topics.partitions,
        "topic_replication_factor": settings.topics.replication,
        "topic_disable_leader": True,
        "web_enabled": False,
        "Topic": _Topic,
    }
    app = StreammonApp(f"{settings.topics.prefix}{name}", **(chosen | options))
    app.prefix = settings.topics.prefix
    return app


def topic(app: StreammonApp, name: str) -> faust.TopicT:
    """A topic of ours, by its name without the prefix; its records are what `TYPES` says.

    Raises:
        ConfigError: streammon has no topic of that name whose records have a type.
    """
    if name not in TYPES and name not in INPUT_TOPICS:
        raise ConfigError(f"no typed topic {name!r}; there are: {', '.join([*INPUT_TOPICS, *TYPES])}")
    return app.topic(f"{app.prefix}{name}", schema=_Schema(name))


def credentials(kafka: KafkaSettings) -> Credentials | None:
    """``kafka.tls`` and ``kafka.sasl`` in Faust's words; everything they hold has a counterpart there."""
    options = aiokafka_options(kafka)
    context = options.get("ssl_context")
    if provider := options.get("sasl_oauth_token_provider"):
        return OAuthCredentials(oauth_cb=provider, ssl_context=context)
    if mechanism := options.get("sasl_mechanism"):
        user = {"username": options["sasl_plain_username"], "password": options["sasl_plain_password"]}
        return SASLCredentials(mechanism=mechanism, ssl_context=context, **user)
    return SSLCredentials(context=context) if context else None


class _RefusedError(ValueDecodeError):
    """A record that is none of its topic. ``verdict`` None: a tick, which is nobody's business here."""

    def __init__(self, verdict: Rejected | None) -> None:
        super().__init__(str(verdict or "a tick"))
        self.verdict = verdict


class _Schema(faust.Schema[bytes, Any]):
    """Bytes to Structs and back. Keys are bytes."""

    def __init__(self, name: str) -> None:
        super().__init__(key_type=bytes, key_serializer="raw", value_serializer="raw", allow_empty=True)
        self.name = name
        self._decode = decoder(name)

    def loads_value(self, app: Any, message: Message, **_: Any) -> Any:
        if message.value is None:
            return None
        if message.value == TICK:
            raise _RefusedError(None)
        try:
            return self._decode(message.value)
        except Rejected as verdict:
            raise _RefusedError(verdict) from None

    def dumps_value(self, app: Any, value: Any, *, serializer: Any = None, headers: Any) -> tuple[Any, Any]:
        if value is None or isinstance(value, bytes):
            return value, headers
        return msgspec.json.encode(value), [*(headers or ()), SCHEMA_HEADER]


class _Topic(faust.Topic):
    """A topic whose undecodable records become dead letters, where Faust would throw them at the agent."""

    async def on_value_decode_error(self, exc: Exception, message: Message) -> None:
        if not isinstance(exc, _RefusedError):
            await super().on_value_decode_error(exc, message)
        elif exc.verdict is not None:
            await self._bury(exc.verdict, message)

    async def _bury(self, verdict: Rejected, message: Message) -> None:
        schema: Any = self.schema
        app: Any = self.app
        name = schema.name
        REFUSED.labels(name, verdict.reason.value).inc()
        letter = dead_letter(
            verdict.reason,
            verdict.detail,
            topic=name,
            value=message.value,
            partition=message.partition,
            offset=message.offset,
        )
        producer = await app.maybe_start_producer()
        where = f"{app.prefix}{letter.topic}"
        await producer.send_and_wait(where, letter.key, letter.value, None, None, dict(letter.headers))


def decoder(name: str) -> Callable[[bytes], Any]:
    """What reads a record of the topic. It raises Rejected, with the reason."""
    if name in INPUT_TOPICS:
        return lambda value: _events(name, value)
    typed = msgspec.json.Decoder(TYPES[name])
    return lambda value: _message(typed, value)


def _events(name: str, value: bytes) -> list[Event]:
    """The events of a record that are not refused for their values."""
    type_ = INPUT_TOPICS[name]
    found: list[Event] = []
    for batch in decode(type_, value):
        faults = {fault.row for fault in batch.rows.faults()}
        rows = (batch.rows.event(row) for row in range(len(batch.rows)) if row not in faults)
        found += [msgspec.convert(row, STRUCTS[type_]) for row in rows]
    return found


def _message(typed: msgspec.json.Decoder[Any], value: bytes) -> Any:
    try:
        message = typed.decode(value)
    except msgspec.ValidationError as error:
        raise Rejected(Reason.INVALID_EVENT, str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Rejected(Reason.INVALID_JSON, str(error)) from None
    if message.schema != SCHEMA:
        raise Rejected(Reason.UNKNOWN_SCHEMA, f"schema is {message.schema}; this version reads {SCHEMA}")
    return message
