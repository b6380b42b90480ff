"""Remediation: what is to be done about alerts whose rule names an action, decided in one order.

``gather`` brings alerts and approvals of all partitions together on `remedies`; ``decide`` makes `remediations` of
them. Who does what is due is in the sinks (`streammon_sinks.remediation`). ``docs/remediation.md`` tells it to users.
"""

from __future__ import annotations

from streammon_processors.remediation.decide import RemedyTask
from streammon_processors.remediation.gather import GatherRemediesTask

__all__ = ["GatherRemediesTask", "RemedyTask"]
