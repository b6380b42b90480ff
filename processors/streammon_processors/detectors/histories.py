"""Histories of a model's measurements, to calibrate detectors on: from the log, or from a CSV file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from streammon.broker import Record
from streammon.errors import ConfigError, Rejected
from streammon.models import QUALITIES
from streammon.results import Quality
from streammon.topics import ROLLUP_HEADER
from streammon.wire import read_message
from streammon_processors.detectors.calibration import History
from streammon_processors.detectors.steps import MEASURED, Step, decoder
from streammon_processors.detectors.watching import Measured, Version
from streammon_processors.rules.backtest.numbers_csv import csv_panel
from streammon_processors.shapes import tumbling

MAX_STEPS: Final = 200_000
"""Of all versions of a model together: two years of one."""


class Gathering:
    """Takes in records of `windows` and `quality`, and then says what was measured of one model."""

    def __init__(self, service: str, model: str, step_s: float, from_unix_s: float, to_unix_s: float) -> None:
        self._model = (service, model)
        self._step_s, self._from, self._to = step_s, from_unix_s, to_unix_s
        self._name = tumbling(step_s).name.encode()
        self._windows = decoder(MEASURED).decode
        self._qualities = msgspec.json.Decoder(Quality).decode
        self._steps: dict[float, Step] = {}
        self._labelled: dict[Version, dict[float, Quality]] = {}

    def take(self, topic: str, record: Record) -> None:
        """What is not to be read is in the dead letters already."""
        try:
            if topic == "quality":
                self._take_quality(read_message(self._qualities, record.value or b""))
            elif any(name == ROLLUP_HEADER and value == self._name for name, value in record.headers):
                self._take_window(read_message(self._windows, record.value or b""))
        except Rejected:
            return

    def _take_window(self, window: Any) -> None:
        version = window.version
        if window.source == "inference" and version and version[:2] == self._model and self._is_about(window):
            step = self._steps.setdefault(window.start_unix_s, Step(window.start_unix_s, window.end_unix_s, 0))
            step.add(version, window, sorted(MEASURED))
        _refuse_too_many(len(self._steps))

    def _take_quality(self, quality: Quality) -> None:
        ours = (quality.service, quality.model) == self._model and quality.by == "label" and not quality.slice
        if ours and quality.labelled and self._is_about(quality):
            version = Version(*self._model, quality.model_version or "")
            self._labelled.setdefault(version, {})[quality.start_unix_s] = quality
        _refuse_too_many(sum(map(len, self._labelled.values())))

    def _is_about(self, result: Any) -> bool:
        return bool(self._from <= result.start_unix_s < self._to)

    def histories(self) -> list[History]:
        """By target, that of the version of which most is known."""
        found: dict[str, History] = {}
        for name, history in (*self._of_windows(), *self._of_labels()):
            if name not in found or history.days > found[name].days:
                found[name] = history
        return [found[name] for name in sorted(found)]

    def _of_windows(self) -> Iterator[tuple[str, History]]:
        rows: dict[tuple[Version, str], dict[float, Measured]] = {}
        for start, step in sorted(self._steps.items()):
            for version, values in step.values():
                for target, measured in values.items():
                    rows.setdefault((version, target), {})[start] = measured
        for (_, target), measures in rows.items():
            yield target, _history(target, measures, self._step_s)

    def _of_labels(self) -> Iterator[tuple[str, History]]:
        for qualities in self._labelled.values():
            size_s = min(each.size_s for each in qualities.values())
            for target in QUALITIES:
                known = {start: getattr(each, target) for start, each in sorted(qualities.items())}
                there = {start: value for start, value in known.items() if value is not None}
                measures = {start: Measured(value, qualities[start].labelled) for start, value in there.items()}
                if measures:
                    yield target, _history(target, measures, size_s)


def _history(target: str, measures: Mapping[float, Measured], step_s: float) -> History:
    starts = np.array(list(measures))
    values = np.array([each.value for each in measures.values()])
    return History(target, starts, values, np.array([each.events for each in measures.values()]), step_s)


def _refuse_too_many(steps: int) -> None:
    if steps > MAX_STEPS:
        raise ConfigError(f"there are more than {MAX_STEPS:,} steps in that time; take a shorter one")


def history_of_csv(file: Path, target: str) -> History:
    """What is in the columns ``timestamp``, ``value`` and, if it is there, ``count``: events of each value.

    Raises:
        ConfigError: naming the file, the line, and what is wrong.
    """
    panel = csv_panel(file, source="resource", field="gauges.value", labels={})
    if len(panel.series) != 1:
        series = " ".join(f"{name}={value}" for name, value in panel.series[0].items())
        raise ConfigError(f"{file} holds {len(panel.series)} series, such as {series}; leave one of them")
    numbers = panel.numbers
    values = numbers.get("gauges.value.mean", numbers.get("gauges.value"))
    if values is None or not np.isfinite(values).any():
        raise ConfigError(f"{file} has no number in the column `value`")
    counts = numbers.get("count")
    known = np.ones(len(panel.starts)) if counts is None else counts[:, 0]
    return History(target, panel.starts, values[:, 0], np.nan_to_num(known, nan=0.0), panel.size_s)
