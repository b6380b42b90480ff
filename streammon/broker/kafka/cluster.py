"""Where Kafka is, how it is spoken to, and what its errors mean to us."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka import TopicPartition as KafkaPartition
from aiokafka import errors as kafka_errors
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.partitioner import murmur2

from streammon.broker import TopicPartition
from streammon.broker.kafka.security import aiokafka_options
from streammon.errors import ConfigError, Fenced, RecordTooLarge, Retryable, StreammonError

if TYPE_CHECKING:
    from streammon.config import KafkaSettings

CONNECT_S = 8.0
REQUEST_S = 20.0
STOP_S = 3.0
FETCH_WAIT_MS = 100
LINGER_MS = 5
RETRY_MS = 50
ENVELOPE_BYTES = 64 * 1024
"""Room beside a record's value for key, headers and framing; also the size of a batch, so that all topics take it."""
LARGEST_RECORD_BYTES = 2 * 1024 * 1024 + ENVELOPE_BYTES
FETCH_BYTES = 16 * 1024 * 1024
"""Most bytes of one fetch answer, however many partitions it covers."""
FIRST_LOOK_BACK = 16

FENCED = (
    kafka_errors.ProducerFenced,
    kafka_errors.InvalidProducerEpoch,
    kafka_errors.InvalidProducerIdMapping,
    kafka_errors.TransactionCoordinatorFenced,
)
TOO_LARGE = (kafka_errors.MessageSizeTooLargeError, kafka_errors.RecordListTooLargeError)
REFUSED = (
    kafka_errors.TopicAuthorizationFailedError,
    kafka_errors.GroupAuthorizationFailedError,
    kafka_errors.TransactionalIdAuthorizationFailed,
    kafka_errors.ClusterAuthorizationFailedError,
    kafka_errors.SaslAuthenticationFailed,
)


@dataclass(frozen=True)
class Cluster:
    """Where Kafka is, how we speak to it, and what its errors mean to us."""

    address: str
    prefix: str
    replication: int
    settings: KafkaSettings

    def name(self, topic: str) -> str:
        return self.prefix + topic

    def names(self, topics: Iterable[str]) -> str:
        return ", ".join(sorted({self.name(topic) for topic in topics}))

    def needs(self, permissions: str) -> str:
        """Who lacks which permissions, for a message."""
        user = self.settings.sasl.username
        return f"{f'the user {user!r}' if user else 'this client'} needs {permissions}"

    def theirs(self, partition: TopicPartition) -> Any:
        return KafkaPartition(self.name(partition.topic), partition.partition)

    def ours(self, partition: Any) -> TopicPartition:
        return TopicPartition(partition.topic.removeprefix(self.prefix), partition.partition)

    def admin(self) -> Any:
        return AIOKafkaAdminClient(**self._common())

    def producer(self, **options: Any) -> Any:
        return AIOKafkaProducer(
            **self._common(),
            enable_idempotence=True,
            max_batch_size=ENVELOPE_BYTES,
            max_request_size=LARGEST_RECORD_BYTES,
            partitioner=_partition,
            **options,
        )

    def consumer(self, group: str | None, largest_record_bytes: int) -> Any:
        """A fetch must hold the largest record: aiokafka steps over one that does not fit."""
        return AIOKafkaConsumer(
            **self._common(),
            group_id=group,
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=FETCH_WAIT_MS,
            fetch_max_bytes=FETCH_BYTES,
            max_partition_fetch_bytes=largest_record_bytes + ENVELOPE_BYTES,
        )

    @contextmanager
    def errors(self, doing: str, *, needs: str = "permissions", as_owner: bool = False) -> Iterator[None]:
        """Turns what aiokafka raises into our own errors; ``doing`` says what failed, as in "writing".

        ``needs``: the permissions that takes, as in "Write on topic streammon.windows".
        ``as_owner``: under a transactional id, where a stale epoch means that another has taken it over.
        """
        try:
            yield
        except (kafka_errors.KafkaError, OSError, TimeoutError) as error:
            raise self._explain(doing, error, needs, as_owner) from error

    def _explain(self, doing: str, error: BaseException, needs: str, as_owner: bool) -> StreammonError:
        what = f"{doing} at Kafka {self.address}: {str(error) or type(error).__name__}"
        if as_owner and _caused_by(error, FENCED):
            return Fenced(f"{what}; another process owns this partition now")
        if isinstance(error, TOO_LARGE):
            return RecordTooLarge(what)
        if _caused_by(error, REFUSED):
            return ConfigError(f"{what}; {self.needs(needs)}")
        if isinstance(error, kafka_errors.UnknownTopicOrPartitionError):
            # The catalog has seen the topic, and aiokafka says this whenever nobody tells it where a topic is.
            return Retryable(f"{what}; check that the broker runs, and the topics with `streammon topics check`")
        return Retryable(f"{what}; check that the broker runs and that `bootstrap` names it")

    def _common(self) -> dict[str, Any]:
        return {
            "bootstrap_servers": self.address,
            "client_id": self.settings.client_id,
            "request_timeout_ms": ms(REQUEST_S),
            "retry_backoff_ms": RETRY_MS,
            **self.security,
        }

    @cached_property
    def security(self) -> dict[str, Any]:
        """Made once: certificates are files to parse, and a token is good for all clients."""
        return aiokafka_options(self.settings)


@lru_cache(maxsize=1024)
def _hash(key: bytes) -> int:
    return int(murmur2(key)) & 0x7FFFFFFF


def _partition(key: bytes | None, every: Sequence[int], available: Sequence[int]) -> int:
    """As Kafka's own clients choose. Keys repeat, and the hash, in Python, is a fifth of the cost of a record."""
    if key is None:
        return random.choice(available or every)
    return every[_hash(key) % len(every)]


def ms(seconds: float) -> int:
    return round(seconds * 1000)


def _caused_by(error: BaseException | None, kinds: tuple[type[BaseException], ...]) -> bool:
    return error is not None and (isinstance(error, kinds) or _caused_by(error.__cause__, kinds))


def check_address(address: str) -> None:
    for each in address.split(","):
        host, colon, port = each.strip().rpartition(":")
        if not (host and colon and port.isdecimal() and 0 < int(port) < 65536):
            raise ConfigError(f"bootstrap = {address!r}: expected HOST:PORT, several separated by commas")


def quieten(level: str) -> None:
    """aiokafka logs as errors what it retries by itself; what it cannot retry, it raises, and we explain."""
    logging.getLogger("aiokafka").setLevel(logging.DEBUG if level == "debug" else logging.CRITICAL)
