"""All benchmarks, one after the other: ``python -m bench``, or ``python -m bench pipeline sketch`` for some.

``rivals`` has to be asked for: ``python -m bench rivals`` runs for a quarter of an hour, and takes options.
"""

from __future__ import annotations

import runpy
import sys
from itertools import takewhile

ALL = (
    "pipeline", "latency", "sketch", "series", "rules", "backtest", "anomaly", "detectors", "drift", "evidence",
    "quality", "scale_out", "paging", "sdk_overhead", "host_agent", "join", "profiles", "scrape", "resources",
)  # fmt: skip

if {"-h", "--help"} & set(sys.argv[1:2]):
    sys.exit(f"{(__doc__ or '').strip()}\n\nBenchmarks: {', '.join((*ALL, 'rivals'))}")
asked = list(takewhile(lambda argument: not argument.startswith("-"), sys.argv[1:]))
sys.argv[1:] = sys.argv[1 + len(asked) :]  # the options, for the benchmark that takes some
if unknown := set(asked) - {*ALL, "rivals"}:
    sys.exit(f"there is no benchmark {', '.join(sorted(unknown))}; there are {', '.join((*ALL, 'rivals'))}")
for name in asked or ALL:
    print(f"\n== {name}", flush=True)
    runpy.run_module(f"bench.{name}", run_name="__main__")
if not asked:
    print("\nnot run: rivals (`python -m bench rivals`: streammon beside what one would use instead, 15 minutes)")
