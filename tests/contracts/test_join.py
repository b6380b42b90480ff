"""The contract of tasks, on the join: whichever topic is read first, whatever crashes."""

from __future__ import annotations

from dataclasses import replace

from streammon.config import Settings
from streammon_processors.builtin import join_processor
from streammon_processors.contract import Logs, ProcessorContract
from tests.joins import join_logs, join_task


class TestJoin(ProcessorContract):
    processor = replace(join_processor(Settings()), task=join_task)

    def logs(self, seed: int) -> Logs:
        return join_logs(seed)
