"""What baselines and forecasts cost: time by window and series, state by series; and how much each constant matters.

`python -m bench.anomaly` measures the cost, `python -m bench.anomaly constants` counts what is found in the real
incidents of `tests/data` when one constant of the method is 30 % smaller or larger, `python -m bench.anomaly simpler`
what simpler methods find there, and how often they alarm where nothing happens.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from streammon_processors.rules.conditions.anomaly import KEEP_FIRING_S, Baseline, Tuning
from streammon_processors.rules.conditions.forecast import BLOCKS, Forecast
from tests.series import BEGIN_UNIX_S, NAB_STEP_S, WEEK_S, Floats, episodes, incidents, quiet

Method: TypeAlias = Callable[[Floats, Floats], list[list[float]]]

DAY = 288  # windows of 5 minutes
ROWS = 10_000
UPDATES = 40
HISTORY_S = 6 * 3600.0


def baseline(window_s: float) -> tuple[float, float]:
    """Seconds for a window of all series, and for one in which an hour ends."""
    baselines = Baseline().open(ROWS)
    return _cost(baselines.update, window_s, 3600.0, 50)


def forecast(window_s: float) -> tuple[float, float]:
    """Seconds for a window of all series, and for one in which a block ends."""
    forecasts = Forecast(HISTORY_S).open(ROWS)
    return _cost(forecasts.update, window_s, HISTORY_S / BLOCKS, BLOCKS + 2)


def _cost(update: Callable[..., Any], window_s: float, block_s: float, blocks: int) -> tuple[float, float]:
    """After the warm-up has filled the state: the medians of windows within a block, and of those that end one."""
    random, rows = np.random.default_rng(1), np.arange(ROWS)

    def seconds(end: float) -> float:
        values, ends = random.normal(size=ROWS), np.full(ROWS, end)
        started = time.perf_counter()
        update(rows, ends, values)
        return time.perf_counter() - started

    for block in range(1, blocks):
        seconds(block * block_s)
    turns, steps = [], []
    for block in range(blocks, blocks + 5):
        turns.append(seconds((block - 1) * block_s + window_s))
        last = min(UPDATES // 5 + 1, int(block_s / window_s))
        steps += [seconds((block - 1) * block_s + number * window_s) for number in range(2, last + 1)]
    return float(np.median(steps)), float(np.median(turns))


def constants() -> Iterator[tuple[str, float, int, float]]:
    """A constant, its value, incidents found, and the false alarms a week of the worst series."""
    yield "as shipped", 1.0, *_judged(Baseline(window_s=NAB_STEP_S))
    for budget in (0.1, 0.2, 1.0, 2.0):
        yield "budget_per_week", budget, *_judged(Baseline(budget, window_s=NAB_STEP_S))
    for each in fields(Tuning):
        value = getattr(Tuning(), each.name)
        for changed in (0.7 * value, 1.3 * value):
            tuning = replace(Tuning(), **{each.name: round(changed) if isinstance(value, int) else changed})
            yield each.name, changed, *_judged(Baseline(window_s=NAB_STEP_S, tuning=tuning))


def _judged(baseline: Baseline) -> tuple[int, float]:
    return judged(lambda ends, values: alerts_of_baseline(baseline, ends, values))


def judged(method: Method) -> tuple[int, float]:
    """How many incidents are found, and the false alarms a week of the worst series."""
    each = [series.judge(method(series.ends, series.values[None])[0]) for series in incidents()]
    return sum(one.found for one in each), max(one.false_per_week for one in each)


def alerts_of_baseline(baseline: Baseline, ends: Floats, values: Floats) -> list[list[float]]:
    baselines, rows = baseline.open(len(values)), np.arange(len(values))
    return episodes(
        lambda end, column: baselines.update(rows, np.full(len(rows), end), column).score, ends, values, KEEP_FIRING_S
    )


def alerts_of_simpler(times: float, centre: Any, spread: Any, ends: Floats, values: Floats) -> list[list[float]]:
    """Further from the centre of the last 24 h than so many times their spread."""
    before = np.lib.stride_tricks.sliding_window_view(values, DAY, axis=1)[:, :-1]
    scores = np.zeros(values.shape)
    for row, past in enumerate(before):
        middle = centre(past, axis=1)
        wide = spread(past, middle)
        scores[row, DAY:] = np.abs(values[row, DAY:] - middle) > times * wide
    columns = iter(2 * scores.T)
    return episodes(lambda _, __: next(columns), ends, values, KEEP_FIRING_S)


def simpler() -> Iterator[tuple[str, Method]]:
    yield "streammon", partial(alerts_of_baseline, Baseline(window_s=NAB_STEP_S))
    for times in (3.0, 5.0):
        deviation = lambda past, _: past.std(axis=1)  # noqa: E731
        yield f"mean and {times:g} sd, 24 h", partial(alerts_of_simpler, times, np.mean, deviation)
    for times in (3.0, 6.0, 10.0):
        mad = lambda past, middle: 1.4826 * np.median(np.abs(past - middle[:, None]), axis=1)  # noqa: E731
        yield f"median and {times:g} MAD, 24 h", partial(alerts_of_simpler, times, np.median, mad)


def compare() -> None:
    weeks = 4
    ends = BEGIN_UNIX_S + np.arange(1.0, weeks * WEEK_S / NAB_STEP_S + 1) * NAB_STEP_S
    kinds = quiet(np.random.default_rng(21), 5, ends)
    for name, method in simpler():
        found, false = judged(method)
        print(
            f"{name}: {found} of 6 incidents, at most {false:.1f} false alarms a week; where nothing happens: ", end=""
        )
        print(", ".join(f"{kind} {sum(map(len, method(ends, many))) / 5 / weeks:.1f}" for kind, many in kinds.items()))


def main() -> None:
    if sys.argv[1:] == ["simpler"]:
        compare()
        return
    if sys.argv[1:] == ["constants"]:
        for name, value, found, false in constants():
            print(
                f"{name:18} {value:10.4g}: {found} of 6 incidents, at most {false:.2f} false alarms a week and series"
            )
        return
    print(f"{ROWS:,} series; state: {Baseline().open(1).row_bytes} bytes a baseline, ", end="")
    print(f"{Forecast(HISTORY_S).open(1).row_bytes} a forecast")
    for name, measure in (("baseline", baseline), ("forecast", forecast)):
        for window_s in (2.0, 300.0):
            step, turn = measure(window_s)
            shown = f"{step * 1e3:6.1f} ms a window ({step / ROWS * 1e6:.2f} us a series)"
            print(f"{name}, windows of {window_s:>3.0f} s: {shown}; {turn * 1e3:6.1f} ms where a block ends")


if __name__ == "__main__":
    main()
