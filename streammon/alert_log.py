"""What the log says about alerts, and about what people did: the topics `alerts` and `commands`, folded.

    log = await read_alert_log(broker)          # once, for a command line
    await follow(broker, log, stop=stop)        # all the time, for a page

The same few questions are asked by the command line, the page, call-backs and reports, and answered here once: which
alert does this id mean, may it be acknowledged, by whom was it, which silences hold. An order that makes sense becomes
a record to write (`Ready`); one that does not is refused with a named reason (`Refusal`). Nothing here writes.

Memory is bounded: evidence is not kept, and of alerts that ended and of commands only the newest `MAX_ENDED` and
`MAX_COMMANDS`. A record that cannot be read is passed over; whoever owns the topic reports it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from itertools import takewhile
from typing import Any, Final, Literal, NamedTuple, Protocol, TypeVar

import msgspec

from streammon.backoff import Backoff
from streammon.broker import Broker, Outgoing, Reader, Record, TopicPartition
from streammon.broker.reading import read, unread
from streammon.commands import SILENCES_BYTES, Acknowledge, AnyCommand, Command, Matcher, Silence, Unsilence
from streammon.durations import roughly, shown
from streammon.errors import Retryable
from streammon.results import Alert
from streammon.telemetry import log as logger
from streammon.topics import DAY_S
from streammon.wire import SCHEMA_HEADER

TOPICS: Final = ("alerts", "commands")
MAX_ENDED: Final = 10_000
MAX_COMMANDS: Final = 100_000
READ_S: Final = 30.0
"""Reading 20,000 alerts took a third of a second on the embedded log; after this long something is wrong."""
MAX_SILENCE_S: Final = 30 * DAY_S
"""Commands are kept for so long; a longer silence would be forgotten before its end."""
MAX_MATCHERS_BYTES: Final = 10_000
"""Of one silence; of all of them, `SILENCES_BYTES` are obeyed."""
UNHEARD_S: Final = 60.0
"""An acknowledgement that has had no effect for so long may be given again."""
_FEW: Final = 1000
_TOLD: Final = 80  # characters of what a person gave for an id
MIN_ID: Final = 7
"""Digits of an abbreviated id, as git shows them; more where they would not tell two alerts apart."""
_ID_LETTERS: Final = "23456789abcdefghjkmnpqrstuvwxyz"  # none that looks like another

_K = TypeVar("_K")
_ALERT: Final = msgspec.json.Decoder(Alert)
_COMMAND: Final = msgspec.json.Decoder(AnyCommand)


class Kept(NamedTuple):
    """The newest record of an alert, without its evidence, and the partition it lies in."""

    alert: Alert
    partition: int


class Told(NamedTuple):
    """A command, and when the broker took it, in Unix seconds."""

    command: AnyCommand
    taken_unix_s: float


SilenceState = Literal["active", "expired", "lifted"]


class Quiet(NamedTuple):
    """A silence, and who lifted it before its time, if anybody did."""

    silence: Silence
    lifted: Unsilence | None = None

    @property
    def ends_unix_s(self) -> float:
        ends = self.silence.ends_unix_s
        return min(ends, self.lifted.time_unix_s) if self.lifted else ends

    def state(self, now_unix_s: float) -> SilenceState:
        if self.lifted:
            return "lifted"
        return "active" if now_unix_s < self.silence.ends_unix_s else "expired"

    def matches(self, alert: Alert) -> bool:
        labels = silence_labels(alert)
        return all(matcher.matches(labels) for matcher in self.silence.matchers)


def silence_labels(alert: Alert) -> Mapping[str, str]:
    """What the matchers of a silence look at."""
    return {**alert.labels, "rule": alert.rule, "severity": alert.severity, "alert_id": alert.id}


class AlertLog:
    """The two topics, folded record by record; the same record again changes nothing."""

    def __init__(self, *, keep_transitions: bool = False) -> None:
        """``keep_transitions``: also those that are not the newest of their alert, as far as the log still has them."""
        self.alerts: dict[str, Kept] = {}
        self.transitions: dict[tuple[str, int], Alert] | None = {} if keep_transitions else None
        self.told: dict[tuple[int, int], Told] = {}
        """Every command by partition and offset, in the order in which they were read."""
        self.version = 0
        """Grows with every change."""
        self.complete = False
        """Whether everything there was at the start has been read."""
        self._ended: dict[str, None] = {}
        self._acknowledged: dict[tuple[str, int], Acknowledge] = {}  # by the first who did; it is that which counts
        self._asked_again: dict[tuple[str, int], Acknowledge] = {}
        self._silences: dict[str, Silence] = {}
        self._lifted: dict[str, Unsilence] = {}

    def add(self, topic: str, record: Record) -> None:
        """Take in a record of `alerts` or `commands`."""
        with suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            if topic == "alerts":
                self._add_alert(record)
            elif record.value is not None:
                self._add_command(_COMMAND.decode(record.value), record)

    def _add_alert(self, record: Record) -> None:
        self.version += 1
        if record.value is None:
            self._forget((record.key or b"").decode())
            return
        alert = msgspec.structs.replace(_ALERT.decode(record.value), evidence={})
        if self.transitions is not None:
            self.transitions.setdefault((alert.id, alert.transition), alert)
        known = self.alerts.get(alert.id)
        if known is None or known.alert.transition <= alert.transition:
            self.alerts[alert.id] = Kept(alert, record.partition)
            self._ended.pop(alert.id, None)
            if alert.state == "resolved":
                self._ended[alert.id] = None
        if len(self._ended) > MAX_ENDED:
            self._forget(next(iter(self._ended)))

    def _forget(self, alert_id: str) -> None:
        self.alerts.pop(alert_id, None)
        self._ended.pop(alert_id, None)

    def _add_command(self, command: AnyCommand, record: Record) -> None:
        place = record.partition, record.offset
        if place in self.told:
            return
        self.version += 1
        self.told[place] = Told(command, record.timestamp / 1000)
        match command:
            case Acknowledge():
                self._acknowledged.setdefault((command.alert_id, command.transition), command)
                self._asked_again[command.alert_id, command.transition] = command
            case Silence():
                self._silences.setdefault(command.id, command)
            case Unsilence():
                self._lifted.setdefault(command.silence_id, command)
        _bound(self.told)
        _bound(self._acknowledged)
        _bound(self._asked_again)
        _bound(self._silences)
        _bound(self._lifted)

    # ------------------------------------------------------------------ alerts

    def active(self) -> list[Alert]:
        """What has not ended: the longest first."""
        alive = [kept.alert for kept in self.alerts.values() if kept.alert.state != "resolved"]
        return sorted(alive, key=lambda alert: (alert.started_unix_s, alert.id))

    def find(self, text: str) -> Kept | Refusal:
        """The alert with this id, or the only one whose id begins so."""
        if text in self.alerts:
            return self.alerts[text]
        found = [id_ for id_ in self.alerts if text and id_.startswith(text)]
        if len(found) == 1:
            return self.alerts[found[0]]
        if found:
            some = ", ".join(short_ids(self.alerts)[id_] for id_ in sorted(found)[:5])
            return Refusal(Why.AMBIGUOUS, f"{text[:_TOLD]!r} begins {len(found)} ids ({some} …): give more of it")
        return Refusal(Why.UNKNOWN, f"no alert {text[:_TOLD]!r}{self._meant(text)}")

    def _meant(self, text: str) -> str:
        active = self.active()
        if len(active) > _FEW:  # to compare with all of them would hold up a page
            return "; `streammon alerts` lists those there are"
        ids = short_ids(self.alerts)
        of_rule = [ids[alert.id] for alert in active if alert.rule == text]
        if of_rule:
            return f"; that is a rule, of which these alerts are active: {', '.join(of_rule[:5])}"
        begins = {alert.id[: max(len(text), MIN_ID)]: ids[alert.id] for alert in active}
        similar = get_close_matches(text, begins, n=3, cutoff=0.6)
        meant = f"; did you mean {' or '.join(begins[each] for each in similar)}?" if similar else ""
        return meant or "; `streammon alerts` lists those there are"

    def acknowledgement(self, alert: Alert) -> Acknowledge | None:
        """The command that acknowledged the alert as it is now; None: nobody did, or it is no longer in the log."""
        if alert.state != "acknowledged":
            return None
        return self._acknowledged.get((alert.id, alert.transition - 1))

    def waiting(self, alert: Alert, now_unix_s: float) -> Acknowledge | None:
        """The acknowledgement that was given a moment ago, and that the alert does not show yet."""
        given = self._asked_again.get((alert.id, alert.transition))
        return given if given and now_unix_s - given.time_unix_s < UNHEARD_S else None

    # ------------------------------------------------------------------ silences

    def silences(self) -> list[Quiet]:
        """All of them, those that end last first."""
        known = [Quiet(silence, self._lifted.get(id_)) for id_, silence in self._silences.items()]
        return sorted(known, key=lambda quiet: (-quiet.ends_unix_s, quiet.silence.id))

    def active_silences(self, now_unix_s: float) -> list[Quiet]:
        return [quiet for quiet in self.silences() if quiet.state(now_unix_s) == "active"]

    def find_silence(self, text: str) -> Quiet | Refusal:
        """The silence with this id, or the only one whose id begins so."""
        found = sorted(id_ for id_ in self._silences if text and id_.startswith(text))
        if text in self._silences or len(found) == 1:
            id_ = text if text in self._silences else found[0]
            return Quiet(self._silences[id_], self._lifted.get(id_))
        if found:
            return Refusal(Why.AMBIGUOUS, f"{text!r} begins {', '.join(found[:5])}: give more of it")
        similar = get_close_matches(text, self._silences, n=3)
        meant = f"did you mean {' or '.join(similar)}?" if similar else "`streammon silences` lists those there are"
        return Refusal(Why.UNKNOWN, f"no silence {text[:_TOLD]!r}; {meant}")


def _bound(kept: dict[_K, Any]) -> None:
    """Drop the oldest beyond `MAX_COMMANDS`."""
    if len(kept) > MAX_COMMANDS:
        del kept[next(iter(kept))]


def short_ids(ids: Iterable[str]) -> dict[str, str]:
    """Each id, abbreviated so that it is no other one's beginning."""
    ordered = sorted(ids)
    neighbours = zip(ordered, ["", *ordered], [*ordered[1:], ""], strict=False)
    shared = ((id_, max(_shared(id_, other) for other in others)) for id_, *others in neighbours)
    return {id_: id_[: max(MIN_ID, length + 1)] for id_, length in shared}


def _shared(one: str, other: str) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


# -- orders --------------------------------------------------------------------------------------------


class Why(StrEnum):
    """Why an order was refused. The values go over the wire: add, never rename."""

    UNKNOWN = "unknown"
    AMBIGUOUS = "ambiguous"
    PENDING = "pending"
    RESOLVED = "resolved"
    ACKNOWLEDGED = "acknowledged"
    CHANGED = "changed"
    OVER = "over"
    TOO_LONG = "too_long"
    TOO_LARGE = "too_large"
    TOO_MANY = "too_many"


class Refusal(NamedTuple):
    """What speaks against an order: for programs, and for people."""

    why: Why
    detail: str


class Ready(NamedTuple):
    """An order that makes sense: the command, and the record to append."""

    command: AnyCommand
    record: Outgoing


@dataclass(frozen=True)
class Person:
    """Who gives orders, by which way, when, and what they say to it."""

    by: str
    via: str
    now_unix_s: float
    note: str | None = None
    new_id: Callable[[], str] = lambda: secrets.token_hex(16)


def acknowledge(log: AlertLog, alert_id: str, person: Person, transition: int | None = None) -> Ready | Refusal:
    """Say that somebody works on an alert; ``transition``: as that person has seen it, the newest if not given."""
    found = log.find(alert_id)
    if isinstance(found, Refusal):
        return found
    alert = found.alert
    if refusal := _unacknowledgeable(log, alert, person.now_unix_s, transition):
        return refusal
    command = Acknowledge(alert_id=alert.id, transition=alert.transition, id=person.new_id(), **who(person))
    return Ready(command, record_of_command(command, alert.id, found.partition))


def _unacknowledgeable(log: AlertLog, alert: Alert, now_unix_s: float, seen: int | None) -> Refusal | None:
    name = f"{short_ids(log.alerts)[alert.id]} ({alert.rule})"
    if alert.state == "resolved":
        ended = alert.updated_unix_s if alert.ended_unix_s is None else alert.ended_unix_s
        return Refusal(Why.RESOLVED, f"{name} is resolved already, since {roughly(now_unix_s - ended)}")
    if alert.state == "pending":
        return Refusal(Why.PENDING, f"{name} is pending: it has not fired, and nobody has been told")
    if alert.state == "acknowledged":
        return Refusal(Why.ACKNOWLEDGED, f"{name} is acknowledged already{_by(log.acknowledgement(alert), now_unix_s)}")
    if given := log.waiting(alert, now_unix_s):
        return Refusal(
            Why.ACKNOWLEDGED,
            f"{name} is acknowledged already{_by(given, now_unix_s)}; the rules have yet to take note of it",
        )
    if seen is not None and seen != alert.transition:
        return Refusal(Why.CHANGED, f"{name} has changed since you looked: it is {alert.severity} now; look again")
    return None


def _by(given: Acknowledge | None, now_unix_s: float) -> str:
    return f" by {given.by}, {roughly(now_unix_s - given.time_unix_s)} ago" if given else ""


def silence(matchers: Sequence[Matcher], for_s: float, person: Person) -> Ready | Refusal:
    """No notifications about alerts with these labels from now on, for ``for_s`` seconds."""
    if not 0 < for_s <= MAX_SILENCE_S:
        longest = f"a silence lasts longer than nothing and at most {shown(MAX_SILENCE_S)}"
        return Refusal(Why.TOO_LONG, f"{shown(for_s)}: {longest}")
    if (size := len(msgspec.json.encode(matchers))) > MAX_MATCHERS_BYTES:
        return Refusal(Why.TOO_LARGE, f"matchers of {size} bytes; at most {MAX_MATCHERS_BYTES} are kept: match less")
    now = person.now_unix_s
    command = Silence(
        matchers=list(matchers), starts_unix_s=now, ends_unix_s=now + for_s, id=new_silence_id(), **who(person)
    )
    return Ready(command, record_of_command(command, command.id))


def if_obeyed(log: AlertLog, order: Ready | Refusal, now_unix_s: float) -> Ready | Refusal:
    """The order, unless it is a silence that would be one too many: the notifier would not obey it."""
    if isinstance(order, Ready) and isinstance(order.command, Silence):
        known = [each.silence for each in log.active_silences(now_unix_s) if each.silence.id != order.command.id]
        if sum(len(msgspec.json.encode(each)) for each in (*known, order.command)) > SILENCES_BYTES:
            detail = f"{len(known)} silences hold already, and no more than {SILENCES_BYTES:,} bytes of them are obeyed"
            return Refusal(Why.TOO_MANY, f"{detail}; lift some with `streammon unsilence`")
    return order


def new_silence_id() -> str:
    """Short, to be typed by people: 8 × 10^8 of them."""
    return "".join(secrets.choice(_ID_LETTERS) for _ in range(6))


def unsilence(log: AlertLog, silence_id: str, person: Person) -> Ready | Refusal:
    """End a silence before its time."""
    found = log.find_silence(silence_id)
    if isinstance(found, Refusal):
        return found
    id_, now = found.silence.id, person.now_unix_s
    if found.lifted:
        lifted = found.lifted
        return Refusal(Why.OVER, f"{id_} was lifted by {lifted.by}, {roughly(now - lifted.time_unix_s)} ago")
    if found.state(now) == "expired":
        return Refusal(Why.OVER, f"{id_} is over since {roughly(now - found.ends_unix_s)}")
    command = Unsilence(silence_id=id_, id=person.new_id(), **who(person))
    return Ready(command, record_of_command(command, id_))


def record_of(log: AlertLog, command: AnyCommand) -> Outgoing | Refusal:
    """The record of a command that was made elsewhere: one about an alert goes into the partition of that alert."""
    match command:
        case Acknowledge():
            found = log.find(command.alert_id)
            return found if isinstance(found, Refusal) else record_of_command(command, found.alert.id, found.partition)
        case Silence():
            order = if_obeyed(log, Ready(command, record_of_command(command, command.id)), command.time_unix_s)
            return order if isinstance(order, Refusal) else order.record
        case Unsilence():
            return record_of_command(command, command.silence_id)
        case _:
            return record_of_command(command, command.target_id)


def who(person: Person) -> dict[str, Any]:
    """The fields of a command that say who gives it."""
    return {"by": person.by, "via": person.via, "note": person.note, "time_unix_s": person.now_unix_s}


def record_of_command(command: Command, key: str, partition: int | None = None) -> Outgoing:
    """Its record on `commands`; in the partition of what it is about, where that matters."""
    return Outgoing("commands", key.encode(), msgspec.json.encode(command), (SCHEMA_HEADER,), partition)


# -- reading -------------------------------------------------------------------------------------------


async def read_alert_log(broker: Broker, *, keep_transitions: bool = False, within_s: float = READ_S) -> AlertLog:
    """Both topics, read to their present end.

    Raises:
        Retryable: it took longer than ``within_s``.
        ConfigError: the topics do not exist.
    """
    log = AlertLog(keep_transitions=keep_transitions)
    try:
        async with asyncio.timeout(within_s), aclosing(read(broker, TOPICS)) as batches:
            async for where, records in batches:
                _add_all(log, where, records)
    except TimeoutError:
        raise Retryable(f"alerts and commands were not read to their end within {within_s:g} s") from None
    log.complete = True
    return log


class Folded(Protocol):
    """What takes in the records of some topics one by one; the same record again changes nothing."""

    complete: bool

    def add(self, topic: str, record: Record) -> None: ...


async def follow(
    broker: Broker, folded: Folded, *, stop: asyncio.Event, topics: Sequence[str] = TOPICS, poll_s: float = 0.5
) -> None:
    """Keep ``folded`` up to date until ``stop``. A broker that is away is waited for, and read again from the start."""
    pauses = Backoff().pauses()
    while not stop.is_set():
        try:
            await _follow(broker, folded, stop, topics, poll_s)
        except Retryable as error:
            logger.warning("what people do is not seen while the broker is away", topics=topics, error=str(error))
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), next(pauses))


async def _follow(broker: Broker, folded: Folded, stop: asyncio.Event, topics: Sequence[str], poll_s: float) -> None:
    reader: Reader = await broker.reader(topics)
    try:
        ends = await reader.ends()
        while not stop.is_set():
            for where, records in (await reader.poll(poll_s)).items():
                _add_all(folded, where, records)
            folded.complete = folded.complete or not unread(reader, ends)
    finally:
        await reader.close()


def _add_all(folded: Folded, where: TopicPartition, records: Iterable[Record]) -> None:
    for record in records:
        folded.add(where.topic, record)
