"""The fault harness: a known log, N processors under a supervisor, faults, and an exact comparison at the end.

`run` is the whole story. A scenario is cut into rounds. Each feeds its share of the log while a fault strikes, and
ends when every partition publishes again; the time that takes is the round's recovery. When all is counted, the
processors are stopped, and `judge` compares.

The processors are ordinary ``streammon process`` commands. Their broker is Apache Kafka; they reach it through a
proxy, the harness reaches it directly. Everything random comes from the seed; the timing is the machine's.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Protocol

from aiokafka.admin import AIOKafkaAdminClient

from streammon.broker import Broker, connect
from streammon.config import Settings
from streammon.errors import Retryable
from streammon.topics import TopicSpec, topic_specs
from tests.faults.faults import Freeze, Stall
from tests.faults.judge import Verdict, base_windows, judge, judge_rollups, read_all
from tests.faults.kafka_proxy import KafkaProxy
from tests.faults.stage import PARTITIONS, Grounds, Stage
from tests.faults.workload import TYPES, Sent, expected, log_of, published
from tests.support import eventually

MEMBERS = 3
RECOVER_S = 90.0
"""A round that takes longer has failed."""
SETTLE_S = 60.0
DURING_S = 1.0
"""How long the share fed beside a fault takes."""
FEED_RECORDS = 10
TAKEN_OVER = "another process owns this partition now"
"""How the last words of one that was fenced end."""
UNUSED = ("labels", "pipelines", "logs", "changes", "drift", "runs", "commands", "alerts", "heartbeats")
"""Topics made with one partition, to be cheap."""


class Fault(Protocol):
    """What goes wrong in a round. Frozen, so that a scenario can be printed and repeated."""

    async def strike(self, stage: Stage, rng: random.Random) -> None: ...


@dataclass(frozen=True)
class Scenario:
    """One run of the harness: a fault a round."""

    name: str
    rounds: tuple[Fault, ...]
    seed: int
    events: int = 200_000


@dataclass
class Report:
    """What a scenario came to."""

    scenario: Scenario
    recoveries_s: list[float] = field(default_factory=list)
    """From the beginning of each round until every partition publishes again; the first is the start of all."""
    stuck: list[str] = field(default_factory=list)
    """Rounds that did not recover in time."""
    gave_up: list[str] = field(default_factory=list)
    """Processes that ended by themselves, with their last words; the supervisor started them again."""
    statuses: list[int] = field(default_factory=list)
    """Exit statuses of the processes stopped at the end: 0, if they stopped in order and in time."""
    verdict: Verdict = field(default_factory=Verdict)

    @property
    def failure(self) -> str:
        """What is not as it must be; empty if nothing is."""
        if self.verdict:
            return "\n".join([f"{self.scenario}: {self.verdict}", *self.verdict.examples])
        if any(self.statuses):
            return f"exit statuses {self.statuses} after SIGTERM, expected 0"
        if self.stuck:
            return "; ".join(self.stuck)
        return "; ".join(said for said in self.gave_up if not self._may(said))

    def _may(self, said: str) -> bool:
        """Whom others took for dead gives up what was theirs; nobody else gives up anything."""
        silenced = any(isinstance(fault, Freeze | Stall) for fault in self.scenario.rounds)
        return silenced and said.startswith("status 1: streammon: ") and said.endswith(TAKEN_OVER)


Say = Callable[[str], None]


async def run(grounds: Grounds, scenario: Scenario, say: Say = lambda _: None) -> Report:
    """Play a scenario to its end and compare."""
    report = Report(scenario)
    rng = random.Random(scenario.seed)
    sent = log_of(scenario.seed, scenario.events, PARTITIONS)
    prefix = f"fault-{time.time_ns()}."
    settings = grounds.settings(prefix, grounds.kafka.address)
    async with _topics(settings) as broker, _stage(grounds, prefix) as stage, _watching(broker) as watch:
        shares = _shares(sent, len(scenario.rounds) + 1)
        for number, (fault, share) in enumerate(zip((Calm(), *scenario.rounds), shares, strict=True)):
            began = time.monotonic()
            try:
                await _round(stage, fault, broker, share, watch, rng)
            except AssertionError as error:
                report.stuck.append(str(error))
            report.recoveries_s.append(time.monotonic() - began)
            say(f"{scenario.name} {number}/{len(scenario.rounds)}: {fault}, {report.recoveries_s[-1]:.1f} s")
        await _settle(broker, sent, watch)
        report.verdict = await _settled_rollups(broker, settings)
        report.statuses = await stage.leave_all()
        report.gave_up = stage.gave_up
        report.verdict += await judge(broker, sent, settings)
    return report


@dataclass(frozen=True)
class Calm:
    """Nothing goes wrong: the members' start."""

    async def strike(self, stage: Stage, rng: random.Random) -> None:
        pass


def _shares(sent: Sequence[Sent], parts: int) -> list[Sequence[Sent]]:
    return [sent[len(sent) * each // parts : len(sent) * (each + 1) // parts] for each in range(parts)]


async def _round(
    stage: Stage, fault: Fault, broker: Broker, share: Sequence[Sent], watch: Watch, rng: random.Random
) -> None:
    """Feed before, while and after the fault strikes; until every partition publishes again."""
    before, while_, after = _shares(share, 3)
    await _feed(broker, before)
    feeding = asyncio.create_task(_feed(broker, while_, DURING_S / max(1, len(while_))))
    try:
        await fault.strike(stage, rng)
    finally:
        await feeding
        mark = Counter(watch.windows)
        await _feed(broker, after)
    await eventually(
        lambda: all(watch.windows[each] > mark[each] for each in range(PARTITIONS)),
        RECOVER_S,
        f"windows of every partition after {fault}",
    )


async def _feed(broker: Broker, share: Sequence[Sent], pause_s: float = 0.0) -> None:
    """Until acknowledged: what was not may be in the log all the same, and is then a duplicate."""
    for start in range(0, len(share), FEED_RECORDS):
        records = [each.outgoing for each in share[start : start + FEED_RECORDS]]
        while True:
            try:
                await broker.append(records)
                break
            except Retryable:
                await asyncio.sleep(0.2)
        await asyncio.sleep(pause_s * len(records))


async def _settle(broker: Broker, sent: Sequence[Sent], watch: Watch) -> None:
    """Until all is counted. What is not by then, is for the verdict to say."""
    wanted = Counter[str]()
    for topic in TYPES:
        wanted.update(expected(sent, await read_all(broker, topic), topic).total)
    with suppress(AssertionError):
        await eventually(lambda: not wanted - watch.total, SETTLE_S)


async def _settled_rollups(broker: Broker, settings: Settings) -> Verdict:
    """The verdict on rollups, given time to catch up: ticks go on for as long as a long one is open."""
    verdict = Verdict()

    async def exact() -> bool:
        nonlocal verdict
        verdict = await judge_rollups(broker, settings)
        return not verdict

    with suppress(AssertionError):
        await eventually(exact, SETTLE_S)
    return verdict


@asynccontextmanager
async def _topics(settings: Settings) -> AsyncIterator[Broker]:
    """The topics of one scenario, removed afterwards: a broker that was killed looks at every one of them."""
    broker = await connect(settings)
    specs = [
        replace(spec, partitions=1) if spec.name in UNUSED else spec for spec in topic_specs(partitions=PARTITIONS)
    ]
    try:
        await broker.create_topics(specs)
        yield broker
    finally:
        await broker.close()
        await _delete(settings, specs)


async def _delete(settings: Settings, specs: Sequence[TopicSpec]) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.bootstrap)
    await admin.start()
    try:
        await admin.delete_topics([settings.topics.prefix + spec.name for spec in specs])
    finally:
        await admin.close()


@asynccontextmanager
async def _stage(grounds: Grounds, prefix: str) -> AsyncIterator[Stage]:
    async with KafkaProxy(grounds.proxy_port, grounds.proxied_port).listening() as proxy:
        stage = Stage(grounds, prefix, proxy)
        try:
            for _ in range(MEMBERS):
                stage.join()
            yield stage
        finally:
            await stage.leave_all()


@asynccontextmanager
async def _watching(broker: Broker) -> AsyncIterator[Watch]:
    watch = Watch(broker)
    async with asyncio.TaskGroup() as tasks:  # a watch that fails ends the scenario
        following = tasks.create_task(watch.follow())
        yield watch
        following.cancel()


# --- watching ----------------------------------------------------------------------------------------------------


class Watch:
    """Follows what is published while the faults strike: where, and how much in total."""

    def __init__(self, broker: Broker) -> None:
        self.windows: Counter[int] = Counter()
        self.total: Counter[str] = Counter()
        self._broker = broker

    async def follow(self) -> None:
        reader = await self._broker.reader(["windows"])
        try:
            while True:
                try:
                    polled = await reader.poll(0.2)
                except Retryable:
                    await asyncio.sleep(0.2)
                    continue
                for partition, records in polled.items():
                    self.windows[partition.partition] += len(records)
                    self.total.update(published(base_windows(records)).total)
        finally:
            await reader.close()


# ---------------------------------------------------------------- for people


def table(reports: Iterable[Report]) -> str:
    """One row a scenario name; recovery in seconds, median and longest."""
    rows: list[tuple[str, ...]] = [
        ("fault", "rounds", "events", "missing", "wrong", "duplicate", "recovery", "longest", "gave up")
    ]
    by_name: dict[str, list[Report]] = {}
    for report in reports:
        by_name.setdefault(report.scenario.name, []).append(report)
    for name, group in by_name.items():
        recoveries = [each for report in group for each in report.recoveries_s[1:]]
        verdicts = [report.verdict for report in group]
        numbers = (
            len(recoveries),
            sum(report.scenario.events for report in group),
            *(sum(getattr(each, what) for each in verdicts) for what in ("missing", "wrong", "duplicate")),
        )
        times = (f"{median(recoveries):.1f} s", f"{max(recoveries):.1f} s")
        rows.append((name, *map(str, numbers), *times, str(sum(len(report.gave_up) for report in group))))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)


@asynccontextmanager
async def own_log(
    grounds: Grounds, name: str, partitions: int, needed: Collection[str], directory: Path
) -> AsyncIterator[tuple[Broker, Path]]:
    """A log on Kafka with topics of its own, and the configuration of commands that work on it.

    The topics that are not ``needed`` have one partition, to be cheap. At the end all are deleted.
    """
    settings = grounds.settings(f"{name}-{time.time_ns()}.", grounds.kafka.address)
    settings = settings.model_copy(update={"topics": settings.topics.model_copy(update={"partitions": partitions})})
    config = directory / "streammon.json"  # JSON is YAML
    config.write_text(settings.model_dump_json(include={"bootstrap", "topics", "kafka"}))
    every = topic_specs(partitions=partitions)
    specs = [each if each.name in needed else replace(each, partitions=1) for each in every]
    broker = await connect(settings)
    try:
        await broker.create_topics(specs)
        yield broker, config
    finally:
        names = list(await broker.topics())
        await broker.close()
        await _delete(settings, [replace(specs[0], name=each) for each in names])
