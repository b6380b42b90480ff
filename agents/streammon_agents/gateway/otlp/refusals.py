"""How a refusal is told: a ``google.rpc.Status``, by HTTP as the body and by gRPC beside the status."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration
from google.rpc.code_pb2 import INVALID_ARGUMENT, RESOURCE_EXHAUSTED, UNAVAILABLE
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from streammon.errors import Backpressure, Reason, Rejected, Retryable

UNAVAILABLE_S = 1.0
"""When to come back where nobody can say."""


def status_of(error: Rejected | Retryable) -> Status:
    """Without a `RetryInfo` a sender must not come back."""
    if isinstance(error, Rejected):
        too_large = error.reason is Reason.TOO_LARGE
        return Status(code=RESOURCE_EXHAUSTED if too_large else INVALID_ARGUMENT, message=error.detail)
    full = isinstance(error, Backpressure)
    status = Status(code=RESOURCE_EXHAUSTED if full else UNAVAILABLE, message=str(error))
    delay = Duration()
    delay.FromNanoseconds(int(retry_after_s(error) * 1e9))
    status.details.add().Pack(RetryInfo(retry_delay=delay))
    return status


def retry_after_s(error: Retryable) -> float:
    """When to come back."""
    return error.retry_after_s if isinstance(error, Backpressure) else UNAVAILABLE_S
