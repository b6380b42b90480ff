"""What can go wrong with processors on Kafka, each as a frozen value that says so and does it."""

from __future__ import annotations

import asyncio
import random
import signal
from dataclasses import dataclass

from tests.faults.kafka_proxy import Api, Caught, Trap, Way
from tests.faults.stage import SESSION_S, Stage
from tests.support import eventually

CAUGHT_S = 20.0
"""How long a message of the awaited kind may take to come by."""


@dataclass(frozen=True)
class Kill:
    """kill -9 at any moment, of one member or of several at once."""

    members: int = 1

    async def strike(self, stage: Stage, rng: random.Random) -> None:
        await asyncio.sleep(rng.uniform(0, 0.7))
        for member in rng.sample(stage.members, self.members):
            member.kill()


@dataclass(frozen=True)
class KillInTransaction:
    """kill -9 of whoever speaks, with a part of its transaction on the way.

    REQUEST: the broker gets the message of a dead process, or does not. ANSWER: the work is done, nobody heard.
    """

    api: Api
    way: Way

    async def strike(self, stage: Stage, rng: random.Random) -> None:
        caught = await _catch(stage, self.api, self.way)
        stage.named(caught.client).kill()
        rng.choice((caught.pass_on, caught.lose))()


@dataclass(frozen=True)
class KillInRestore:
    """kill -9, and again as soon as the new process has fenced the old one and reads its snapshots."""

    async def strike(self, stage: Stage, rng: random.Random) -> None:
        member = rng.choice(stage.members)
        member.kill()
        caught = await _catch(stage, Api.INIT_PRODUCER_ID, Way.ANSWER, member.client)
        caught.pass_on()
        await asyncio.sleep(rng.uniform(0, 0.1))
        member.kill()


@dataclass(frozen=True)
class Freeze:
    """SIGSTOP for twice the session timeout, then SIGCONT: a zombie that believes it owns its partitions."""

    async def strike(self, stage: Stage, rng: random.Random) -> None:
        member = rng.choice(stage.members)
        member.signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(2 * SESSION_S)
        finally:
            member.signal(signal.SIGCONT)


@dataclass(frozen=True)
class Stall:
    """The network of one member stands still for as long: it runs, and nobody hears it."""

    async def strike(self, stage: Stage, rng: random.Random) -> None:
        stage.proxy.stalled = rng.choice(stage.members).client
        try:
            await asyncio.sleep(2 * SESSION_S)
        finally:
            stage.proxy.stalled = None


@dataclass(frozen=True)
class Storm:
    """Members join and leave."""

    times: int = 3
    every_s: float = 2.0

    async def strike(self, stage: Stage, rng: random.Random) -> None:
        for _ in range(self.times):
            member = stage.join()
            await asyncio.sleep(self.every_s)
            await eventually(member.has_partitions, CAUGHT_S, "partitions of one that joins")
            status = await stage.leave(member)
            assert status == 0, f"exit status {status} of a member that was asked to leave"


@dataclass(frozen=True)
class KillBroker:
    """kill -9 of Kafka, which comes back with the same data at the same port."""

    async def strike(self, stage: Stage, rng: random.Random) -> None:
        await asyncio.to_thread(stage.kafka.kill)
        await asyncio.sleep(rng.uniform(0, 1))
        await asyncio.to_thread(stage.kafka.restart)


@dataclass(frozen=True)
class Delay:
    """Every answer of the broker comes late."""

    by_s: float = 0.3
    for_s: float = 3.0

    async def strike(self, stage: Stage, rng: random.Random) -> None:
        stage.proxy.delay_s = self.by_s
        try:
            await asyncio.sleep(self.for_s)
        finally:
            stage.proxy.delay_s = 0.0


@dataclass(frozen=True)
class Cut:
    """Every connection is cut, again and again."""

    times: int = 3

    async def strike(self, stage: Stage, rng: random.Random) -> None:
        for _ in range(self.times):
            await stage.proxy.cut()
            await asyncio.sleep(rng.uniform(0, 0.5))


@dataclass(frozen=True)
class LoseAnswer:
    """The broker has done it, and the acknowledgement is lost with its connection."""

    api: Api

    async def strike(self, stage: Stage, rng: random.Random) -> None:
        caught = await _catch(stage, self.api, Way.ANSWER)
        caught.lose()


async def _catch(stage: Stage, api: Api, way: Way, client: str = "member-") -> Caught:
    """The next message of this kind. An AssertionError if none comes by: then the product stands still."""
    try:
        async with asyncio.timeout(CAUGHT_S):
            return await stage.proxy.trap(Trap(api, way, client))
    except TimeoutError:
        raise AssertionError(f"no {way.value} {api.name} of {client} within {CAUGHT_S:g} s") from None
