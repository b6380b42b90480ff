"""Service level objectives: what is left of error budgets, kept up to date (`task`) or from the log (`report`).

What an objective is, and the alerts on it, is in `streammon_processors.rules.levels`.
"""

from __future__ import annotations

from streammon_processors.slos.task import SloTask

__all__ = ["SloTask"]
