"""Every error streammon raises on purpose, and every reason an event is refused.

::

    StreammonError
    ├── ConfigError        the person must change something; exit status 2
    ├── Rejected           the input is at fault: dead letter (or HTTP 400), and go on
    │   └── RecordTooLarge
    ├── Retryable          the other side is at fault and may recover: wait, then try again
    │   └── Backpressure   it said by itself how long
    └── Fatal              going on would lose or repeat something: stop the process
        └── Fenced         another process owns this work now

The three branches are the three things a caller can do: *dead-letter*, *retry*, *stop*. Reasons are an enum
because they become metric labels and headers of dead letters.
"""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Why an input was not counted. The values are labels: add, never rename."""

    INVALID_JSON = "invalid_json"
    INVALID_UNICODE = "invalid_unicode"
    INVALID_EVENT = "invalid_event"  # a required field is missing or has the wrong type
    WRONG_TYPE = "wrong_type"  # the event's `type` does not belong on this topic
    UNKNOWN_SCHEMA = "unknown_schema"
    UNEQUAL_LENGTHS = "unequal_lengths"  # a column's length differs from `count`
    BAD_INDEX = "bad_index"  # a dictionary index points outside its dictionary
    BAD_PACKING = "bad_packing"  # a packed column that cannot be unpacked
    TOO_LARGE = "too_large"
    NON_FINITE = "non_finite"  # NaN or an infinity in a numeric field
    NEGATIVE = "negative"  # a negative duration, count or amount
    BAD_TIME = "bad_time"  # not a time in seconds since 1970
    FUTURE = "future"  # more than max_future_s ahead of the broker's time
    TOO_LATE = "too_late"  # more than max_late_s behind the watermark; of a result: older than another of its series
    REFUSED = "refused"  # the destination of a sink refused the document


class StreammonError(Exception):
    """Base of all errors that streammon raises on purpose."""


class ConfigError(StreammonError):
    """Configuration, arguments or files that a person has to change; names the field and the value."""


class Rejected(StreammonError):  # noqa: N818 - a verdict on an input, not a failure of ours
    """An input that can never be accepted as it is.

    ``reason`` is for machines, ``detail`` for people: it says which part of the input and what is wrong.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class RecordTooLarge(Rejected):
    """A record over the broker's limit; sending it again cannot help."""

    def __init__(self, detail: str) -> None:
        super().__init__(Reason.TOO_LARGE, detail)


class Retryable(StreammonError):  # noqa: N818 - names what to do about it
    """The other side is unreachable or busy; the same call may succeed later."""


class Backpressure(Retryable):
    """The other side is up but full. ``retry_after_s``: when to come back, in seconds."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Fatal(StreammonError):  # noqa: N818 - names what to do about it
    """Going on would lose or repeat work: stop, and let the next start recover from the log."""


class Fenced(Fatal):
    """Another process has taken over this partition's transactional id."""
