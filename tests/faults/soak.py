"""An hour of faults: ``python -m tests.faults.soak --minutes 60 --seed N``, or ``make soak``.

Plays the scenarios of the suite in random order, each with a log and a schedule of its own, until the time is up.
Says a line a round and the table at the end; the exit status is 1 if anything was missing, wrong or there twice.
The same seed gives the same logs and faults; the timing is the machine's.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from pathlib import Path

from streammon import servers
from tests.faults import scenarios
from tests.faults.harness import Report, Scenario, run, table
from tests.faults.stage import Grounds


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32)
    options = parser.parse_args()
    print(f"seed {options.seed}, {options.minutes:g} minutes", flush=True)
    with tempfile.TemporaryDirectory(prefix="streammon-soak-", ignore_cleanup_errors=True) as directory:
        grounds = Grounds.open(servers.start, Path(directory))
        with grounds.kafka:
            reports = asyncio.run(_soak(grounds, random.Random(options.seed), options.minutes * 60))
    print(table(reports))
    return 1 if any(report.failure for report in reports) else 0


async def _soak(grounds: Grounds, rng: random.Random, seconds: float) -> list[Report]:
    reports: list[Report] = []
    began = time.monotonic()

    def say(line: str) -> None:
        print(f"{(time.monotonic() - began) / 60:6.1f} min  {line}", flush=True)

    while time.monotonic() - began < seconds:
        report = await run(grounds, _scenario(rng), say)
        for trouble in (*report.gave_up, report.failure):
            if trouble:
                say(f"  {trouble}")
        reports.append(report)
    return reports


def _scenario(rng: random.Random) -> Scenario:
    """Half of the time all together, else one of the others."""
    seed = rng.randrange(2**32)
    return scenarios.together(seed) if rng.random() < 0.5 else scenarios.alone(rng.choice([*scenarios.ALONE]), seed)


if __name__ == "__main__":
    sys.exit(main())
