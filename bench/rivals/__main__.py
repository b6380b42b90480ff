"""streammon beside what one would use instead, per second of CPU: ``python -m bench rivals``.

The job (workload.py): 10 s event-time windows per (model, endpoint) with count, error rate, throughput, p50, p90 and
p99, from single JSON events on a real Kafka, published to Kafka. Each contestant (contestants.py) gets a Kafka of its
own with the same log and runs alone; its CPU time, of all its processes and from their spawn, start-up included, is
taken when the last row can be read (`read_committed`). Kafka's CPU is nobody's, nor is this program's, which reads the
rows as they come and compares them with the exact answer.

    --only hand-aiokafka,streammon   some contestants
    --events N                       length of the log (1,000,000)
    --warm N                         a second log of so many events (5,000,000): the cost of what it has more of is the
                                     warm figure; interpreted rivals are as fast as ever and left out of it
    --rounds N                       everyone in turn, N times: medians, and of the ratios the median of each round's
    --kill                           instead: SIGKILL each once in the middle, start it again, count rows

It takes about 15 minutes, with --warm 45; --kill about 15. The machine should do nothing else.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Mapping, Sequence
from operator import attrgetter
from statistics import median

from bench.rivals import environment
from bench.rivals.contestants import ALL, Contestant
from bench.rivals.race import Failed, Outcome, course, race

EVENTS, WARM_EVENTS = 1_000_000, 5_000_000
REFERENCE, OURS = "hand-aiokafka", "streammon"

NAMES = {each.name: each for each in ALL}

Outcomes = Mapping[str, Sequence[Outcome]]
"""By name, of each round."""
Speeds = Mapping[str, Sequence[float]]
"""Events for each second of CPU."""


def main() -> None:
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # by way of every `finally`: nothing is left running
    try:
        _compete(options)
    except environment.Unavailable as error:
        sys.exit(f"cannot run: {error}")


def _compete(options: argparse.Namespace) -> None:
    if options.kill:
        _print_kills(_races(options.only, options.events, kill=True))
        return
    cold = _races(options.only, options.events, rounds=options.rounds)
    lasting = [each for each in options.only if each.name in cold and not each.interpreted]
    warm = _races(lasting, options.warm, rounds=options.rounds) if options.warm else {}
    _print_speed(_speeds(cold, options.events), _warm_speeds(cold, warm, options.warm - options.events), cold)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m bench rivals", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", type=_contestants, default=ALL, metavar="NAME,NAME", help=", ".join(NAMES))
    parser.add_argument("--events", type=int, default=EVENTS, metavar="N")
    parser.add_argument("--warm", type=int, nargs="?", const=WARM_EVENTS, default=0, metavar="N")
    parser.add_argument("--rounds", type=int, default=1, metavar="N")
    parser.add_argument("--kill", action="store_true")
    return parser.parse_args()


def _contestants(names: str) -> Sequence[Contestant]:
    wanted = names.split(",")
    if unknown := set(wanted) - NAMES.keys():
        raise argparse.ArgumentTypeError(f"no contestant is called {', '.join(unknown)}")
    return [NAMES[name] for name in wanted]


def _races(contestants: Sequence[Contestant], events: int, *, rounds: int = 1, kill: bool = False) -> Outcomes:
    """Everyone in turn. Whoever cannot run is named with the reason, and is not in the table."""
    outcomes: dict[str, list[Outcome]] = {}
    with course(events) as log:
        for contestant in rounds * [*contestants]:
            print(f"{contestant.name}, {events:,} events …", file=sys.stderr, flush=True)
            try:
                outcome = race(contestant, log, kill=kill)
                outcomes.setdefault(contestant.name, []).append(outcome)
                print(f"  {outcome}", file=sys.stderr, flush=True)
            except (environment.Unavailable, Failed) as error:
                print(f"left out: {contestant.name}: {error}")
    return outcomes


def _speeds(outcomes: Outcomes, events: int) -> Speeds:
    return {name: [events / race.usage.cpu_s for race in races] for name, races in outcomes.items()}


def _warm_speeds(cold: Outcomes, warm: Outcomes, more: int) -> Speeds:
    return {
        name: [more / (long.usage.cpu_s - short.usage.cpu_s) for long, short in zip(races, cold[name], strict=False)]
        for name, races in warm.items()
    }


def _print_speed(cold: Speeds, warm: Speeds, outcomes: Outcomes) -> None:
    print(
        f"{'contestant':<24}{'guarantee':<15}{'events/CPU s':>13}{'/ hand':>8}{'streammon /':>12}"
        f"{'warm':>10}{'streammon /':>12}{'missing':>9}{'wrong':>7}{'duplicate':>10}{'RSS MB':>8}{'wall s':>8}"
    )
    for name, races in outcomes.items():
        missing, wrong, twice = (sum(map(attrgetter(what), races)) for what in ("missing", "wrong", "duplicate"))
        print(
            f"{name:<24}{NAMES[name].guarantee:<15}{_figure(cold, name):>13}{_ratio(cold, name, REFERENCE):>8}"
            f"{_ratio(cold, OURS, name):>12}{_figure(warm, name):>10}{_ratio(warm, OURS, name):>12}"
            f"{missing:>9}{wrong:>7}{twice:>10}"
            f"{max(race.usage.peak_rss_bytes for race in races) / 1e6:>8.0f}{median(r.wall_s for r in races):>8.1f}"
        )


def _figure(speeds: Speeds, name: str) -> str:
    return f"{median(speeds[name]):,.0f}" if name in speeds else "–"


def _ratio(speeds: Speeds, one: str, other: str) -> str:
    if one not in speeds or other not in speeds:
        return "–"
    return f"{median(a / b for a, b in zip(speeds[one], speeds[other], strict=False)):.2f}"


def _print_kills(outcomes: Outcomes) -> None:
    print(f"{'contestant, killed once':<28}{'guarantee':<16}{'missing':>9}{'wrong':>9}{'duplicate':>11}")
    for name, [outcome] in outcomes.items():
        print(f"{name:<28}{NAMES[name].guarantee:<16}{outcome.missing:>9}{outcome.wrong:>9}{outcome.duplicate:>11}")


if __name__ == "__main__":
    main()
