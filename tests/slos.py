"""Windows of an imaginary service, minute by minute, for tests of service level objectives."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec
import numpy as np

from streammon.results import Completeness, Distribution, Window
from streammon.sketch import Sketch, SketchBag
from streammon.topics import ROLLUP_HEADER
from streammon_processors.contract import Stored
from streammon_processors.rules import ServiceLevel

HOUR_S: Final = 3600.0
START: Final = 1_700_006_400.0
"""A full hour, and the start of a day."""
SHOP: Final = {"service": "shop", "model": "ranker"}


def level(name: str = "shop", objective: float = 0.99, **fields: Any) -> ServiceLevel:
    return msgspec.convert({"name": name, "objective": objective, **fields}, ServiceLevel)


def slow(name: str = "slow", objective: float = 0.99, under: float = 0.3, **fields: Any) -> ServiceLevel:
    return level(name, objective, indicator={"latency": {"under": under}}, **fields)


def sketch_of(values: Sequence[float]) -> Sketch:
    bag = SketchBag()
    bag.add(np.zeros(len(values), dtype=np.int64), np.asarray(values, dtype=float))
    return bag.summaries((0.5,)).sketch(0)


def distribution(values: Sequence[float]) -> Distribution:
    numbers = {name: float(max(values)) for name in ("sum", "min", "max", "mean", "p50", "p90", "p99")}
    return Distribution(count=len(values), sketch=sketch_of(values), **numbers)


def window(start: float, size_s: float, bad: int, total: int, **fields: Any) -> Window:
    """One that starts ``start`` seconds after `START`."""
    defaults: dict[str, Any] = {
        "source": "inference",
        "part": "main",
        "revision": 0,
        "series": SHOP,
        "partition": 3,
        "of_s": None if size_s <= 20 else 20.0,
        "completeness": Completeness(),
        "error_rate": bad / total if total else None,
    }
    return Window(
        start_unix_s=START + start,
        end_unix_s=START + start + size_s,
        size_s=size_s,
        count=total,
        error_count=bad,
        throughput_per_s=total / size_s,
        **(defaults | fields),
    )


def stored(windows: Iterable[Window]) -> list[Stored]:
    """Their records, rollups with the header that says so."""
    return [_record(each, offset) for offset, each in enumerate(windows)]


def _record(each: Window, offset: int) -> Stored:
    headers = () if each.is_base else ((ROLLUP_HEADER, f"{each.size_s:g}s".encode()),)
    return Stored(msgspec.json.encode(each), offset, round(each.end_unix_s * 1000) + 2000, headers=headers)


Minutes = Sequence[tuple[int, int] | None]
"""Of each minute, how many requests were bad, of how many; None: no window."""


def rollups(minutes: Minutes, size_s: float) -> list[Window]:
    """The windows so long of these minutes."""
    step = round(size_s / 60)
    parts = [[each for each in minutes[at : at + step] if each] for at in range(0, len(minutes), step)]
    sums = [(sum(bad for bad, _ in part), sum(total for _, total in part)) if part else None for part in parts]
    return [window(size_s * number, size_s, *each) for number, each in enumerate(sums) if each]
