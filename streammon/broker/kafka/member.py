"""A member of a consumer group, on librdkafka's consumer: fetching and heartbeats run in C, beside Python.

So a busy or blocked event loop costs no membership (only `MAX_POLL_S` without a poll does), and a record costs
half the CPU time that it costs in Python.

librdkafka runs rebalance callbacks within the call that fetches, which runs in a thread of ours. Ours are
coroutines: the thread hands them to the event loop, which is free because `KafkaMember.poll` awaits that thread.

- *Revoke* returns, and so lets the group move on, only when on_revoke is done.
- *Assign* starts fetching where on_assign has sought to.
- What the fetching call returns from before a rebalance is dropped, and the new assignment started once more: its
  partitions begin where they are committed, and a record kept from before would leave a gap behind it.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import Any, TypeVar

from confluent_kafka import OFFSET_INVALID, Consumer, KafkaError, KafkaException
from confluent_kafka import TopicPartition as KafkaPartition

from streammon.broker import AssignmentCallback, Polled, TopicPartition
from streammon.broker.kafka.cluster import FETCH_BYTES, FETCH_WAIT_MS, REQUEST_S, RETRY_MS, STOP_S, Cluster, ms
from streammon.broker.kafka.messages import Error, Fetched
from streammon.broker.kafka.security import librdkafka_options
from streammon.errors import ConfigError, Fatal, Retryable, StreammonError

MAX_POLL_S = 60.0
"""Who does not poll for this long is dropped from the group: it may have its heartbeats, but it does no work."""
QUEUE_KBYTES, QUEUE_RECORDS = 2048, 20_000
"""Fetched ahead of `poll`, by partition: bounds memory, and is some 10 ms of work."""
AT_ONCE = 1000
"""Messages made records together, while they are in the processor's cache."""
POLL_BYTES = 4 * 1024 * 1024
"""About the most of one poll: bounds memory where records are large."""
LAG_S = 1.0

REFUSED = (
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError._AUTHENTICATION,
)
PASSING = (KafkaError._MAX_POLL_EXCEEDED, KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN)
"""What librdkafka mends by itself."""

SAY_AGAIN_S = 60.0

log = logging.getLogger("streammon.librdkafka")

T = TypeVar("T")


class KafkaMember:
    """`streammon.broker.Member`. Assigned by range: one member has the same partition numbers of all its topics."""

    def __init__(
        self,
        cluster: Cluster,
        group: str,
        topics: Sequence[str],
        *,
        on_assign: AssignmentCallback,
        on_revoke: AssignmentCallback,
    ) -> None:
        self._cluster = cluster
        self._needs = f"Read on topic {cluster.names(topics)}, Read on group {cluster.name(group)}"
        self._on_assign = on_assign
        self._on_revoke = on_revoke
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix=f"kafka-{group}")
        self._fetch: asyncio.Future[Fetched] | None = None
        self._starts: dict[TopicPartition, int] = {}  # where the partitions of this assignment begin
        self._due: list[TopicPartition] | None = None  # assigned, but on_assign has failed
        self._positions: dict[TopicPartition, int] = {}
        self._paused: set[TopicPartition] = set()
        self._requests: SimpleQueue[Callable[[], object] | None] | None = None  # while a callback runs
        self._rebalanced = False
        self._failure: BaseException | None = None
        self._closed = False
        self._consumer = Consumer(_options(cluster, cluster.name(group), self._note), logger=log)
        self._consumer.subscribe(
            [cluster.name(topic) for topic in topics], on_assign=self._assigned, on_revoke=self._revoked
        )

    # --- polling --------------------------------------------------------------------------------------------------

    async def poll(self, max_wait_s: float = 0.5, max_records: int = 2000) -> Polled:
        """Cancelled, it loses nothing: what is being fetched is the next poll's."""
        deadline = time.monotonic() + max_wait_s
        while True:
            self._raise_failure()
            if self._due is not None:
                await self._assign_again(self._due)
            left_s = max(0.0, deadline - time.monotonic())
            polled = self._polled(await self._fetched(left_s, max_records))
            if polled or not left_s:  # a failure waits for the next poll: what was read before it is not lost
                return polled

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    async def _fetched(self, wait_s: float, max_records: int) -> Fetched:
        if self._fetch is None:
            self._fetch = self._loop.run_in_executor(self._threads, self._consume, wait_s, max_records)
        try:
            fetched = await asyncio.shield(self._fetch)
        except Exception:  # not our cancellation, after which the next poll goes on waiting
            self._fetch = None
            raise
        self._fetch = None
        return fetched

    def _consume(self, wait_s: float, max_records: int) -> Fetched:
        """In our thread: wait for a message, then take all that are there."""
        deadline = time.monotonic() + wait_s
        while True:
            left_s = max(0.0, deadline - time.monotonic())
            fetched = self._take(min(left_s, FETCH_WAIT_MS / 1000), max_records)
            if self._rebalanced:
                self._rebalanced, fetched = False, Fetched()
                self._start()
            if fetched or not left_s or self._is_over:
                return fetched

    @property
    def _is_over(self) -> bool:
        return self._closed or self._failure is not None

    def _take(self, wait_s: float, max_records: int) -> Fetched:
        """All that is there, `AT_ONCE` at a time; `consume` alone would wait for all of them."""
        fetched = Fetched()
        try:
            first = self._consumer.poll(wait_s)
            messages = [] if first is None else [first]
            while messages:
                fetched.add(messages)
                most = min(AT_ONCE, fetched.room(POLL_BYTES), max_records - fetched.count)
                messages = self._consumer.consume(max(0, most), 0)
        except KafkaException as error:  # for the next poll to raise: what was read before it is not lost
            self._fail(self._explain("reading", error.args[0]))
        return fetched

    def _polled(self, fetched: Fetched) -> Polled:
        polled = {self._cluster.ours(place): records for place, records in fetched.records().items()}
        for partition, records in polled.items():
            self._come_to(partition, records[-1].offset + 1)
        for error in fetched.errors:
            self._read_error(error)
        return polled

    def _read_error(self, error: Error) -> None:
        if error.error.code() == KafkaError._PARTITION_EOF:
            self._come_to(
                self._cluster.ours(error.place), error.offset or 0
            )  # this far also past the markers of transactions
        elif error.error.code() not in PASSING:
            self._fail(self._explain("reading", error.error))

    def _come_to(self, partition: TopicPartition, offset: int) -> None:
        self._positions[partition] = max(self._positions.get(partition, 0), offset)

    # --- rebalances: called by librdkafka in the thread that fetches ------------------------------------------------

    def _assigned(self, _: Consumer, partitions: list[KafkaPartition]) -> None:
        self._rebalanced = True
        arrived = sorted(map(self._cluster.ours, partitions))
        self._await(self._assign(arrived))
        self._start()

    def _revoked(self, _: Consumer, __: list[KafkaPartition]) -> None:
        self._rebalanced = True
        revoked = sorted(self._starts)
        self._starts, self._due = {}, None
        if revoked and not self._closed:
            self._await(self._on_revoke(revoked))

    def _await(self, callback: Coroutine[Any, Any, None] | Any) -> None:
        """Have the event loop run a callback of ours, and do what it asks of the consumer meanwhile.

        While a rebalance is under way, librdkafka answers no other thread than this. What the callback raises is
        raised by `poll`.
        """
        requests: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._requests = requests
        running = asyncio.run_coroutine_threadsafe(callback, self._loop)
        running.add_done_callback(lambda _: requests.put(None))
        while (request := requests.get()) is not None:
            request()
        self._requests = None
        if not running.cancelled():
            self._fail(running.exception())

    async def _assign(self, arrived: list[TopicPartition]) -> None:
        self._due, self._paused = arrived, set()
        self._starts = dict.fromkeys(arrived, OFFSET_INVALID)  # as committed, else the earliest
        self._positions = {}
        if arrived:
            await self._on_assign(arrived)
        self._due = None

    async def _assign_again(self, arrived: list[TopicPartition]) -> None:
        await self._assign(arrived)
        self._start()

    def _start(self) -> None:
        """Fetch the partitions of the assignment from where they begin, unless on_assign has failed or paused them."""
        starts = {} if self._due is not None else self._starts
        partitions = [self._theirs(partition, offset) for partition, offset in starts.items()]
        with self._errors("starting to read"):
            self._consumer.assign(partitions)
            self._consumer.resume(partitions)  # librdkafka remembers who was paused in an earlier assignment
            self._consumer.pause([self._theirs(each) for each in starts if each in self._paused])

    # --- the rest ---------------------------------------------------------------------------------------------------

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        theirs = [self._theirs(partition, offset) for partition, offset in offsets.items()]
        with self._errors("committing"):
            async with asyncio.timeout(REQUEST_S):
                for result in await self._ask(lambda: self._consumer.commit(offsets=theirs, asynchronous=False)):
                    if result.error is not None:
                        raise KafkaException(result.error)

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self._positions[partition] = offset
        if self._due is not None:  # within on_assign
            self._starts[partition] = offset
            return
        with self._errors("seeking"):
            self._consumer.seek(self._theirs(partition, offset))

    def pause(self, partition: TopicPartition) -> None:
        self._paused.add(partition)
        if self._due is not None:  # within on_assign, where librdkafka would let us wait for ever
            return
        with self._errors("pausing"):
            self._consumer.pause([self._theirs(partition)])

    def resume(self, partition: TopicPartition) -> None:
        self._paused.discard(partition)
        if self._due is not None:
            return
        with self._errors("resuming"):
            self._consumer.resume([self._theirs(partition)])

    async def lag(self) -> Mapping[TopicPartition, int]:
        """From the last fetch; the broker is asked about paused partitions, which are not fetched."""
        ends = {each: self._end(each, cached=True) for each in self._starts if each not in self._paused}
        if paused := [each for each in self._starts if each in self._paused]:
            ends |= await self._ask(lambda: {each: self._end(each, cached=False) for each in paused})
        return {
            partition: max(0, end - self._positions[partition])
            for partition, end in ends.items()
            if end >= 0 and partition in self._positions
        }

    async def _ask(self, call: Callable[[], T]) -> T:
        """What has to wait for the broker is done in a thread: in a rebalance, in that which serves it."""
        if self._requests is None:
            return await self._loop.run_in_executor(self._threads, call)
        answer: Future[T] = Future()
        self._requests.put(lambda: _answer(answer, call))
        return await asyncio.wrap_future(answer)

    def _end(self, partition: TopicPartition, *, cached: bool) -> int:
        with suppress(KafkaException):
            found = self._consumer.get_watermark_offsets(self._theirs(partition), timeout=LAG_S, cached=cached)
            return OFFSET_INVALID if found is None or found[1] is None else found[1]
        return OFFSET_INVALID

    async def close(self) -> None:
        self._closed = True
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_S):
                if self._fetch is not None:
                    await asyncio.wait({self._fetch})
                await self._loop.run_in_executor(self._threads, self._consumer.close)
        self._threads.shutdown(wait=False)

    def _theirs(self, partition: TopicPartition, offset: int = OFFSET_INVALID) -> KafkaPartition:
        return KafkaPartition(self._cluster.name(partition.topic), partition.partition, offset)

    def _note(self, error: KafkaError) -> None:
        """What librdkafka tells beside the messages; most of it passes."""
        if error.code() in REFUSED or _is_fatal(error):
            self._fail(self._explain("reading", error))

    def _fail(self, error: BaseException | None) -> None:
        """For the next poll to raise. Nothing takes the place of what ends the process."""
        if error is not None and not isinstance(self._failure, Fatal):
            self._failure = error

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except KafkaException as error:
            raise self._explain(doing, error.args[0]) from error
        except TimeoutError as error:
            raise Retryable(f"{doing} at Kafka {self._cluster.address} took too long") from error

    def _explain(self, doing: str, error: KafkaError) -> StreammonError:
        what = f"{doing} at Kafka {self._cluster.address}: {error.str()}"
        if error.code() in REFUSED:
            return ConfigError(f"{what}; {self._cluster.needs(self._needs)}")
        if error.code() == KafkaError.FENCED_INSTANCE_ID or (self._cluster.settings.instance_id and _is_fatal(error)):
            return Fatal(f"{what}; another process has the same kafka.instance_id: give each its own")
        if _is_fatal(error):
            return Fatal(f"{what}; start the process anew")
        return Retryable(what)


def _is_fatal(error: KafkaError) -> bool:
    """The second time librdkafka tells of it, in a message, the error no longer says so itself."""
    return error.fatal() or error.code() in (KafkaError._FATAL, KafkaError.FENCED_INSTANCE_ID)


class _NowAndThen(logging.Filter):
    """librdkafka logs each attempt to connect: two lines a second for as long as a broker is away."""

    def __init__(self) -> None:
        super().__init__()
        self._said_at: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the like, but for numbers and parentheses, was not said within `SAY_AGAIN_S`."""
        like, now = re.sub(r"\d+|\(.*", "", record.getMessage()), time.monotonic()
        self._said_at = {each: at for each, at in self._said_at.items() if now - at < SAY_AGAIN_S}
        return self._said_at.setdefault(like, now) == now


log.addFilter(_NowAndThen())


def _answer(future: Future[T], call: Callable[[], T]) -> None:
    try:
        future.set_result(call())
    except BaseException as error:
        future.set_exception(error)


def _options(cluster: Cluster, group: str, note: Callable[[KafkaError], None]) -> dict[str, Any]:
    settings = cluster.settings
    return {
        "bootstrap.servers": cluster.address,
        "client.id": settings.client_id,
        "group.id": group,
        "isolation.level": "read_committed",
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "earliest",
        "partition.assignment.strategy": "range",
        "session.timeout.ms": ms(settings.session_timeout_s),
        "heartbeat.interval.ms": ms(settings.heartbeat_s),
        "max.poll.interval.ms": ms(max(MAX_POLL_S, settings.session_timeout_s)),
        "enable.partition.eof": True,  # tells where a partition ends, past the markers of transactions
        "fetch.wait.max.ms": FETCH_WAIT_MS,
        "fetch.max.bytes": FETCH_BYTES,
        "fetch.queue.backoff.ms": 10,  # how soon to look again after the queue was full; a second by default
        "queued.max.messages.kbytes": QUEUE_KBYTES,
        "queued.min.messages": QUEUE_RECORDS,
        "reconnect.backoff.ms": RETRY_MS,
        "reconnect.backoff.max.ms": 1000,
        "error_cb": note,
        **({"group.instance.id": settings.instance_id} if settings.instance_id else {}),
        **librdkafka_options(settings),
    }
