"""Rules: from windows, drift results and runs to alerts that a person can act on.

A `Rule` describes when what a series says is a breach, in CEL, and what a person should know then; `load_rules` reads
rules from YAML files. What follows is told of windows, and holds of results, too, but for their order. A `RulesTask`
evaluates them in event time::

    inactive ──breach──► pending ──held for `for`──► firing ──clear for `keep_firing_for`──► resolved
        ▲                   │                         │  ▲
        └──no breach────────┘         acknowledged ◄──┘  └── another severity of the ladder

* **breach**: `expr` is true. **clear**: it is false; or, of a rule that has one, `clear` is true. Else it goes on.
* **held**: from the start of the first breaching window to the end of the newest, with no other verdict in between.
  ``for: 0`` fires on the first. Silence is no recovery, so a pending series may skip windows; only after five minutes
  (or ``for``, if longer) without one it begins anew.
* A window that does not say what is asked for is neither: what is not known decides nothing.
* A series that vanishes while firing goes on, unless the rule's ``no_data`` says that silence is an alert or an end.
* A rule looks at windows of one kind and length: at base windows, unless its ``window`` asks for others.

Promises
- The same windows give the same alerts, byte for byte, however they are cut into batches and wherever a `snapshot` is
  restored between them.
- **One page an episode.** Evaluating a window again changes nothing, and a window that begins before the newest of its
  source, kind and length is not evaluated: in one partition, these come in order of start. (Sessions come in order of
  their ends, and all are evaluated. Results are in order within a series, by their ends.)
- An alert's id is made of the rule, the series and the start, so whoever reads `alerts` twice can tell.
- A rule that was removed or changed while firing is resolved at the next window of any series, and its evidence says
  so. Texts may be corrected without that: `Rule.version` names only what decides.
- State is bounded: only pending and firing series have any, and what is looked back on has a stated room. A breach for
  which there is none is not followed, and counted as ``too_many_episodes``.

It does not look at supplements (``part: "late"``). Several series together are a window of a group: see
`streammon_processors.rules.groups`.

Where things are: `sources` (what rules may look at), `conditions` (what they may say: CEL, the past, what is learned),
`description` (what a rule is), `files` (from YAML), `levels` (SLOs as rules), `groups` (`by`); `lanes` (windows and
results of one kind, as columns), `episodes` (the life of one alert, a pure function), `alerts` (what is said), `task`
(all of it, on a partition); `backtest` (the past, and unit tests), `prometheus` (import).
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
