"""The faults of the suite, each alone and all together, as scenarios."""

from __future__ import annotations

import random

from tests.faults.faults import (
    Cut,
    Delay,
    Freeze,
    Kill,
    KillBroker,
    KillInRestore,
    KillInTransaction,
    LoseAnswer,
    Stall,
    Storm,
)
from tests.faults.harness import Fault, Scenario
from tests.faults.kafka_proxy import Api, Way

ALONE: dict[str, tuple[Fault, ...]] = {
    "kill mid-window": 2 * (Kill(), Kill(2), Kill(3)),
    "kill mid-transaction": 2
    * (
        KillInTransaction(Api.ADD_PARTITIONS_TO_TXN, Way.ANSWER),
        KillInTransaction(Api.PRODUCE, Way.ANSWER),
        KillInTransaction(Api.END_TXN, Way.REQUEST),
        KillInTransaction(Api.END_TXN, Way.ANSWER),
    ),
    "kill mid-restore": 4 * (KillInRestore(),),
    "zombie": (Freeze(), Stall()),
    "rebalance storm": (Storm(),),
    "kill broker": (KillBroker(),),
    "late answers, cut connections": (Delay(), Cut()),
    "lost acknowledgements": (LoseAnswer(Api.PRODUCE), LoseAnswer(Api.TXN_OFFSET_COMMIT), LoseAnswer(Api.END_TXN)),
}
"""By name, the rounds in which one kind of fault strikes."""

TOGETHER = "all together"


def alone(name: str, seed: int) -> Scenario:
    return Scenario(name, ALONE[name], seed)


def together(seed: int) -> Scenario:
    """One fault of each kind, in random order."""
    rng = random.Random(seed)
    faults = [rng.choice(faults) for faults in ALONE.values()]
    rng.shuffle(faults)
    return Scenario(TOGETHER, tuple(faults), seed)
