"""How often the true cause of an incident comes out first: `tests.incidents`, on many seeds.

    python -m bench evidence [--seeds N] [--first N]

The weights were set on seeds 1 to 5; by default 20 others are taken, from 1000 on. Twice: where windows of requests say
on which host they were served (`windows.inference_by` with ``host``), and where they do not, as by default.
"""

from __future__ import annotations

import argparse
import time

from tests.diagnosing import rank
from tests.incidents import INCIDENTS


def measure(seeds: range, *, by_host: bool) -> None:
    print(f"\nhosts are {'' if by_host else 'not '}known\n{'incident':20} first  in 3   of")
    first = third = 0
    ranks = {name: [rank(name, seed, by_host=by_host) for seed in seeds] for name in INCIDENTS}
    for name, found in ranks.items():
        ones, threes = found.count(1), sum(0 < each <= 3 for each in found)
        first, third = first + ones, third + threes
        print(f"{name:20} {ones:5} {threes:5} {len(found):4}")
    worst = min(sum(found[index] == 1 for found in ranks.values()) for index in range(len(seeds)))
    whole = len(INCIDENTS) * len(seeds)
    print(f"{'all':20} {first:5} {third:5} {whole:4}   {first / whole:.1%} first, {third / whole:.1%} among three")
    print(f"on the worst seed, {worst} of {len(INCIDENTS)} first")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seeds", type=int, default=20)
    options.add_argument("--first", type=int, default=1000)
    given = options.parse_args()
    seeds = range(given.first, given.first + given.seeds)
    began = time.perf_counter()
    for by_host in (True, False):
        measure(seeds, by_host=by_host)
    print(
        f"\n{(time.perf_counter() - began) / 2 / len(seeds) / len(INCIDENTS) * 1000:.0f} ms an incident, made and read"
    )


if __name__ == "__main__":
    main()
