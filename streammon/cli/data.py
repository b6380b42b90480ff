"""Commands that put events into the log, and take records out of it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import math
import os
import sys
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

import msgspec
import typer

from streammon import wire
from streammon.broker import Outgoing, Record, Start, TopicPartition, connect
from streammon.broker.reading import unread
from streammon.cli.base import app, command
from streammon.config import Settings
from streammon.deadletter import dead_letter
from streammon.errors import ConfigError, Rejected
from streammon.events import KEYS, SCHEMA, STRUCTS, EventType, record_key
from streammon.results import Drift, Run
from streammon.tick import TICK
from streammon.topics import TOPIC_OF, topic_specs
from streammon.wire import SCHEMA_HEADER, Density, Identity

# --- emit -----------------------------------------------------------------------------------------------------

READ_BYTES = 1 << 20
FLUSH_S = 0.2
"""A batch that does not fill up is sent after this long, so that a slow pipe is still a live one."""


class Emitted(StrEnum):
    """What `emit` sends: events, and the results that others than streammon may find out."""

    INFERENCE = "inference"
    RESOURCE = "resource"
    LABEL = "label"
    PIPELINE = "pipeline"
    LOG = "log"
    CHANGE = "change"
    DRIFT = "drift"
    RUN = "run"


@command(app)
async def emit(
    settings: Settings,
    what: Annotated[Emitted, typer.Argument(metavar="TYPE", help="Type of the events or results.", show_default=False)],
    fields: Annotated[
        list[str] | None,
        typer.Argument(metavar="FIELD=VALUE", help="One event, instead of standard input.", show_default=False),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, max=wire.MAX_EVENTS, help="Events of one record.")] = 200,
    density: Annotated[
        Density, typer.Option(help="How events are packed; `object` is one event a record.")
    ] = Density.OBJECT,
    url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Send to this gateway, or `up`, instead of the log.", show_default=False),
    ] = None,
) -> int:
    """Send events from standard input, one JSON object a line, to their topic; or one event, field by field.

    A deployment says so from CI with one line, which knows the commit and who is behind it from the environment of
    GitHub, GitLab, Jenkins and others:

        streammon emit change service=shop kind=deploy model=ranker model_version=4 --url http://gateway:8080

    A line may also hold a whole batch (array, columns or packed); it is sent as it is. A line that cannot be sent
    goes to the dead letter topic with its reason; it is reported, the others are sent, and the exit status is 1.
    Results of your own, drift and run, are sent likewise, each as a record.
    """
    if url is not None and what in (Emitted.DRIFT, Emitted.RUN):
        raise ConfigError(f"--url takes events only, and {what} is a result: send it to the log")
    given = None if fields is None else [event_line(EventType(what), fields, os.environ)]
    emitter = _emitter(what, density, 1 if density is Density.OBJECT else batch)
    async with _append_to(settings) if url is None else _post_to(url, EventType(what)) as append:
        async for lines in _stdin_lines() if given is None else _once(given):
            await append(emitter.take(lines))
        await append(emitter.flush())
    print(emitter.report(), file=sys.stderr)
    return 1 if emitter.refused else 0


Append = Callable[[list[Outgoing]], Awaitable[None]]


@contextlib.asynccontextmanager
async def _append_to(settings: Settings) -> AsyncIterator[Append]:
    """Into the log."""
    broker = await connect(settings)

    async def append(records: list[Outgoing]) -> None:
        if records:
            await broker.append(records)

    try:
        await broker.create_topics(topic_specs(partitions=settings.topics.partitions), if_permitted=True)
        yield append
    finally:
        await broker.close()


@contextlib.asynccontextmanager
async def _post_to(url: str, event_type: EventType) -> AsyncIterator[Append]:
    """To a gateway, for as long as somebody at a terminal or a CI job would wait; what was refused is only reported."""
    from streammon_agents.sdk.transport import HttpTransport, send_patiently

    transport = HttpTransport(url)

    async def append(records: list[Outgoing]) -> None:
        for record in records:
            if record.topic == TOPIC_OF[event_type]:
                await asyncio.to_thread(send_patiently, transport, event_type, record)

    try:
        yield append
    finally:
        transport.close()


async def _once(lines: list[bytes]) -> AsyncIterator[list[bytes]]:
    yield lines


CI = {
    "ref": ("GITHUB_SHA", "CI_COMMIT_SHA", "GIT_COMMIT", "BUILDKITE_COMMIT", "CIRCLE_SHA1", "BITBUCKET_COMMIT"),
    "actor": ("GITHUB_ACTOR", "GITLAB_USER_LOGIN", "BUILD_USER_ID", "BUILDKITE_BUILD_CREATOR", "CIRCLE_USERNAME"),
}
"""Where systems of continuous integration say what is built, and for whom."""


def event_line(event_type: EventType, fields: Sequence[str], environment: Mapping[str, str]) -> bytes:
    """The event that these ``FIELD=VALUE`` make, as a line of JSON. Its time is now unless it is given.

    Raises:
        ConfigError: no such field, or a value that it cannot have.
    """
    known = STRUCTS[event_type]
    types = {field.name: field.type for field in msgspec.structs.fields(known)}
    given = dict(_given(field, types) for field in fields)
    event: dict[str, Any] = {"time_unix_s": time.time()}
    if event_type is EventType.CHANGE:
        found = {name: next((environment[v] for v in vs if environment.get(v)), None) for name, vs in CI.items()}
        event |= {name: value for name, value in found.items() if value}
    event |= given
    try:
        msgspec.convert(event, known)
    except msgspec.ValidationError as error:
        raise ConfigError(f"no {event_type} event: {error}") from None
    return msgspec.json.encode(event)


def _given(field: str, types: Mapping[str, Any]) -> tuple[str, Any]:
    """A field and its value: a text where the field takes one, else as in JSON."""
    name, equals, text = field.partition("=")
    if not equals:
        raise ConfigError(f"{field!r} is no FIELD=VALUE")
    if name not in types:
        raise ConfigError(f"{field!r}: there is no field {name!r}; allowed: {', '.join(types)}")
    try:
        return name, msgspec.convert(text, types[name])
    except msgspec.ValidationError as error:
        with contextlib.suppress(msgspec.ValidationError, msgspec.DecodeError):
            return name, msgspec.convert(msgspec.json.decode(text), types[name])
        raise ConfigError(f"{field!r}: {error}") from None


async def _stdin_lines() -> AsyncIterator[list[bytes]]:
    """Complete lines as they come; an empty list every `FLUSH_S`."""
    queue: asyncio.Queue[bytes] = asyncio.Queue(maxsize=4)
    loop = asyncio.get_running_loop()

    def read() -> None:
        with contextlib.suppress(RuntimeError, CancelledError):  # the loop has ended, and nobody reads any more
            while chunk := os.read(sys.stdin.fileno(), READ_BYTES):
                asyncio.run_coroutine_threadsafe(queue.put(chunk), loop).result()
            asyncio.run_coroutine_threadsafe(queue.put(b""), loop).result()

    # A daemon: a thread of asyncio's pool would keep an interrupted program waiting for the next line.
    threading.Thread(target=read, daemon=True).start()
    rest, due = b"", loop.time() + FLUSH_S
    while True:
        try:
            async with asyncio.timeout_at(due):
                chunk = await queue.get()
        except TimeoutError:
            due = loop.time() + FLUSH_S
            yield []
            continue
        if not chunk:
            break
        *lines, rest = (rest + chunk).split(b"\n")
        yield lines
    yield [rest]


def _emitter(what: Emitted, density: Density, batch: int) -> LineEmitter:
    if what in (Emitted.DRIFT, Emitted.RUN):
        return ResultEmitter(what)
    return Emitter(EventType(what), density, batch)


class LineEmitter:
    """Lines to records of a topic; a line of which none can be made becomes a dead letter."""

    noun = ""

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._line = 0
        self.sent = 0
        self.refused = 0

    def take(self, lines: list[bytes]) -> list[Outgoing]:
        """The records that are ready after these lines; no lines means that time has passed."""
        records: list[Outgoing] = []
        for line in lines:
            self._line += 1
            if stripped := line.strip():
                records += self._take_or_refuse(stripped)
        return records if lines else self.flush()

    def _take_or_refuse(self, line: bytes) -> list[Outgoing]:
        try:
            return self._take(line)
        except Rejected as error:
            return [self._refuse(line, error)]

    def _take(self, line: bytes) -> list[Outgoing]:
        """The records that are ready after this line. Raises Rejected: it is none of this type."""
        raise NotImplementedError

    def _refuse(self, line: bytes, error: Rejected) -> Outgoing:
        self.refused += 1
        print(f"streammon: line {self._line} refused: {error}", file=sys.stderr)
        return dead_letter(error.reason, f"line {self._line}: {error.detail}", topic=self._topic, value=line)

    def flush(self) -> list[Outgoing]:
        """What is waiting for its batch to fill up."""
        return []

    def report(self) -> str:
        """What was done, for a person."""
        refused = f", {self.refused} line{'s' * (self.refused != 1)} refused" if self.refused else ""
        return f"{self.sent} {self.noun}{'s' * (self.sent != 1)} sent to {self._topic}{refused}"


class ResultEmitter(LineEmitter):
    """Results of others, a record each, under a key that keeps a series in one partition."""

    noun = "result"

    def __init__(self, what: Emitted) -> None:
        super().__init__("drift" if what is Emitted.DRIFT else "runs")
        kind = Drift if what is Emitted.DRIFT else Run
        self._decoder: msgspec.json.Decoder[Drift | Run] = msgspec.json.Decoder(kind)

    def _take(self, line: bytes) -> list[Outgoing]:
        result = wire.read_message(self._decoder.decode, line)
        self.sent += 1
        return [Outgoing(self._topic, _key_of(result), msgspec.json.encode(result), (SCHEMA_HEADER,))]


def _key_of(result: Drift | Run) -> bytes:
    if isinstance(result, Run):
        return result.job.encode()
    return record_key(EventType.INFERENCE, (result.service, result.model))


class Emitter(LineEmitter):
    """Events wait until their batch is full; whole batches go through unchanged."""

    noun = "event"

    def __init__(self, event_type: EventType, density: Density, batch: int) -> None:
        super().__init__(TOPIC_OF[event_type])
        self._type = event_type
        self._density = density
        self._batch = batch
        self._boot = uuid.uuid4().hex
        self._waiting: dict[bytes, list[dict[str, Any]]] = {}
        self._seqs: dict[bytes, int] = {}

    def _take(self, line: bytes) -> list[Outgoing]:
        routed = wire.route(line, self._type)
        [single] = wire.decode(self._type, line) if self._is_single(line) else [None]
        self.sent += routed.accepted + routed.rejected
        if single is None or single.identity is not None:
            return routed.records
        if self._density is Density.OBJECT:
            return [record._replace(value=value) for record in routed.records for value in [self._complete(line)]]
        event = single.rows.event(0)
        key = record_key(self._type, tuple(event.get(name) for name in KEYS[self._type]))
        waiting = self._waiting.setdefault(key, [])
        waiting.append(event)
        return [self._packed(key)] if len(waiting) >= self._batch else []

    def _is_single(self, line: bytes) -> bool:
        return line[:1] == b"{" and wire.codec_of(self._type).event(line) is not None

    def _complete(self, line: bytes) -> bytes:
        """An event as it was written, with schema and type, which a person may leave out."""
        event = msgspec.json.decode(line)
        head = {"schema": SCHEMA, "type": self._type.value}
        return line if head.keys() <= event.keys() else msgspec.json.encode(head | event)

    def flush(self) -> list[Outgoing]:
        """What is waiting for its batch to fill up."""
        return [self._packed(key) for key in list(self._waiting)]

    def _packed(self, key: bytes) -> Outgoing:
        events = self._waiting.pop(key)
        seq = self._seqs.get(key, 0)
        self._seqs[key] = seq + 1
        identity = Identity("emit", f"{self._boot}/{key.decode()}", seq)
        [value] = wire.encode(self._type, events, self._density, identity)
        return Outgoing(self._topic, key, value, (SCHEMA_HEADER,))


# --- tail -----------------------------------------------------------------------------------------------------


def parse_start(text: str) -> Start:
    """``earliest``, ``latest``, Unix seconds, an ISO 8601 time, or an age such as ``15m``."""
    if text == "earliest":
        return "earliest"
    if text == "latest":
        return "latest"
    try:
        return parse_time(text)
    except ValueError:
        raise ConfigError(
            f"--from is {text!r}, expected earliest, latest, Unix seconds, an ISO time such as "
            "2026-01-31T12:00:00Z, or an age such as 15m"
        ) from None


AGES_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_time(text: str) -> float:
    """A moment in Unix seconds; an age counts back from now. Raises ValueError."""
    age = text[:-1].removeprefix("-")
    if text[-1:] in AGES_S and age.replace(".", "", 1).isdigit():
        return time.time() - float(age) * AGES_S[text[-1]]
    try:
        seconds = float(text)
    except ValueError:
        return datetime.fromisoformat(text).timestamp()
    if not math.isfinite(seconds):
        raise ValueError(text)
    return seconds


@command(app)
async def tail(
    settings: Settings,
    stop: asyncio.Event,
    topic: Annotated[
        str, typer.Argument(help="Topic, without prefix: windows, alerts, inference …", show_default=False)
    ],
    from_: Annotated[str, typer.Option("--from", help="earliest, latest, a time, or an age such as 15m.")] = "latest",
    exit_: Annotated[bool, typer.Option("--exit", help="Stop at the present end of the topic.")] = False,
    envelope: Annotated[bool, typer.Option(help="Print key, partition, offset, time and headers too.")] = False,
    ticks: Annotated[bool, typer.Option(help="Print tick records too.")] = False,
) -> None:
    """Print the records of a topic, one JSON document a line; only committed ones.

    Dead letters are printed with their reason, topic, partition, offset and error beside the refused value.
    """
    start = parse_start(from_)
    broker = await connect(settings)
    try:
        reader = await broker.reader([topic], start)
        try:
            ends = await reader.ends() if exit_ else None
            while not stop.is_set() and (ends is None or unread(reader, ends)):
                for partition, records in (await reader.poll(0.2)).items():
                    for record in records:
                        if ticks or record.value != TICK:
                            _print_record(partition, record, envelope)
                sys.stdout.flush()
        finally:
            await reader.close()
    finally:
        await broker.close()


def _print_record(partition: TopicPartition, record: Record, envelope: bool) -> None:
    if partition.topic == "deadletter":
        headers = {name: value.decode(errors="replace") for name, value in record.headers}
        shown: dict[str, Any] = headers | as_text("value", record.value)
    elif envelope:
        shown = {
            "topic": partition.topic,
            "partition": record.partition,
            "offset": record.offset,
            "time_unix_s": record.timestamp / 1000,
            **as_text("key", record.key),
            "headers": {name: value.decode(errors="replace") for name, value in record.headers},
            **as_text("value", record.value),
        }
    else:
        write_line(record.value if record.value is not None else b"null")
        return
    write_line(msgspec.json.encode(shown))


def as_text(name: str, value: bytes | None) -> dict[str, str | None]:
    """Bytes as text where they are text, else as base64 under another name."""
    try:
        return {name: None if value is None else value.decode()}
    except UnicodeDecodeError:
        assert value is not None
        return {f"{name}_base64": base64.b64encode(value).decode()}


def write_line(value: bytes) -> None:
    """One record on a line of its own."""
    sys.stdout.buffer.write(value.replace(b"\n", b" ") + b"\n")


# --- times ----------------------------------------------------------------------------------------------------


def moment(option: str, text: str) -> float:
    """The time that an option names. Raises `ConfigError`."""
    try:
        return parse_time(text)
    except ValueError:
        raise ConfigError(
            f"{option} is {text!r}, expected Unix seconds, an ISO time such as 2026-01-31T12:00:00Z, "
            "or an age such as 15m"
        ) from None


def clock_time(unix_s: float) -> str:
    """Local time; the date only where it is not today's; the number where it is no time: others can write it."""
    try:
        then = datetime.fromtimestamp(unix_s).astimezone()
    except (ValueError, OverflowError, OSError):
        return f"{unix_s:g}"
    return f"{then:%H:%M:%S}" if then.date() == datetime.now().astimezone().date() else f"{then:%Y-%m-%d %H:%M:%S}"
