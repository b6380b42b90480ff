"""Rules: from windows to alerts that a person can act on.

A `Rule` describes a condition on one field of one series' windows; `load_rules` reads rules from YAML files.
A `RulesTask` evaluates them in event time::

    inactive ──breach──► pending ──held for `for_s`──► firing ──first window that clears──► resolved
        ▲                   │
        └──not a breach─────┘

* **breach**: the value is above ``above`` (or below ``below``). **clear**: it is at or below ``clear`` (at or
  above), which is the threshold itself unless the rule says otherwise. In between, firing goes on.
* **held**: from the start of the first breaching window to the end of the newest, with no other verdict in
  between. ``for_s: 0`` fires on the first. Silence is no recovery, so a pending series may skip windows; only
  after `_PATIENCE_S` (or ``for_s``, if longer) without one it begins anew.
* A window without the field says nothing: no breach, no clear. A series that vanishes while firing goes on.
* A rule looks at windows of one kind and length: at base windows, unless its ``window`` asks for rollups.

Promises
- The same windows give the same alerts, byte for byte, however they are cut into batches and wherever a
  `snapshot` is restored between them.
- **One page an episode.** Evaluating a window again changes nothing, and a window that begins before the
  newest of its source, kind and length is not evaluated: in one partition, these come in order of start. (Sessions
  come in order of their ends, and all are evaluated.)
- An alert's id is made of the rule, the series and the start, so whoever reads `alerts` twice can tell.
- A rule that was removed or changed while firing is resolved at the next window of any series, and its
  evidence says so. Texts may be corrected without that: `Rule.version` names only what decides.
- State is bounded: only pending and firing series have any. A breach for which there is no room is not
  followed, and counted as ``too_many_episodes``.

It does not look at supplements (``part: "late"``). Several series together are a window of a group: see
`streammon_processors.rules.groups`.
"""

from __future__ import annotations

from streammon_processors.rules.description import Rule, Rules, WindowOf
from streammon_processors.rules.files import DEFAULT_RULES, load_rules, load_slos, refuse_incomplete
from streammon_processors.rules.levels import ServiceLevel
from streammon_processors.rules.task import MAX_STATE_BYTES, RulesTask

__all__ = [
    "DEFAULT_RULES",
    "MAX_STATE_BYTES",
    "Rule",
    "Rules",
    "RulesTask",
    "ServiceLevel",
    "WindowOf",
    "load_rules",
    "load_slos",
    "refuse_incomplete",
]
