"""What a hundred rules on ten thousand series cost: CPU a base window, from the bytes of windows to those of alerts.

Without a broker. Every window has its sketches, as on the topic. A quarter of the rules compare one number, a quarter
combine two, a quarter look back over a minute, a quarter go by labels; none fires, as on a good day, and then one in a
hundred series does, by one rule in four.
"""

from __future__ import annotations

import gc
import time

import msgspec
import numpy as np

from bench.pipeline import Stored
from streammon.results import Completeness, Distribution, Window
from streammon.sketch import Sketch
from streammon_processors.rules import Rule, Rules, RulesTask

SERIES = 10_000
RULES = 100
WINDOWS = 40
SIZE_S = 2.0
BATCH = 2000
START_UNIX_S = 1_700_000_000.0
EXPRESSIONS = (
    "duration_s.p99 > {bound}",
    "error_rate > 0.5 && throughput_per_s > {bound}",
    'avg_over(duration_s.p99, "1m") > {bound}',
    'duration_s.p50 > {bound} && labels.model.startsWith("m{number}")',
)


def rule(number: int) -> Rule:
    expression = EXPRESSIONS[number % 4].replace("{bound}", str(5 + number)).replace("{number}", str(number))
    name = f"rule-{number}"
    return Rule(name=name, source="inference", expr=expression, severity="warning", summary="{value}", for_="10s")


def windows(index: int, slow: bool) -> list[bytes]:
    """Those of one start, one of each series."""
    random = np.random.default_rng(index)
    start = START_UNIX_S + index * SIZE_S
    found = []
    for number in range(SERIES):
        values = random.lognormal(-3, 1, 20) * (10_000 if slow and number % 100 == 0 else 1)
        sketch = Sketch.of(values)
        p50, p90, p99 = (sketch.quantile(q) for q in (0.5, 0.9, 0.99))
        total, least, most = float(values.sum()), float(values.min()), float(values.max())
        found.append(
            Window(
                source="inference", part="main", revision=0, start_unix_s=start, end_unix_s=start + SIZE_S,
                series={"service": "shop", "model": f"m{number % 100}", "endpoint": f"/v1/{number}"},
                size_s=SIZE_S, partition=0, count=20, throughput_per_s=10.0, error_count=0, error_rate=0.0,
                completeness=Completeness(),
                duration_s=Distribution(
                    count=20, sum=total, min=least, max=most, mean=total / 20, p50=p50, p90=p90, p99=p99, sketch=sketch
                ),
            )
        )  # fmt: skip
    return [msgspec.json.encode(each) for each in found]


def main() -> None:
    task = RulesTask(Rules(tuple(map(rule, range(RULES)))), 0)
    cost: dict[bool, list[float]] = {False: [], True: []}
    told, offset = 0, 0
    for index in range(WINDOWS):
        slow = index >= WINDOWS // 2
        stamp_ms = round(1000 * (START_UNIX_S + index * SIZE_S + 3))
        records = [Stored(0, offset + at, stamp_ms, None, value) for at, value in enumerate(windows(index, slow))]
        offset += SERIES
        gc.collect()
        gc.disable()  # as the runtime has it
        before = time.process_time()
        for first in range(0, SERIES, BATCH):
            told += len(task.process("windows", records[first : first + BATCH]))
            task.snapshot()
        cost[slow].append(time.process_time() - before)
        gc.enable()
    size = len(records[0].value or b"")
    print(f"{SERIES:,} series, {RULES} rules, windows of {size:,} B, in batches of {BATCH:,}; {told:,} alerts")
    for slow, what in ((False, "nothing fires"), (True, "1 % of the series in breach of 50 rules")):
        usual, worst = np.median(cost[slow][1:]), np.max(cost[slow][1:])
        print(f"  {what}: {usual:.2f} s of CPU a window (worst {worst:.2f}), {100 * usual / SIZE_S:.0f} % of a core")


if __name__ == "__main__":
    main()
