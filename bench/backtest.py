"""What a month costs a backtest: 100 series in windows of 10 s, from columns, from records, and from a real Kafka.

The last is timed by the clock, as somebody waits for it: `rules backtest`, on windows of four partitions.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from streammon import servers
from streammon.broker import Outgoing, connect
from streammon.config import Settings
from streammon.topics import topic_specs
from streammon_processors.rules import Rule, Rules, RulesTask
from streammon_processors.rules.backtest.columns import ColumnTask, Panel, panel, records_of

SERIES = 100
SIZE_S = 10.0
DAY = 8640
DAYS = 30
RECORDS_WAVES = 1_000
LOG_WAVES = 16_000
PARTITIONS = 4
PROGRAM = Path(sys.executable).with_name("streammon")
START_UNIX_S = 1_700_000_000.0
EXPRESSIONS = {
    "five rules on the window": (
        "error_rate > 0.5",
        "error_rate > 0.2 && count > 100",
        "throughput_per_s < 1",
        'error_rate > 0.4 && labels.model.startsWith("m1")',
        "error_rate > 0.9 || count > 1000",
    ),
    "and two over 5 and 10 minutes": ('avg_over(error_rate, "5m") > 0.5', 'burn_rate(0.9, "10m") > 5'),
}


def month(days: int) -> Panel:
    """Error rates around 5 %, with an hour of trouble for each series."""
    random = np.random.default_rng(0)
    rates = random.beta(2, 40, (days * DAY, SERIES))
    for series, first in enumerate(random.integers(0, max(1, days * DAY - 360), SERIES).tolist()):
        rates[first : first + 360, series] += 0.6
    starts = START_UNIX_S + SIZE_S * np.arange(len(rates), dtype=float)
    labels = [{"service": "shop", "model": f"m{number}"} for number in range(SERIES)]
    return panel("inference", SIZE_S, labels, starts, {"error_rate": rates, "count": np.full(rates.shape, 50.0)})


def rules(expressions: tuple[str, ...]) -> Rules:
    return Rules(
        tuple(
            Rule(name=f"r{number}", source="inference", expr=each, severity="warning", summary="{value}", for_="1m")
            for number, each in enumerate(expressions)
        )
    )


async def publish(given: Panel, settings: Settings) -> int:
    broker, count = await connect(settings), 0
    await broker.create_topics(topic_specs(partitions=PARTITIONS))
    records = records_of(given)
    while batch := list(islice(records, 2000)):
        partitions = ((count + at) % SERIES % PARTITIONS for at in range(len(batch)))
        await broker.append(
            [Outgoing("windows", None, each.value, (), to) for each, to in zip(batch, partitions, strict=True)]
        )
        count += len(batch)
    await broker.close()
    return count


def on_kafka(expressions: Sequence[str]) -> None:
    """Seconds by the clock of a short log and of a long one; the difference is what windows cost."""
    text = "".join(
        f"  - {{name: r{number}, source: inference, expr: '{each}', for: 1m, severity: warning, summary: x}}\n"
        for number, each in enumerate(expressions)
    )
    with tempfile.TemporaryDirectory() as directory, servers.start("kafka", Path(directory)) as kafka:
        rules_file = Path(directory) / "rules.yaml"
        rules_file.write_text(f"rules:\n{text}")
        found = []
        for prefix, waves in (("short.", LOG_WAVES // 8), ("long.", LOG_WAVES)):
            settings = Settings(bootstrap=kafka.address, topics={"prefix": prefix, "partitions": PARTITIONS})
            count = asyncio.run(publish(month(DAYS)[:waves], settings))
            command: list[str | Path] = [PROGRAM, "rules", "backtest", "--bootstrap", kafka.address]
            command += ["--from", "2000-01-01", "--to", "2100-01-01", "--rules", rules_file]
            before = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={"STREAMMON_TOPICS__PREFIX": prefix})
            found.append((count, time.perf_counter() - before))
    (few, short_s), (many, long_s) = found
    each_us = 1e6 * (long_s - short_s) / (many - few)
    print(
        f"  on Kafka, five rules on the window: {many:,} windows in {long_s:.1f} s, {each_us:.2f} µs for each more; "
        f"{DAYS} days in {short_s + each_us * (DAYS * DAY * SERIES - few) / 1e6:.0f} s"
    )


def main() -> None:
    given = month(DAYS)
    few = given[:RECORDS_WAVES]
    records = list(records_of(few))
    expressions: tuple[str, ...] = ()
    for name, more in EXPRESSIONS.items():
        expressions += more
        before = time.process_time()
        task = ColumnTask(rules(expressions), 0, base_s=SIZE_S)
        told = sum(len(task.take(block)) for block in given.blocks())
        columns_s = time.process_time() - before
        before = time.process_time()
        recorded = RulesTask(rules(expressions), 0, base_s=SIZE_S)
        for first in range(0, len(records), 500):
            recorded.process("windows", records[first : first + 500])
        records_us = 1e6 * (time.process_time() - before) / len(records)
        print(
            f"  {name}: {DAYS} days, {given.there.sum():,} windows, {told} transitions: {columns_s:.1f} s of CPU from "
            f"columns, {1e6 * columns_s / given.there.sum():.2f} µs a window; from records {records_us:.1f} µs a window"
        )
    on_kafka(EXPRESSIONS["five rules on the window"])


if __name__ == "__main__":
    main()
