"""All benchmarks, one after the other: ``python -m bench``, or ``python -m bench pipeline sketch`` for some."""

from __future__ import annotations

import runpy
import sys

ALL = ("pipeline", "latency", "sketch", "sdk_overhead", "host_agent")

for name in sys.argv[1:] or ALL:
    print(f"\n== {name}", flush=True)
    runpy.run_module(f"bench.{name}", run_name="__main__")
