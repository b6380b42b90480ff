"""Elasticsearch: results as documents of data streams, see `streammon_sinks.es_documents`.

    sink = ElasticsearchSink.connect(settings.elasticsearch)
    await deliver(broker, "sink-elasticsearch", ["windows", "alerts", "drift"], sink, stop=stop)

What it promises:

* Documents are *created* under ids derived from the result, so that one which is there already (409) is done.
* A document that Elasticsearch refuses is reported with its reason; the rest of the request is kept. Trouble
  that is not the document's fault (429, 5xx, no permission, timeouts, nobody there) is `Retryable`, and only
  what is not yet written is tried again.
* One request holds at most ``bulk_documents`` and about ``bulk_bytes``; one that is too large all the same
  (413) is halved.
* The templates are put before the first document, and need no permission beyond that. What the cluster
  cannot do is left out, and said.

What it cannot do: recognise a document that was written before the data stream rolled over, because ids are
unique within one backing index. A redelivery comes within seconds; a replay of an old topic may then write
twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from itertools import accumulate
from typing import Any, Final, NamedTuple, Self

import msgspec
from elasticsearch import ApiError, AsyncElasticsearch, TransportError
from msgspec import Struct

from streammon.config import ElasticsearchSettings
from streammon.errors import ConfigError, Retryable
from streammon.results import Alert, Drift, Loop, Quality, Result, Slo, Window
from streammon.telemetry import log
from streammon_sinks.decoding import Decoded, decode_all
from streammon_sinks.delivery import Item, PartlyWritten, Refused
from streammon_sinks.es_documents import (
    DRIFT,
    LOOPS,
    QUALITY,
    SLOS,
    STREAMS,
    Json,
    alert_document,
    budget_document,
    cluster_settings,
    constants,
    drift_document,
    index_template,
    loop_document,
    quality_document,
    stream_of,
    window_document,
)
from streammon_sinks.ids import budget_record_id, drift_record_id, quality_record_id, transition_id, window_id

_encode = msgspec.json.encode

TOO_LARGE: Final = 413
HINTS: Final = {401: "; check elasticsearch.api_key", 403: "; check what elasticsearch.api_key may do"}


class Verdict(Enum):
    """What became of one document."""

    WRITTEN = "written"
    REFUSED = "refused"
    AGAIN = "again"


_DONE: Final = {200, 201, 409}
_DOCUMENTS_FAULT: Final = {400, TOO_LARGE, 422}


def judge(status: int, error_type: str = "") -> Verdict:
    """The verdict on one item of a bulk answer.

    Refused is only what is wrong with the document itself. A `validation_exception` has status 400 as well,
    and means that the cluster may not open another shard.
    """
    if status in _DONE:
        return Verdict.WRITTEN
    if status in _DOCUMENTS_FAULT and error_type != "validation_exception":
        return Verdict.REFUSED
    return Verdict.AGAIN


class Answer(NamedTuple):
    """The verdict on one document, and Elasticsearch's words."""

    verdict: Verdict
    reason: str = ""


class BulkError(Struct):
    """Why one item of a bulk request was not written."""

    type: str
    reason: str | None = None


class BulkItem(Struct):
    """What Elasticsearch says of one item."""

    status: int
    error: BulkError | None = None


class BulkCreated(Struct):
    """It is named after its action."""

    create: BulkItem


class BulkReply(Struct):
    """The reply to a bulk request, one item for each of the request."""

    items: list[BulkCreated]


class Operation(NamedTuple):
    """One document on its way: the lines of the bulk request, and the item it came from."""

    item: Item
    lines: bytes


def open_client(settings: ElasticsearchSettings) -> AsyncElasticsearch:
    """A client that retries nothing by itself: what is tried again, and when, is decided by the delivery.

    Raises `ConfigError` if the URL is not one.
    """
    try:
        return AsyncElasticsearch(
            settings.url,
            api_key=settings.api_key.get_secret_value() if settings.api_key else None,
            request_timeout=settings.request_timeout_s,
            max_retries=0,
        )
    except ValueError as error:
        raise ConfigError(f"elasticsearch.url: {error}") from None


async def setup(client: AsyncElasticsearch, settings: ElasticsearchSettings) -> list[str]:
    """Put the index templates, in what form this cluster can take them; what was made, and what was left out.

    Raises `Retryable`, naming the address, for whatever goes wrong.
    """
    with _trouble_named(client):
        done = []
        for stream in STREAMS:
            done += await _put_template(client, stream, settings.namespace)
        return done


async def _put_template(client: AsyncElasticsearch, stream: str, namespace: str) -> list[str]:
    template, left_out = index_template(stream), []
    if await _accepts(client, constants(stream)):
        template["template"]["mappings"]["properties"] |= constants(stream)
    else:
        left_out.append(f"{stream}: left out data_stream.*, this cluster has no constant_keyword")
    if not await client.cluster.exists_component_template(name=cluster_settings(stream)):
        missing = cluster_settings(stream)
        left_out.append(f"{stream}: documents stay until deleted, this cluster has no {missing}")
    await client.indices.put_index_template(name=stream, body=template)
    return [f"{stream}-{namespace}: index template {stream}", *left_out]


async def _accepts(client: AsyncElasticsearch, properties: Json) -> bool:
    """Whether the cluster would take a template with these fields; nothing is changed."""
    trial = {"index_patterns": ["streammon-trial-*"], "template": {"mappings": {"properties": properties}}}
    answer = await client.options(ignore_status=400).indices.simulate_template(body=trial)
    return answer.meta.status != 400


class ElasticsearchSink:
    """Results as documents. Owns its client."""

    def __init__(self, client: AsyncElasticsearch, settings: ElasticsearchSettings) -> None:
        self._client, self._settings = client, settings
        self._ready = False

    @classmethod
    def connect(cls, settings: ElasticsearchSettings) -> Self:
        """Speaks to the cluster only at the first `write`. Raises `ConfigError` if the URL is not one."""
        return cls(open_client(settings), settings)

    async def write(self, records: Sequence[Item]) -> list[Refused]:
        await self._set_up()
        decoded, refused = decode_all(records)
        left = [self._operation(each) for each in decoded if each.result is not None]
        while left:
            bulk = left[: self._bulk_length(left)]
            try:
                answers = await self._send(bulk)
            except Retryable as error:
                raise PartlyWritten(str(error), _items(left), refused) from error
            left = left[len(bulk) :]
            judged = list(zip(bulk, answers, strict=True))
            refused += [Refused(each.item, said.reason) for each, said in judged if said.verdict is Verdict.REFUSED]
            if again := [(each, said) for each, said in judged if said.verdict is Verdict.AGAIN]:
                self._ready = False  # the template may be gone: a cluster made anew, or a person tidying up
                problem = f"{_address(self._client)} put off {len(again)} documents: {again[0][1].reason}"
                raise PartlyWritten(problem, _items([each for each, _ in again] + left), refused)
        return refused

    async def close(self) -> None:
        await self._client.close()

    async def _set_up(self) -> None:
        if not self._ready:
            for line in await setup(self._client, self._settings):
                log.info("elasticsearch", setup=line)
            self._ready = True

    def _operation(self, decoded: Decoded) -> Operation:
        document_id, stream, document = _described(decoded.result)
        action = {"create": {"_index": f"{stream}-{self._settings.namespace}", "_id": document_id}}
        return Operation(decoded.item, b"%b\n%b\n" % (_encode(action), _encode(document)))

    def _bulk_length(self, operations: Sequence[Operation]) -> int:
        """How many of them make the next request: one at least."""
        sizes = accumulate(len(each.lines) for each in operations[: self._settings.bulk_documents])
        return max(1, sum(1 for size in sizes if size <= self._settings.bulk_bytes))

    async def _send(self, bulk: Sequence[Operation]) -> list[Answer]:
        """The answer to each operation. Raises `Retryable` if it is not known."""
        try:
            with _trouble_named(self._client):
                response = await self._client.bulk(
                    operations=[each.lines for each in bulk],  # type: ignore[misc]  # bytes are sent as they are
                    filter_path=["items.*.status", "items.*.error.type", "items.*.error.reason"],
                    require_data_stream=True,
                )
        except TooLargeError as error:
            if len(bulk) == 1:
                return [Answer(Verdict.REFUSED, str(error))]
            middle = len(bulk) // 2
            return await self._send(bulk[:middle]) + await self._send(bulk[middle:])
        return _answers(response.body, len(bulk), _address(self._client))


def _described(result: Result | None) -> tuple[str, str, Json]:
    """The id, the data stream and the document of a result."""
    match result:
        case Window():
            return window_id(result), stream_of(result), window_document(result)
        case Alert():
            return transition_id(result), stream_of(result), alert_document(result)
        case Slo():
            return budget_record_id(result), SLOS, budget_document(result)
        case Drift():
            return drift_record_id(result), DRIFT, drift_document(result)
        case Quality():
            return quality_record_id(result), QUALITY, quality_document(result)
        case Loop():
            return transition_id(result), LOOPS, loop_document(result)
    raise TypeError(f"no documents are made of {type(result).__name__}")


def _answers(body: Any, expected: int, address: str) -> list[Answer]:
    """Raises `Retryable` if this is not the reply to ``expected`` operations: something in between made it up."""
    try:
        items = [each.create for each in msgspec.convert(body, BulkReply).items]
    except msgspec.ValidationError as error:
        raise Retryable(f"{address} sent no bulk reply: {error}") from None
    if len(items) != expected:
        raise Retryable(f"{address} answered {len(items)} of {expected} operations")
    return [_answer(each) for each in items]


def _answer(item: BulkItem) -> Answer:
    if item.error is None:
        return Answer(judge(item.status))
    return Answer(judge(item.status, item.error.type), f"{item.error.type}: {item.error.reason}")


def _items(operations: Sequence[Operation]) -> list[Item]:
    return [each.item for each in operations]


def _address(client: AsyncElasticsearch) -> str:
    """Where it is, without a password that may be in the URL."""
    return f"Elasticsearch at {', '.join(node.base_url for node in client.transport.node_pool.all())}"


class TooLargeError(Retryable):
    """Elasticsearch takes no request of this size."""


@contextmanager
def _trouble_named(client: AsyncElasticsearch) -> Iterator[None]:
    """The client's errors as `Retryable`, with the address and what to look at."""
    try:
        yield
    except ApiError as error:
        kind = TooLargeError if error.meta.status == TOO_LARGE else Retryable
        raise kind(f"{_address(client)} answered {error}{HINTS.get(error.meta.status, '')}"[:500]) from None
    except TransportError as error:
        raise Retryable(f"{_address(client)} cannot be used: {error}; check elasticsearch.url"[:500]) from None
