"""What the two hand-written loops share: ten-second windows of one partition, in plain dictionaries and lists."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

import msgspec
import numpy as np

WINDOW_S, LATENESS_S = 10, 5


class Event(msgspec.Struct, gc=False):
    time_unix_s: float
    model: str
    endpoint: str
    duration_s: float
    status: str


decode = msgspec.json.Decoder(Event).decode
encode = msgspec.json.Encoder().encode


class Series:
    def __init__(self) -> None:
        self.durations: list[float] = []
        self.errors = 0


class Windows:
    """The open windows of one partition; nothing of it survives the process."""

    def __init__(self) -> None:
        self._open: defaultdict[float, defaultdict[tuple[str, str], Series]] = defaultdict(lambda: defaultdict(Series))
        self._closed_until = 0.0
        self._newest = 0.0

    def add(self, values: Iterable[bytes]) -> Iterator[bytes]:
        """Count some events, then give the rows of the windows that they close."""
        for value in values:
            event = decode(value)
            time = event.time_unix_s
            start = time // WINDOW_S * WINDOW_S
            if start < self._closed_until:
                continue
            series = self._open[start][event.model, event.endpoint]
            series.durations.append(event.duration_s)
            if event.status == "error":
                series.errors += 1
            if time > self._newest:  # noqa: PLR1730 - a call of max for each event is what one leaves out here
                self._newest = time
        return self._close((self._newest - LATENESS_S) // WINDOW_S * WINDOW_S)

    def _close(self, until: float) -> Iterator[bytes]:
        self._closed_until = until
        for start in sorted(start for start in self._open if start < until):
            for (model, endpoint), series in self._open.pop(start).items():
                yield encode(row(model, endpoint, start, series))


def row(model: str, endpoint: str, start: float, series: Series) -> dict[str, object]:
    durations = np.sort(series.durations)
    count = len(durations)
    p50, p90, p99 = durations[[int(q * (count - 1)) for q in (0.5, 0.9, 0.99)]].tolist()
    return {
        "model": model,
        "endpoint": endpoint,
        "start_unix_s": start,
        "count": count,
        "error_count": series.errors,
        "error_rate": series.errors / count,
        "throughput_per_s": count / WINDOW_S,
        "p50": p50,
        "p90": p90,
        "p99": p99,
    }
