"""The inventory as a Faust application: heartbeats → a table → a timer that tells who fell silent.

::

    heartbeats ──► agent `hear` ──► table `roster` (its changelog)
                                        │
    alerts, at the start ──► `Book` ──► timer `judge` ──► alerts
    commands (ack) ─────────────────────┘

Any number may run: ``heartbeats`` has one partition, so one of them works and the others stand by. What it promises:

* One alert for a silence, whatever becomes of the inventory meanwhile: ids are made of the last heartbeat, the table
  comes back from its changelog, and what was told before is read from ``alerts`` when the partition is taken over.
* A record that Faust loses, or reads twice, does no harm: the next heartbeat says the same, and it takes three lost
  ones for a false alarm.
* It does not judge by what it does not see. Silence is counted in the broker's time of heartbeats that were read; after
  a start, a rebalance or an outage of the broker somebody has to be silent for the whole patience anew to be told of.
* One that does not even see its own heartbeats for ``inventory.blind_s`` ends with an error, to be started anew: Faust
  has been seen to stand still without saying so.

It tells after three intervals of silence, half a second for each look, and a second for its own next heartbeat.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from prometheus_client import Gauge

from streammon.broker import Broker, Outgoing, Reader
from streammon.broker.reading import read
from streammon.commands import Acknowledge, AnyCommand
from streammon.config import Settings
from streammon.errors import ConfigError, Fatal, Retryable, StreammonError
from streammon.results import Alert
from streammon.telemetry import log
from streammon.topics import HEARTBEATS
from streammon.wire import SCHEMA_HEADER
from streammon_processors.faust_app import StreammonApp, create_app, topic
from streammon_processors.inventory.absence import Book, acknowledged, news, our_alert
from streammon_processors.inventory.expected import Expected
from streammon_processors.inventory.roster import Seen, Watch, absences, forgotten, without_anybody

COMPONENTS = Gauge("streammon_inventory_components", "Components that the inventory knows", ["state"])
ABSENT = Gauge("streammon_inventory_absent", "Alerts of absence that are open")

LOOK_S: Final = 0.5
OWN_BEAT_S: Final = 1.0
"""The inventory's own heartbeats are its clock while nobody else says anything."""
STOP_S: Final = 8.0
_COMMANDS = msgspec.json.Decoder(AnyCommand)


@dataclass
class _Duty:
    """What only the one that holds the partition knows, for as long as it does."""

    watch: Watch
    book: Book
    commands: Reader


@dataclass
class InventoryService:
    """One inventory; `run` is its life."""

    broker: Broker
    settings: Settings
    expected: Expected
    _duty: _Duty | None = None
    _taken: int = 0
    """How often partitions have come or gone: what was begun before is not finished after."""
    _heard: list[float] = field(default_factory=list)
    """Times of heartbeats heard since the last look."""
    _heard_at: float = 0.0
    """When the last heartbeat was heard, by the loop's clock. Our own are among them, so that there always is one."""
    _failure: StreammonError | None = None
    _failed: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, stop: asyncio.Event) -> None:
        """Until ``stop`` is set.

        Raises:
            ConfigError: the topic ``heartbeats`` has more than one partition.
            Fatal: Faust has crashed, or stands still.
        """
        await self._check_topic()
        async with self._running() as app:
            ends = [
                asyncio.ensure_future(each) for each in (app.wait_until_stopped(), self._failed.wait(), stop.wait())
            ]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for end in ends:
                end.cancel()
        if self._failure:
            raise self._failure
        if not stop.is_set():
            raise Fatal(f"Faust has ended: {app.crash_reason!r}; start the inventory again")

    async def healthy(self) -> str | None:
        """None while this one watches, and somebody of each role that telling needs is alive."""
        if self._duty is None or self._duty.watch.now is None:
            return "this inventory stands by"
        if (blind_s := self._blind_s()) > self.settings.inventory.blind_s / 2:
            return f"this inventory has heard nobody, not even itself, for {blind_s:.0f} s"
        gone = without_anybody(self._roster(), self.settings.ping.roles, self._duty.watch.now)
        return f"nobody is alive of: {', '.join(gone)}" if gone else None

    async def _check_topic(self) -> None:
        spec = (await self.broker.topics()).get(HEARTBEATS)
        if spec and spec.partitions != 1:
            name = f"{self.settings.topics.prefix}{HEARTBEATS}"
            raise ConfigError(
                f"the topic {name} has {spec.partitions} partitions, and an inventory has to see everybody in one: "
                "delete it, and let `streammon topics create` make it anew"
            )

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[StreammonApp]:
        logging.getLogger("faust").setLevel(logging.ERROR)  # it warns of every rebalance
        files = self.settings.data_dir / "faust"
        files.mkdir(parents=True, exist_ok=True)
        app = create_app("inventory", self.settings, datadir=files / "inventory")  # else it is made where we start
        self._define(app)
        await app.start()
        try:
            yield app
        finally:
            await self._leave()
            try:
                async with asyncio.timeout(STOP_S):
                    await app.stop()
            except TimeoutError:
                log.warning("Faust does not end, and is left")

    def _define(self, app: StreammonApp) -> None:
        heartbeats = topic(app, HEARTBEATS)
        self._table = app.Table("roster", partitions=1, key_type=str, value_type=bytes)

        @app.agent(heartbeats)
        async def hear(stream: Any) -> None:
            async for event in stream.noack().events():
                self._hear(event)
                event.ack()

        async def judge() -> None:
            try:
                await self._look(app)
            except Retryable as error:
                log.warning("the inventory cannot judge now", error=str(error))
            except StreammonError as error:
                self._failure = error
                self._failed.set()

        async def gone(*_: Any, **__: Any) -> None:
            await self._leave()

        app.timer(LOOK_S)(judge)
        app.on_partitions_revoked.connect(gone)
        self._receiver = gone  # Faust's signals hold their receivers weakly

    def _hear(self, event: Any) -> None:
        id_ = event.key.decode(errors="replace")
        if event.value is None:
            self._table.pop(id_, None)
            return
        at = event.message.timestamp
        self._table[id_] = msgspec.json.encode(Seen(event.value, at))
        self._heard.append(at)
        self._heard_at = asyncio.get_running_loop().time()

    def _roster(self) -> dict[str, Seen]:
        return {id_: _SEEN.decode(value) for id_, value in self._table.items()}

    async def _look(self, app: StreammonApp) -> None:
        if app.rebalancing or not self._owns(app):
            return
        if self._duty is None:
            await self._take_over()
        duty = self._duty
        if duty is None:
            return
        for at in self._heard:
            duty.watch.hear(at)
        self._heard.clear()
        self._check_sight()
        await self._acknowledge(duty)
        await self._tell(duty)

    @staticmethod
    def _owns(app: StreammonApp) -> bool:
        return any(tp.topic.endswith(HEARTBEATS) for tp in app.consumer.assignment())

    async def _take_over(self) -> None:
        """Read what has been told; the partition may go again meanwhile."""
        taken = self._taken
        book = Book(await self._told())
        since = min((alert.updated_unix_s for alert in book.open.values()), default=None)
        commands = await self.broker.reader(["commands"], "latest" if since is None else since)
        if taken != self._taken:
            await commands.close()
            return
        self._heard_at = asyncio.get_running_loop().time()
        self._heard.clear()
        self._duty = _Duty(Watch(2 * OWN_BEAT_S), book, commands)
        log.info("the inventory watches", components=len(self._table), open_alerts=len(book.open))

    async def _told(self) -> list[Alert]:
        """Our own alerts, in the order of their transitions."""
        async with aclosing(read(self.broker, ["alerts"])) as batches:
            found = [our_alert(record.value) async for _, records in batches for record in records]
        return [alert for alert in found if alert]

    async def _leave(self) -> None:
        self._taken += 1
        duty, self._duty = self._duty, None
        if duty:
            await duty.commands.close()

    def _blind_s(self) -> float:
        return asyncio.get_running_loop().time() - self._heard_at

    def _check_sight(self) -> None:
        longest_s = self.settings.inventory.blind_s
        if self._blind_s() > longest_s:
            raise Fatal(f"this inventory has heard nobody, not even itself, for {longest_s:g} s: start it again")

    async def _acknowledge(self, duty: _Duty) -> None:
        polled = await duty.commands.poll(0.0)
        for record in (record for records in polled.values() for record in records):
            command = _command(record.value)
            alert = duty.book.by_id(command.alert_id) if command else None
            if command and alert and (transition := acknowledged(alert, command)):
                await self._write(duty, [transition])

    async def _tell(self, duty: _Duty) -> None:
        now, roster = duty.watch.now, self._roster()
        if now is None:
            return
        absent = absences(roster, self.expected, now, self.settings.inventory.grace_s)
        await self._write(duty, list(news(duty.book, absent, roster, self.expected, duty.watch)))
        if gone := forgotten(roster, self.expected, now):
            await self.broker.append([Outgoing(HEARTBEATS, id_.encode(), None) for id_ in gone])
        _show(roster, duty.book, now)

    async def _write(self, duty: _Duty, alerts: list[Alert]) -> None:
        """Then note: what was not written is tried again, under the same id and transition."""
        if not alerts or duty is not self._duty:
            return
        records = [Outgoing("alerts", each.id.encode(), msgspec.json.encode(each), (SCHEMA_HEADER,)) for each in alerts]
        await self.broker.append(records)
        for alert in alerts:
            duty.book.note(alert)
            log.info("told", state=alert.state, summary=alert.summary, alert=alert.id)


_SEEN = msgspec.json.Decoder(Seen)


def _command(value: bytes | None) -> Acknowledge | None:
    try:
        command = _COMMANDS.decode(value or b"")
    except msgspec.DecodeError:
        return None  # whoever reads all commands counts it
    return command if isinstance(command, Acknowledge) else None


def _show(roster: Mapping[str, Seen], book: Book, now: float) -> None:
    states = [seen.state(now) for seen in roster.values()]
    for state in ("alive", "silent", "stopped"):
        COMPONENTS.labels(state).set(sum(each == state for each in states))
    ABSENT.set(len(book.open))
