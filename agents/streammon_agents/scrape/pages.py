"""What a page of metrics says, whatever format it came in: types by family, and samples of series.

The parsers (`text`, `protobuf`) are pure and bounded. As in Prometheus a page is taken whole or not at all, because a
counter that is missing from half a page would look like one that was reset.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from streammon_agents.scrape.native import Native


class Fault(StrEnum):
    """Why a page was refused. The values are labels: add, never rename."""

    MALFORMED = "malformed_page"
    NOT_UTF8 = "not_utf8"
    TRUNCATED = "truncated_page"  # OpenMetrics without its `# EOF`, a cut message
    TOO_MANY_SAMPLES = "too_many_samples"
    TOO_MANY_LABELS = "too_many_labels"
    LABEL_TOO_LONG = "label_too_long"


class PageError(Exception):
    """A page that is not taken. ``fault`` is for machines; the text says where on the page and what is wrong there."""

    def __init__(self, fault: Fault, detail: str) -> None:
        super().__init__(detail)
        self.fault = fault


class Type(StrEnum):
    """The types of families in all formats. Who says nothing is ``unknown``."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
    GAUGEHISTOGRAM = "gaugehistogram"
    SUMMARY = "summary"
    INFO = "info"
    STATESET = "stateset"
    UNKNOWN = "unknown"


class Limits(NamedTuple):
    """What one page may hold at most; 0: no limit. Lengths are those of the text as UTF-8, in bytes."""

    samples: int = 20_000
    labels: int = 64
    label_name_length: int = 512
    label_value_length: int = 4096

    def or_none(self) -> Limits:
        """The same, with numbers that nothing reaches where there is no limit."""
        return Limits(*(limit or sys.maxsize for limit in self))

    def check(self, labels: Mapping[str, str], of: str) -> None:
        """Raises PageError, saying of what, where there are too many labels, or a longer one."""
        if len(labels) > self.labels:
            raise PageError(Fault.TOO_MANY_LABELS, f"{of}: more than {self.labels} labels")
        for name, value in labels.items():
            if _longer(name, self.label_name_length):
                raise PageError(
                    Fault.LABEL_TOO_LONG, f"{of}: the name of a label has over {self.label_name_length} bytes"
                )
            if _longer(value, self.label_value_length):
                raise PageError(
                    Fault.LABEL_TOO_LONG, f"{of}: the label {name} has over {self.label_value_length} bytes"
                )


def _longer(text: str, most: int) -> bool:
    return 4 * len(text) > most and len(text.encode()) > most


LIMITS: Final = Limits()
NO_LIMITS: Final = Limits(0, 0, 0, 0)


class Series:
    """A name and its labels, made once for each series of a target: equal only to itself, so it is a cheap key."""

    __slots__ = ("labels", "name")

    def __init__(self, name: str, labels: Mapping[str, str]) -> None:
        self.name = name
        self.labels = labels

    def __repr__(self) -> str:
        return f"Series({self.name!r}, {dict(self.labels)!r})"


class Sample(NamedTuple):
    """One value. ``time_s``: the Unix time that the page gives it, if any. NaN and infinities come as they are.

    Only the format with native histograms brings those; all else is a number.
    """

    series: Series
    value: float | Native
    time_s: float | None = None


@dataclass(frozen=True)
class Page:
    """``types`` by the names that the page declares; ``known`` is what the next parse of the same target wants."""

    types: Mapping[str, Type]
    samples: list[Sample]
    known: dict[bytes, Series]
