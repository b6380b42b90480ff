"""What an alert itself tells a diagnosis: the window that tripped its rule, and the time to look around."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Struct

from streammon.results import Alert

HISTORY: Final = 30
LEAST_S: Final = 1800.0
MOST_S: Final = 3 * 3600.0


class Tripping(Struct, frozen=True):
    """Of the window that tripped a rule, what is looked at here. What is not said there is not known."""

    source: str | None = None
    series: dict[str, str] = {}
    size_s: float | None = None
    kind: str = "tumbling"


def window_of(alert: Alert) -> dict[str, Any]:
    """The whole window, as it travels."""
    window = alert.evidence.get("window")
    return window if isinstance(window, dict) else {}


def tripping(alert: Alert) -> Tripping:
    """Nothing is known of a window that is none: `alerts` is a topic, and others can write there."""
    try:
        return msgspec.convert(window_of(alert), Tripping)
    except msgspec.ValidationError:
        return Tripping()


class Fired(NamedTuple):
    """An alert that has just fired, and when the log took its record, in Unix seconds."""

    alert: Alert
    taken_unix_s: float

    @property
    def lookback_s(self) -> float:
        return lookback_s(self.alert)

    @property
    def from_unix_s(self) -> float:
        """Where to begin by the clock of the log: a record is about as old there as its alert is."""
        return self.taken_unix_s - (self.alert.updated_unix_s - began_unix_s(self.alert)) - self.lookback_s

    @property
    def until_unix_s(self) -> float:
        """Where to end, likewise."""
        return self.taken_unix_s - (self.alert.updated_unix_s - ends_unix_s(self.alert))


def lookback_s(alert: Alert) -> float:
    """How long before its beginning an alert is looked at, and how long after it at most."""
    return min(max(LEAST_S, HISTORY * (tripping(alert).size_s or 0.0)), MOST_S)


def began_unix_s(alert: Alert) -> float:
    """The moment that is explained: when the breach began.

    Long after that it is now: of an alert that got worse, and of a window so long that it began somewhere inside.
    """
    inside = alert.transition > 1 or (tripping(alert).size_s or 0.0) > MOST_S
    long_ago = alert.updated_unix_s - alert.started_unix_s > lookback_s(alert)
    return alert.updated_unix_s if inside and long_ago else alert.started_unix_s


def ends_unix_s(alert: Alert) -> float:
    """What came later is not looked at: what is read is bounded, however long a rule waits before it fires."""
    return min(alert.updated_unix_s, began_unix_s(alert) + lookback_s(alert))
