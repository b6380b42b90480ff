"""Ids derived from the result itself, so that writing a result again is recognised by every destination."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from hashlib import blake2b
from typing import Any

import msgspec

from streammon.results import Alert, Window


def window_id(window: Window) -> str:
    """The same for every delivery of this window record and different for every other: 22 characters.

    The partition is part of it: what has no series of its own (``series`` empty, or `OTHER`) is once in each.
    """
    series = sorted(window.series.items())
    shape = () if window.kind == "tumbling" else (window.kind, window.every_s, window.gap_s)
    return _digest(
        window.source,
        window.partition,
        series,
        window.start_unix_s,
        window.size_s,
        window.part,
        window.revision,
        *shape,
    )


def transition_id(alert: Alert) -> str:
    """The same for every delivery of this transition of this alert: 22 characters."""
    return _digest(alert.id, alert.transition)


def _digest(*parts: Any) -> str:
    """128 bits in URL-safe base64, the form that Elasticsearch stores in the fewest bytes."""
    return urlsafe_b64encode(blake2b(msgspec.json.encode(parts), digest_size=16).digest())[:22].decode()
