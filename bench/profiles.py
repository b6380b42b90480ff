"""How many predictions with 20 features one core makes profiles of: ``python -m bench profiles``.

The task alone, in memory: decoding, watermark, counting in bins and sketches, publishing. Numbers, and a category in
five; single JSON events, and batches as our SDK sends them.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from streammon.config import WindowSettings
from streammon.events import EventType
from streammon.models import Models
from streammon.wire import Density, encode
from streammon_processors.contract import Stored
from streammon_processors.profiles import ProfileTask

EVENTS = 40_000
START_S = 1_700_000_000.0
CASES = ((1, 20), (1, 100), (50, 20))
"""Models, and features of each."""

T = TypeVar("T")


def main() -> None:
    print(f"{'models':>6} {'features':>8} {'density':<12} {'events / CPU s':>16} {'bytes a target':>15}")
    for models, features in CASES:
        for density, of in ((Density.OBJECT, 1), (Density.PACKED, 200)):
            rate, size = measure(models, features, density, of)
            print(f"{models:>6} {features:>8} {density.value:<12} {rate:>16,.0f} {size:>15,.0f}")


def measure(models: int, features: int, density: Density, of: int) -> tuple[float, float]:
    """Events a CPU second, and the bytes that a target takes in a full profile."""
    count = EVENTS * 20 // features
    events = list(predictions(models, features, count))
    values = [encode(EventType.INFERENCE, list(some), density)[0] for some in batched(events, of)]
    records = [Stored(value, at, round((START_S + 1.0) * 1000)) for at, value in enumerate(values)]
    task, settings = ProfileTask(0, WindowSettings(max_future_s=1e9), Models()), 4000
    written = []
    began = time.process_time()
    for some in batched(records, settings):
        written += task.process("inference", some)
    took_s = time.process_time() - began
    profiles = [len(each.value or b"") for each in written if each.topic == "profiles"]
    return count / took_s, max(profiles) / (features + 2)


def batched(all_: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (all_[at : at + size] for at in range(0, len(all_), size))


def predictions(models: int, features: int, count: int) -> Iterator[dict[str, Any]]:
    rng = random.Random(1)
    for number in range(count):
        yield {
            "time_unix_s": START_S + number * 1200 / count,
            "service": "shop",
            "model": f"model-{rng.randrange(models)}",
            "model_version": "7",
            "duration_s": 0.1,
            "status": "ok",
            "prediction": rng.random(),
            "confidence": rng.random(),
            "features": {
                f"feature_{i}": rng.gauss(i, 1) if i % 5 else f"category {rng.randrange(20)}" for i in range(features)
            },
        }


if __name__ == "__main__":
    main()
