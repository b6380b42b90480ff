"""Delivering: from `notifications` to one channel, in order, each by one replica at a time.

Every channel has a consumer group of its own, so that a dead one holds up no other::

    take the next notification of this channel → try until the channel has taken it → write what became of it

What it promises:

* **Exactly once into the log.** What became of a notification (`deliveries`), what the channel has to remember, and
  how far it has come are one transaction. Opening it fences whoever owned the channel before.
* **At least once out of it.** Whoever dies between the channel's answer and that transaction leaves a notification
  that the next owner delivers again, under the same ``id``: channels that know it (webhook, PagerDuty, Opsgenie,
  Alertmanager, mail by its Message-ID) take it once; Slack shows it twice. A log that is away for a moment does not
  have this effect: the answer is kept, and written later.
* **In order.** A channel that does not answer is tried again, not before the time it has asked for; after
  `Patience.failures` failures in a row only now and then. What is behind waits.
* **Amendments hold up nobody.** What is `explained` goes to channels that can add to their last message (`Amending`),
  once, for at most `AMEND_S`; after one has failed there is none until a message was delivered. Others pass it over.
* **Nobody is left untold.** What waits longer than `Patience.failing_after_s` is `failing`, once a trouble; what the
  channel will never take is `refused`. Both go to `pages`, with the notification, for the decision to tell somebody
  else; and so does that the channel has `recovered`.

What it cannot do: tell a notification that makes a channel fail from a channel that fails. Those behind it wait, and
are told elsewhere meanwhile, until it is `Patience.give_up_s` old.
"""

from __future__ import annotations

import asyncio
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

import msgspec
from prometheus_client import Counter, Gauge, Histogram

from streammon.backoff import Backoff
from streammon.broker import Broker, Member, Outgoing, Record, TopicPartition, Transactor
from streammon.clock import Clock, system_clock
from streammon.deadletter import dead_letter_of
from streammon.durations import shown
from streammon.errors import ConfigError, Fenced, Reason, Rejected, Retryable
from streammon.notifications import Delivery, Memory, Notification, Outcome
from streammon.telemetry import CONSUMER_LAG, log
from streammon.topics import TopicSpec, state_topics
from streammon.wire import SCHEMA_HEADER, read_message
from streammon_sinks.notify.channel import Amending, Channel, Resuming
from streammon_sinks.notify.circuit import Circuit, Patience
from streammon_sinks.notify.remembered import Remembered

NOTIFICATIONS: Final = TopicPartition("notifications", 0)
MESSAGES = Counter(
    "streammon_notify_notifications", "What became of notifications, by channel and outcome", ["channel", "outcome"]
)
FAILURES = Counter("streammon_notify_failed_tries", "Tries that a channel did not take", ["channel"])
SECONDS = Histogram(
    "streammon_notify_delivery_seconds",
    "From the change of an alert to the message about it delivered; repeats and escalations are not counted",
    ["channel"],
    buckets=(0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0),
)
CIRCUIT = Gauge("streammon_notify_circuit_open", "1 while a channel fails and is only probed", ["channel"])

POLL_S: Final = 0.2
POLL_RECORDS: Final = 20
"""Read ahead, at most twice of it: notifications may have 600 kB."""
COMMIT_S: Final = 5.0
"""How often the position is written while there are only notifications for other channels."""
AMEND_S: Final = 3.0
"""So long may an amendment hold up the next message."""
GRACE_S: Final = 5.0
"""What is being sent when the channel moves to another member, or the process ends, may take so much longer."""
STOP_S: Final = 3.0
REJOIN: Final = Backoff(first_s=1.0, longest_s=10.0)

_DECODER: Final = msgspec.json.Decoder(Notification)


def group_of(channel: str) -> str:
    """The consumer group that delivers to a channel, and the processor's name of its state."""
    return f"notify.{channel}"


def channel_topics(channels: Sequence[str]) -> list[TopicSpec]:
    """The topics in which the channels remember."""
    return state_topics(map(group_of, channels), 1)


async def deliver_notifications(
    broker: Broker,
    name: str,
    open_channel: Callable[[], Channel],
    *,
    stop: asyncio.Event,
    patience: Patience | None = None,
    clock: Clock = system_clock,
) -> None:
    """Be one of those who deliver to channel ``name`` until ``stop``.

    A membership ends when the log is away or another one has taken over; the next one knows what the log says.

    Raises:
        Fatal: as the broker does.
        ConfigError: a topic does not exist.
    """
    one = _Deliverer(broker, name, open_channel, patience or Patience(), clock)
    failures = 0
    while not stop.is_set():
        try:
            await _until_stopped(_Membership(one, stop), stop)
        except (Retryable, Fenced) as error:
            log.warning("a channel is joined anew", channel=name, error=str(error))
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), REJOIN.pause_s(min(failures := failures + 1, 4)))


async def _until_stopped(membership: _Membership, stop: asyncio.Event) -> None:
    """A call to the broker that hangs after ``stop`` is given up, which harms no more than a kill."""
    working, stopped = asyncio.create_task(membership.run()), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({working, stopped}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait({working}, timeout=GRACE_S + STOP_S)
        if working.done():
            await working
    finally:
        stopped.cancel()
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


class Settled(NamedTuple):
    """What has become of a notification, for good."""

    outcome: Outcome
    tries: int
    memory: Memory
    detail: str | None = None


class _Deliverer:
    """What outlives a membership: the circuit, and an answer that is not written yet."""

    def __init__(
        self, broker: Broker, name: str, open_channel: Callable[[], Channel], patience: Patience, clock: Clock
    ) -> None:
        self.broker, self.name, self.group = broker, name, group_of(name)
        self.open_channel, self.patience, self.clock = open_channel, patience, clock
        self.circuit = Circuit(patience)
        self.unwritten: tuple[str, Settled] | None = None
        CIRCUIT.labels(name).set(0)


class _Membership:
    """One membership of a channel's group. While the partition is ours, there is an `_Owner`, who does the work."""

    def __init__(self, one: _Deliverer, stop: asyncio.Event) -> None:
        self._one, self._stop = one, stop
        self._member: Member
        self._owner: _Owner | None = None
        self._paused = False

    async def run(self) -> None:
        one = self._one
        self._member = await one.broker.member(
            one.group, [NOTIFICATIONS.topic], on_assign=self._assigned, on_revoke=self._revoked
        )
        try:
            while not self._stop.is_set():
                await self._step()
        finally:
            try:
                await self._revoked([NOTIFICATIONS])
            finally:
                await self._member.close()

    async def _assigned(self, _: Sequence[TopicPartition]) -> None:
        transactor = await self._one.broker.transactor(
            self._one.group, state_topics([self._one.group], 1)[0].name, 0, [NOTIFICATIONS.topic]
        )
        try:
            restored = await transactor.restore()
            remembered = _restored(restored.snapshot, self._one.group)
        except BaseException:
            await transactor.close()
            raise
        if NOTIFICATIONS in restored.offsets:
            self._member.seek(NOTIFICATIONS, restored.offsets[NOTIFICATIONS])
        self._paused = False
        self._owner = _Owner(self._one, transactor, remembered)
        log.info("delivering", channel=self._one.name)

    async def _revoked(self, _: Sequence[TopicPartition]) -> None:
        owner, self._owner = self._owner, None
        if owner:
            CONSUMER_LAG.remove(self._one.group, *NOTIFICATIONS)
            await owner.close()

    async def _step(self) -> None:
        """Read on, unless enough waits; whoever polls keeps the partition, however long a channel takes."""
        polled = await self._member.poll(POLL_S, POLL_RECORDS)
        if self._owner is None:
            return
        self._owner.take(polled.get(NOTIFICATIONS, ()))
        self._owner.check()
        if self._paused != self._owner.is_full:
            self._paused = self._owner.is_full
            (self._member.pause if self._paused else self._member.resume)(NOTIFICATIONS)
        lag = sum((await self._member.lag()).values()) + self._owner.waiting
        CONSUMER_LAG.labels(self._one.group, *NOTIFICATIONS).set(lag)


def _restored(snapshot: bytes | None, group: str) -> Remembered:
    if snapshot is None:
        return Remembered()
    try:
        return msgspec.json.decode(snapshot, type=Remembered)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"what {group} remembers cannot be read: {error}; another version wrote it: run that one, or delete the "
            f"topic state.{group} (topics.prefix before it): messages sent so far are then not edited any more"
        ) from None


class _Owner:
    """Who delivers, from the assignment of the partition to its end: a queue, and the task that works through it."""

    def __init__(self, one: _Deliverer, transactor: Transactor, remembered: Remembered) -> None:
        self._one, self._transactor, self._remembered = one, transactor, remembered
        self._channel: Channel | None = None
        self._queue: deque[Record] = deque()
        self._arrived, self._leaving = asyncio.Event(), asyncio.Event()
        self._next_offset: int | None = None  # to be committed
        self._problem = "no answer yet"
        self._tries = 0
        self._may_amend = True
        self._committed_at = one.clock()
        self._working = asyncio.create_task(self._work())

    # --- the side of the membership ---------------------------------------------------------------------------------

    def take(self, records: Sequence[Record]) -> None:
        self._queue.extend(records)
        self._arrived.set()

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @property
    def is_full(self) -> bool:
        return len(self._queue) >= POLL_RECORDS

    def check(self) -> None:
        """Raises what has ended the work."""
        if self._working.done():
            self._working.result()

    async def close(self) -> None:
        """Let what is being sent be sent and written; what is not, is the next owner's to repeat."""
        self._leaving.set()
        self._arrived.set()
        try:
            await asyncio.wait({self._working}, timeout=GRACE_S)
            if not self._working.done():
                log.warning("a message was under way; it will be repeated", channel=self._one.name)
        finally:
            self._working.cancel()
            await asyncio.gather(self._working, return_exceptions=True)
            await self._transactor.close()
            if self._channel:
                await self._channel.close()

    # --- the work -----------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        self._open()
        while not self._leaving.is_set():
            if self._queue:
                await self._settle(self._queue[0])
                self._queue.popleft()
            else:
                self._arrived.clear()
                await self._arrived.wait()
        if self._next_offset is not None:
            await self._write([], self._remembered)

    def _open(self) -> Channel | None:
        """A secret that cannot be read now may be there at the next try."""
        if self._channel:
            return self._channel
        try:
            opened = self._one.open_channel()
        except ConfigError as error:
            self._problem = str(error)
            return None
        if isinstance(opened, Resuming):
            opened.resume(self._remembered.living())
        self._channel = opened
        return opened

    async def _settle(self, record: Record) -> None:
        """Deliver what is for this channel, and pass over the rest."""
        offset = record.offset + 1
        try:
            notification = read_message(_DECODER.decode, record.value or b"", "not a notification: ")
        except Rejected as error:
            await self._pass_over(offset, self._dead_letters(record, error))
            return
        if notification.channel != self._one.name:
            await self._pass_over(offset, [])
            return
        if notification.cause == "explained":
            await self._amend(notification)
            await self._pass_over(offset, [])
            return
        with suppress(_Left):
            settled = await self._deliver(notification)
            self._next_offset = offset
            await self._record(notification, settled)

    def _dead_letters(self, record: Record, error: Rejected) -> list[Outgoing]:
        """Of a record that is no notification: one, although every channel has read it."""
        if self._one.name != "console":  # the channel that there is in every file
            return []
        return [dead_letter_of(NOTIFICATIONS.topic, record, error, to_partition=0)]

    async def _pass_over(self, offset: int, outputs: Sequence[Outgoing]) -> None:
        self._next_offset = offset
        if outputs or self._one.clock() - self._committed_at >= COMMIT_S:
            await self._write(outputs, self._remembered)

    async def _amend(self, notification: Notification) -> None:
        """Add to the last message, where the channel can. What fails comes with the next, which waits no longer."""
        channel = self._open() if self._may_amend and not self._remembered.in_trouble else None
        if channel is None or not isinstance(channel, Amending):
            return
        try:
            async with asyncio.timeout(AMEND_S):
                memory = await self._say(channel.amend, notification)
        except (Rejected, Retryable, TimeoutError) as error:
            self._may_amend = False
            problem = str(error) or f"no answer within {AMEND_S:g} s"
            log.warning("a message was not amended; the next one says it", channel=self._one.name, problem=problem)
        else:
            MESSAGES.labels(self._one.name, "amended").inc()
            self._remembered = self._remembered.amended(notification, memory)

    async def _deliver(self, notification: Notification) -> Settled:
        """What becomes of it in the end; on the way there, say when it takes too long."""
        if self._one.unwritten and self._one.unwritten[0] == notification.id:
            return self._one.unwritten[1]
        trying = asyncio.create_task(self._until_settled(notification))
        try:
            await asyncio.wait({trying}, timeout=self._failing_in_s(notification))
            if not trying.done() and not self._remembered.in_trouble:
                await self._say_failing(notification)
            settled = await trying
        finally:
            trying.cancel()
            await asyncio.gather(trying, return_exceptions=True)
        self._one.unwritten = notification.id, settled
        return settled

    def _failing_in_s(self, notification: Notification) -> float:
        """One that has waited long already has a quarter of the time, so that a restart alone is no trouble."""
        limit_s, now = self._one.patience.failing_after_s, self._one.clock()
        return max(notification.created_unix_s + limit_s - now, limit_s / 4)

    async def _until_settled(self, notification: Notification) -> Settled:
        self._tries = 0
        while not (late := self._too_old(notification)):
            try:
                memory = await self._try(notification)
            except Rejected as error:
                self._circuit_closed()
                return Settled("refused", self._tries, {}, error.detail)
            except Retryable as error:
                await self._pause_after(error)
            else:
                self._circuit_closed()
                return Settled("delivered", self._tries, memory)
        return Settled("refused", self._tries, {}, late)

    def _too_old(self, notification: Notification) -> str:
        limit_s = self._one.patience.give_up_s
        if self._one.clock() - notification.created_unix_s < limit_s:
            return ""
        return f"not delivered within {shown(limit_s)}: {self._problem}"

    async def _try(self, notification: Notification) -> Memory:
        self._tries += 1
        channel = self._open()
        if channel is None:
            raise Retryable(self._problem)
        return await self._say(channel.deliver, notification)

    async def _say(
        self, to_channel: Callable[[Notification, Memory], Awaitable[Memory]], notification: Notification
    ) -> Memory:
        try:
            return await to_channel(notification, self._remembered.of(notification))
        except (Rejected, Retryable):
            raise
        except Exception as error:  # a mistake of the channel's, which the same message would meet again
            raise Rejected(Reason.REFUSED, f"channel {self._one.name} failed on it: {_what_and_where(error)}") from None

    async def _pause_after(self, error: Retryable) -> None:
        self._problem = str(error)
        FAILURES.labels(self._one.name).inc()
        pause_s = self._one.circuit.failed(error)
        CIRCUIT.labels(self._one.name).set(self._one.circuit.is_open)
        log.warning("will try again", channel=self._one.name, problem=self._problem, pause_s=round(pause_s, 2))
        with suppress(TimeoutError):
            await asyncio.wait_for(self._leaving.wait(), pause_s)
        if self._leaving.is_set():
            raise _Left

    def _circuit_closed(self) -> None:
        """It has answered."""
        self._one.circuit.worked()
        CIRCUIT.labels(self._one.name).set(0)

    # --- what became of it ------------------------------------------------------------------------------------------

    async def _say_failing(self, notification: Notification) -> None:
        failing = self._delivery(notification, Settled("failing", self._tries, {}, self._problem))
        self._remembered = self._remembered.in_trouble_now()
        log.error("a channel cannot be reached; others are told", channel=self._one.name, problem=self._problem)
        await self._write(list(_told(failing)), self._remembered)

    async def _record(self, notification: Notification, settled: Settled) -> None:
        deliveries = [self._delivery(notification, settled)]
        if settled.outcome == "delivered":
            if self._remembered.in_trouble:
                deliveries.append(self._delivery(notification, settled._replace(outcome="recovered")))
            remembered = self._remembered.after(notification, settled.memory)
            self._may_amend = True
        else:
            log.error("a channel refuses a message; others are told", channel=self._one.name, problem=settled.detail)
            remembered = self._remembered.in_trouble_now()
        await self._write([record for each in deliveries for record in _told(each)], remembered)
        self._remembered, self._one.unwritten = remembered, None
        if settled.outcome == "delivered" and notification.cause in ("new", "changed", "resolved"):
            newest = max(alert.updated_unix_s for alert in notification.alerts)
            SECONDS.labels(self._one.name).observe(max(0.0, self._one.clock() - newest))

    def _delivery(self, notification: Notification, settled: Settled) -> Delivery:
        MESSAGES.labels(self._one.name, settled.outcome).inc()
        elsewhere = settled.outcome in ("failing", "refused")
        return Delivery(
            id=notification.id,
            channel=notification.channel,
            group=notification.group,
            outcome=settled.outcome,
            time_unix_s=self._one.clock(),
            tries=settled.tries,
            detail=settled.detail,
            memory=dict(settled.memory),
            notification=notification if elsewhere else None,
        )

    async def _write(self, outputs: Sequence[Outgoing], remembered: Remembered) -> None:
        offsets = {} if self._next_offset is None else {NOTIFICATIONS: self._next_offset}
        await self._transactor.transact(outputs, msgspec.json.encode(remembered), offsets)
        self._next_offset, self._committed_at = None, self._one.clock()


class _Left(Exception):  # noqa: N818 - not a failure
    """The channel is somebody else's from now on, or the process ends."""


def _told(delivery: Delivery) -> Iterator[Outgoing]:
    """Its records: one to keep, and one for the decision if that has something to do about it."""
    value, key = msgspec.json.encode(delivery), delivery.group.encode()
    yield Outgoing("deliveries", key, value, (SCHEMA_HEADER,), 0)
    if delivery.outcome != "delivered":
        yield Outgoing("pages", key, value, (SCHEMA_HEADER,), 0)


def _what_and_where(error: Exception) -> str:
    """Not what it says: that may hold a secret."""
    *_, last = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__} at {last.filename.rpartition('/')[2]}:{last.lineno}"
