"""docs/gpu.md lists what is told, all of it and nothing else."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from streammon.config import GpuSettings
from streammon_agents.gpu.dcgm import PROFILED
from streammon_agents.gpu.gpus import Gpus
from streammon_agents.gpu.holding import COUNTERS, VALUES
from streammon_agents.gpu.questions import EVERYTHING, OF_INSTANCES, OF_LINKS
from streammon_agents.gpu.xids import OF_APPLICATIONS, Xid, counters
from tests.gpus import FULL, Nvml, gpu

PAGE = (Path(__file__).parents[3] / "docs" / "gpu.md").read_text(encoding="utf-8")
TABLES = PAGE.partition("### `gpu_process`")[0]


def test_every_metric_and_counter_of_a_gpu_is_on_the_page_and_no_other(nvml: Nvml, tmp_path: Path) -> None:
    nvml.say(
        {"count": 1}
        | gpu(0, **FULL, mig=1, migs_max=1)
        | {"0/0.uuid": "MIG-1", "0/0.name": "A MIG 1g.5gb", "0/0.gi": 1, "0/0.attributes": 14}
    )
    gpus = Gpus(GpuSettings(pod_resources=None, processes=False), 1.0, tmp_path)
    told = {name for thing in gpus.measure().things for name in thing.metrics}
    gpus.close()
    questions, fields = EVERYTHING
    told |= {each.name for each in (*questions, *OF_INSTANCES) if each.total} - {"nvlink_link_errors"} | OF_LINKS.keys()
    told |= {each.metric for each in fields if each.total}
    told |= {name.replace("79", "N") for name in counters(Counter([Xid("g", None, 79)]))}
    first_columns = re.findall(r"^\| ([^|]*`[^|]*) \|", TABLES, re.MULTILINE)
    assert {name for column in first_columns for name in re.findall(r"`(\w+)`", column)} == told


def test_what_holders_and_profilers_tell_is_on_the_page() -> None:
    for name in [f"gpu_{each}" for each in (*VALUES[:6], *COUNTERS)] + [metric for metric, _ in PROFILED.values()]:
        assert f"`{name}`" in PAGE
    assert f"({', '.join(map(str, sorted(OF_APPLICATIONS)))})" in PAGE
