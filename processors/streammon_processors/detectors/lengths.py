"""How long a step is: of what detectors are given one value."""

from __future__ import annotations

from math import ceil
from typing import Final

STEP_S: Final = 300.0


def step_s(base_s: float) -> float:
    """Five minutes, or the next longer time that base windows fill."""
    return ceil(STEP_S / base_s - 1e-9) * base_s
