"""The state of River's detectors as plain values, and back: explicitly, attribute by attribute.

River has no format of its own but pickle. A pickle names classes and calls them when it is read, and its bytes depend
on which objects happen to be shared; here, the state is loaded *into* a detector that was just made from its
description, so nothing in a snapshot decides what is created. What River computes in Rust (the window of ADWIN,
exponential means) gives and takes its state as bytes, whose layout is a matter of River's version: `VERSION` is kept
with every snapshot, and state of another version is not loaded.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from river.__version__ import __version__

VERSION: Final[str] = __version__
_PLAIN: Final = (bool, int, float, str, type(None))


def dump(value: Any) -> Any:
    """What is in an object, in msgpack's types."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, deque):
        return [dump(each) for each in value]
    if isinstance(value, random.Random):
        version, numbers, gauss = value.getstate()
        return [version, list(numbers), gauss]
    if hasattr(value, "__dict__"):
        return {name: dump(each) for name, each in vars(value).items() if not callable(each)}
    state: bytes = value.__getstate__()
    return state


def load(into: Any, state: Mapping[str, Any]) -> None:
    """Give an object the attributes that `dump` found in one of its kind."""
    for name, value in state.items():
        setattr(into, name, _loaded(getattr(into, name), value))


def _loaded(now: Any, value: Any) -> Any:
    """The value of an attribute, made from what is there now and what was kept."""
    if isinstance(now, deque):
        return deque(value, maxlen=now.maxlen)
    if isinstance(now, random.Random):
        now.setstate((value[0], tuple(value[1]), value[2]))
        return now
    if isinstance(value, bytes):
        now.__setstate__(value)
        return now
    if isinstance(value, dict):
        load(now, value)
        return now
    return value
