"""Online change detectors: whether the measurements of a model still come as they did.

`detector` wraps those of River, `preparation` makes what they may be given, `budget` their thresholds, and `task` is
the processor.
"""

from __future__ import annotations
