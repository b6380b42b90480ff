"""Executing: whatever `remediations` says is due is done at most once, one after the other.

    due ─► write "started" and the position, in one transaction ─► do it ─► write what became of it

What it promises:

* **At most once.** Who dies between the two transactions leaves "started". The next owner writes ``unknown`` and does
  not do it again: whether it happened is for a person to find out. A zombie is fenced before it begins.
* **Within its time.** Each action has a ``timeout``; whatever runs longer is given up, and is ``unknown``.
* **Not late.** What has been due for `LATE_S`, or whose alert has ended meanwhile, is not done, but ``expired``.
* **What was decided.** An action that the file describes otherwise by now is not done, but ``failed``.
* No retries: ``failed`` means that the other side said no or could not be reached.

What it says goes to `remedies`, for the decision to write down; only that writes `remediations`.

What it cannot do: take back what has begun when its alert ends.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import msgspec
from msgspec import Struct
from prometheus_client import Counter

from streammon.backoff import Backoff
from streammon.broker import Broker, Member, Outgoing, Record, TopicPartition, Transactor
from streammon.clock import Clock, system_clock
from streammon.durations import shown
from streammon.errors import ConfigError, Fenced, Rejected, Retryable, StreammonError
from streammon.remediation import REMEDIATIONS, REMEDIES, Executed, Execution, Remediation, Why
from streammon.telemetry import CONSUMER_LAG, log
from streammon.topics import TopicSpec, state_topics
from streammon.wire import SCHEMA_HEADER, read_message
from streammon_sinks.notify.http import Unanswered
from streammon_sinks.remediation.actions import AnyAction, Tools

GROUP: Final = "remediate"
DECIDED: Final = TopicPartition(REMEDIATIONS, 0)
LATE_S: Final = 600.0
"""What was due for so long is not done any more: nobody expects it."""
POLL_S: Final = 0.2
POLL_RECORDS: Final = 100
GRACE_S: Final = 5.0
"""How long what is under way may still take when the partition moves, or the process ends."""
STOP_S: Final = 3.0
MAX_DETAIL: Final = 1000
REJOIN: Final = Backoff(first_s=1.0, longest_s=10.0)
OUTCOMES = Counter("streammon_remediations_executed", "What became of remediations that were due", ["action", "state"])

Actions = Callable[[], Mapping[str, tuple[AnyAction, str]]]
"""What the file says now. Raises ConfigError."""
_DECODER: Final = msgspec.json.Decoder(Remediation)


def execution_topics() -> list[TopicSpec]:
    """The topic that remembers what has been started."""
    return state_topics([GROUP], 1)


async def execute_remediations(
    broker: Broker,
    actions: Actions,
    tools: Tools,
    *,
    stop: asyncio.Event,
    clock: Clock = system_clock,
) -> None:
    """Be one of those who execute, of whom one does and the others stand by, until ``stop``.

    Raises:
        Fatal: as the broker does.
        ConfigError: a topic does not exist.
    """
    one = _Executor(broker, actions, tools, clock)
    failures = 0
    while not stop.is_set():
        try:
            await _until_stopped(_Membership(one, stop), stop)
        except (Retryable, Fenced) as error:
            log.warning("remediation is joined anew", error=str(error))
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


class _Running(Struct):
    """The snapshot: what has been started, and has no outcome yet."""

    remediation: Remediation | None = None


class _Executor:
    """What outlives a membership: an outcome that is not written yet."""

    def __init__(self, broker: Broker, actions: Actions, tools: Tools, clock: Clock) -> None:
        self.broker, self.actions, self.tools, self.clock = broker, actions, tools, clock
        self.unwritten: Execution | None = None


class _Membership:
    """One membership of the group. While the partition is ours, there is an `_Owner`, who does the work."""

    def __init__(self, one: _Executor, stop: asyncio.Event) -> None:
        self._one, self._stop = one, stop
        self._member: Member
        self._owner: _Owner | None = None
        self._paused = False

    async def run(self) -> None:
        self._member = await self._one.broker.member(
            GROUP, [REMEDIATIONS], on_assign=self._assigned, on_revoke=self._revoked
        )
        try:
            while not self._stop.is_set():
                await self._step()
        finally:
            try:
                await self._revoked([DECIDED])
            finally:
                await self._member.close()

    async def _assigned(self, _: Sequence[TopicPartition]) -> None:
        transactor = await self._one.broker.transactor(GROUP, execution_topics()[0].name, 0, [REMEDIATIONS])
        try:
            restored = await transactor.restore()
            running = _restored(restored.snapshot)
        except BaseException:
            await transactor.close()
            raise
        if DECIDED in restored.offsets:
            self._member.seek(DECIDED, restored.offsets[DECIDED])
        self._paused = False
        self._owner = _Owner(self._one, transactor, running)
        log.info("executing remediations")

    async def _revoked(self, _: Sequence[TopicPartition]) -> None:
        owner, self._owner = self._owner, None
        if owner:
            CONSUMER_LAG.remove(GROUP, *DECIDED)
            await owner.close()

    async def _step(self) -> None:
        """Read on while something is done; begin something only when all there is to know has been read."""
        polled = await self._member.poll(POLL_S, POLL_RECORDS)
        if self._owner is None:
            return
        self._owner.take(polled.get(DECIDED, ()))
        self._owner.check()
        if self._paused != self._owner.is_full:
            self._paused = self._owner.is_full
            (self._member.pause if self._paused else self._member.resume)(DECIDED)
        unread = sum((await self._member.lag()).values())
        CONSUMER_LAG.labels(GROUP, *DECIDED).set(unread + self._owner.waiting)
        if not unread or self._owner.is_full:
            self._owner.go()


def _restored(snapshot: bytes | None) -> Remediation | None:
    if snapshot is None:
        return None
    try:
        return msgspec.json.decode(snapshot, type=_Running).remediation
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"what {GROUP} remembers cannot be read: {error}; another version wrote it: run that one, or delete the "
            f"topic state.{GROUP} (topics.prefix before it): whether the last remediation was done is then not told"
        ) from None


class _Owner:
    """Who executes, from the assignment of the partition to its end: a queue, and the task that works through it."""

    def __init__(self, one: _Executor, transactor: Transactor, running: Remediation | None) -> None:
        self._one, self._transactor = one, transactor
        self._queue: deque[Record] = deque()
        self._withdrawn: set[str] = set()
        self._go, self._leaving = asyncio.Event(), asyncio.Event()
        self._working = asyncio.create_task(self._work(running))

    # --- the side of the membership -----------------------------------------------------------------------------------

    def take(self, records: Sequence[Record]) -> None:
        for record in records:
            with suppress(Rejected):
                remediation = read_message(_DECODER.decode, record.value or b"")
                if remediation.state == "withdrawn" and any(record.key == each.key for each in self._queue):
                    self._withdrawn.add(remediation.id)
                if remediation.state == "due":
                    self._queue.append(record)

    def go(self) -> None:
        if self._queue:
            self._go.set()

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
        """Let what is under way come to its end; what does not in time is given up, and told as unknown."""
        self._leaving.set()
        self._go.set()
        try:
            await asyncio.wait({self._working}, timeout=GRACE_S + STOP_S)
        finally:
            self._working.cancel()
            await asyncio.gather(self._working, return_exceptions=True)
            await self._transactor.close()

    # --- the work -----------------------------------------------------------------------------------------------------

    async def _work(self, running: Remediation | None) -> None:
        if running:
            await self._settle(running)
        while not self._leaving.is_set():
            await self._go.wait()
            if self._queue and not self._leaving.is_set():
                await self._execute(self._queue[0])
                self._queue.popleft()
            if not self._queue:
                self._withdrawn.clear()
            if not self._queue and not self._leaving.is_set():
                self._go.clear()

    async def _settle(self, running: Remediation) -> None:
        """What was begun before us: the outcome is in our memory, or nobody knows it."""
        known = self._one.unwritten
        if known is None or known.remediation.id != running.id:
            detail = "whoever did it ended before it could say what became of it; it is not done again"
            known = self._execution(running, "unknown", detail)
        await self._write(known, None)

    async def _execute(self, record: Record) -> None:
        """Do what is due, unless something speaks against it."""
        remediation = read_message(_DECODER.decode, record.value or b"")
        position = {DECIDED: record.offset + 1}
        action = self._action(remediation, record.timestamp / 1000)
        if isinstance(action, Execution):
            await self._write(action, None, position)
            return
        await self._write(self._execution(remediation, "started"), remediation, position)
        log.info("a remediation is begun", action=remediation.action, id=remediation.id, dry_run=remediation.dry_run)
        self._one.unwritten = await self._done(action, remediation)
        await self._write(self._one.unwritten, None)

    def _action(self, remediation: Remediation, due_unix_s: float) -> AnyAction | Execution:
        """What to do, or why not."""
        if remediation.id in self._withdrawn:
            return self._execution(remediation, "expired", reason=Why.RESOLVED)
        if self._one.clock() - due_unix_s > LATE_S:
            return self._execution(remediation, "expired", f"due for more than {shown(LATE_S)}", reason=Why.LATE)
        try:
            action, version = self._one.actions().get(remediation.action, (None, ""))
        except ConfigError as error:
            return self._execution(remediation, "failed", f"not begun: {error}")
        if action is None or version != remediation.action_version:
            return self._execution(remediation, "failed", "not begun: it is another action now", reason=Why.CHANGED)
        return action

    async def _done(self, action: AnyAction, remediation: Remediation) -> Execution:
        """What became of it; nothing but its outcome may go on from here."""
        doing = asyncio.create_task(action.do(self._one.tools, remediation))
        leaving = asyncio.create_task(self._leaving.wait())
        try:
            await asyncio.wait({doing, leaving}, timeout=action.timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if not doing.done() and leaving.done():
                await asyncio.wait({doing}, timeout=min(GRACE_S, action.timeout_s))
            if not doing.done():
                given_up = "the process ended" if leaving.done() else f"no end within {shown(action.timeout_s)}"
                return self._execution(remediation, *_undecided(remediation, given_up))
            return self._execution(remediation, *_outcome(remediation, doing))
        finally:
            for task in (doing, leaving):
                task.cancel()
            await asyncio.gather(doing, leaving, return_exceptions=True)

    def _execution(
        self, remediation: Remediation, state: Executed, detail: str | None = None, reason: Why | None = None
    ) -> Execution:
        return Execution(
            remediation=remediation,
            state=state,
            time_unix_s=self._one.clock(),
            reason=reason,
            detail=detail and detail[:MAX_DETAIL],
        )

    async def _write(
        self, execution: Execution, running: Remediation | None, position: Mapping[TopicPartition, int] | None = None
    ) -> None:
        remediation = execution.remediation
        value = msgspec.json.encode(execution)
        outputs = [Outgoing(REMEDIES, remediation.id.encode(), value, (SCHEMA_HEADER,), 0)]
        await self._transactor.transact(outputs, msgspec.json.encode(_Running(running)), position or {})
        OUTCOMES.labels(remediation.action, execution.state).inc()
        if running is None:
            self._one.unwritten = None


def _outcome(remediation: Remediation, done: asyncio.Task[str]) -> tuple[Executed, str]:
    """In words that hold no secret: our own errors do not, and of others only the kind is told."""
    error: Any = done.exception()
    if error is None:
        return "done", done.result()
    if isinstance(error, Unanswered):
        return _undecided(remediation, str(error))
    if isinstance(error, Rejected):
        return "failed", error.detail
    if isinstance(error, StreammonError):
        return "failed", str(error)
    return _undecided(remediation, f"action {remediation.action} failed on it: {type(error).__name__}")


def _undecided(remediation: Remediation, why: str) -> tuple[Executed, str]:
    """What nobody knows the end of; a dry run has done nothing, whatever its end."""
    return ("failed", why) if remediation.dry_run else ("unknown", f"{why}; it may have been done")
