"""The notifier: from alerts to messages that people can trust.

``gather`` brings all alerts and commands into one order, ``decide`` says whom to tell what; the delivery is the sinks'
(`streammon_sinks.notify`). ``docs/notifier.md`` is the specification.

Promises of the decision
- **One page an episode.** A restart while something fires tells nothing again, and the end is still told.
- **Whoever was told is told the end**, be it silenced, inhibited or muted then. What nobody was told of ends silently.
- What is silenced, inhibited or muted is told as soon as that is over, if it still fires.
- A message about a group comes at most every ``group_interval``, or at once when it gets worse.
- A storm is few messages: see `groups.STORM_S`. Each says how many alerts it does not name.
- What a channel does not take is told elsewhere, and that it does not, too.
- The same pages give the same notifications, byte for byte, wherever a `snapshot` is restored between them.
- State is bounded, by the limits in `following`, `quiet` and `groups`; what there is no room for is counted.
"""

from __future__ import annotations

from streammon_processors.notifier.decide import DecideTask
from streammon_processors.notifier.description import Plan, load_plan
from streammon_processors.notifier.gather import GatherTask

__all__ = ["DecideTask", "GatherTask", "Plan", "load_plan"]
