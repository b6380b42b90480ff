"""The contract suite, on logs that make the processor work; and what no suite can know: that it counts right."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import msgspec
from tenant_minutes import TOPIC, TenantMinute, tenant_minutes_processor

from streammon.config import Settings
from streammon.events import EventType
from streammon_processors.contract import Logs, ProcessorContract, random_log, run


def random_events(seed: int) -> list[dict[str, Any]]:
    """Requests of three tenants in some minutes; some are out of order, some late."""
    rng = random.Random(seed)
    times = (1.7e9 + 2 * number - rng.choice((0, 0, 0, rng.uniform(0, 150))) for number in range(150))
    common = {"service": "shop", "model": "ranker", "duration_s": 0.1, "status": "ok"}
    return [{"time_unix_s": time, "tenant": rng.choice(("ann", "bob", "eve")), **common} for time in times]


class TestTenantMinutes(ProcessorContract):
    processor = tenant_minutes_processor(Settings())

    def logs(self, seed: int) -> Logs:
        return {"inference": random_log(EventType.INFERENCE, random_events(seed), random.Random(seed))}

    def test_every_request_is_counted_once_in_its_minute(self) -> None:
        for seed in self.seeds:
            expected = Counter((each["tenant"], each["time_unix_s"] // 60 * 60) for each in random_events(seed))
            counted = Counter[tuple[str, float]]()
            for output in run(self.task(), self.logs(seed))["inference"]:
                if output.topic == TOPIC and output.value:
                    minute = msgspec.json.decode(output.value, type=TenantMinute)
                    counted[minute.tenant, minute.start_unix_s] += minute.count
            assert counted <= expected
            assert counted.total() > 100, "only the last minutes are open"
