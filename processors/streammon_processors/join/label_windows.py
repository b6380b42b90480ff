"""What became of labels, by the window of broker time in which they came: how many found nothing, or came again.

A label that waits is counted in its window, and no longer once it is matched. When no prediction that could still come
would be near enough, the labels that are left are unmatched, and that is told, once.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import floor
from typing import NamedTuple

from msgspec import Struct

from streammon.results import OTHER
from streammon_processors.join.models import KnownModels, Model

MAX_WINDOWS, MAX_NAMES_BYTES = 5000, 256 * 1024
"""Remembered at once, and the bytes of the names of their models. Beyond, a label is counted in the newest window of
its model, or, of models that have none, in one for all."""


class LabelWindow(Struct, array_like=True):
    """The labels of one model that came in one window."""

    service: str
    model: str
    start_s: float
    size_s: float
    horizon_ms: int
    last_ms: int = 0
    """When the last of them came that waited."""
    waiting: int = 0
    relabelled: int = 0

    @property
    def end_ms(self) -> float:
        return (self.start_s + self.size_s) * 1000

    def is_final(self, predictions_ms: int) -> bool:
        """Nothing that is still to come matches any of its labels."""
        return not self.waiting or predictions_ms > self.last_ms + self.horizon_ms


class Told(NamedTuple):
    """What is told of the labels of a window."""

    service: str
    model: str
    start_s: float
    size_s: float
    unmatched: int = 0
    relabelled: int = 0


Key = tuple[str, str, float]


class LabelWindows:
    """Those in which anything is still to be told."""

    def __init__(self, models: KnownModels) -> None:
        self._models = models
        self._windows: dict[Key, LabelWindow] = {}
        self._starts: dict[tuple[str, str], dict[float, None]] = {}  # by model, the newest last
        self._names_bytes = 0

    def wait(self, model: Model, came_ms: int) -> float:
        """A label waits; the start of the window that it is counted in."""
        window = self._of(model, came_ms)
        window.waiting += 1
        window.last_ms = max(window.last_ms, came_ms)
        return window.start_s

    def matched(self, model: Model, start_s: float) -> None:
        """One that waited has found its prediction."""
        own, others = (model.service, model.model, start_s), (OTHER, OTHER, start_s)
        window = self._windows.get(own) or self._windows.get(others)
        if window is not None:
            window.waiting -= 1

    def relabelled(self, model: Model, came_ms: int, count: int) -> None:
        self._of(model, came_ms).relabelled += count

    def _of(self, model: Model, came_ms: int) -> LabelWindow:
        start_s = floor(came_ms / 1000 / model.window_s) * model.window_s
        key = (model.service, model.model, start_s)
        if key not in self._windows and self._is_full(key):
            newest = self._newest(model.service, model.model) or self._newest(OTHER, OTHER)
            key = newest or (OTHER, OTHER, start_s)
        if key not in self._windows:
            self._begin(key, LabelWindow(*key, model.window_s, model.horizon_ms))
        return self._windows[key]

    def _is_full(self, key: Key) -> bool:
        return len(self._windows) >= MAX_WINDOWS or self._names_bytes + _size(key) > MAX_NAMES_BYTES

    def _newest(self, service: str, model: str) -> Key | None:
        starts = self._starts.get((service, model))
        return (service, model, next(reversed(starts))) if starts else None

    def _begin(self, key: Key, window: LabelWindow) -> None:
        self._windows[key] = window
        self._starts.setdefault(key[:2], {})[key[2]] = None
        self._names_bytes += _size(key)

    def _end(self, key: Key) -> None:
        del self._windows[key]
        starts = self._starts[key[:2]]
        del starts[key[2]]
        if not starts:
            del self._starts[key[:2]]
        self._names_bytes -= _size(key)

    def due(self, predictions_ms: int, labels_ms: int) -> Iterator[Told]:
        """What can be told now that both topics are read as far as these broker times, in order; each thing once.

        One by one, because they are known at different times: together, they would depend on which topic is read first.
        """
        ended = (each for each in self._windows.items() if labels_ms >= each[1].end_ms)
        for key in sorted(key for key, window in ended if window.relabelled or window.is_final(predictions_ms)):
            window = self._windows[key]
            if window.relabelled:
                yield Told(*key, window.size_s, relabelled=window.relabelled)
                window.relabelled = 0
            if window.is_final(predictions_ms):
                if window.waiting:
                    yield Told(*key, window.size_s, unmatched=window.waiting)
                self._end(key)

    def wait_for_labels(self, predictions_ms: int, labels_ms: int) -> bool:
        """Whether something would be told if time passed in the topic of labels."""
        return any(
            labels_ms < window.end_ms and (window.relabelled or predictions_ms > window.last_ms + window.horizon_ms)
            for window in self._windows.values()
        )

    def wait_for_predictions(self) -> bool:
        return any(window.waiting for window in self._windows.values())

    @property
    def memory(self) -> list[LabelWindow]:
        return list(self._windows.values())

    def restore(self, memory: list[LabelWindow]) -> None:
        for each in memory:
            self._begin((each.service, each.model, each.start_s), each)


def _size(key: Key) -> int:
    """The bytes of the names."""
    return sum(len(name.encode(errors="surrogatepass")) for name in key[:2])
