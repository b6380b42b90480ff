"""Causes on their way to people: of the evidence of an alert what a message shows, and no more.

Evidence is large (windows, a history, series that moved along) and stays in its topic. `gather` passes on the first
causes alone; the decision keeps them packed, with their alert, or for a moment without one: the topics come in any
order, so evidence may overtake its alert.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from cramjam import zstd
from msgspec import Struct

from streammon.results import Alert, Evidence

MOST_CAUSES: Final = 3
"""The likeliest; `streammon why` shows more."""
CAUSE_CHARS: Final = 300
EARLY_BYTES: Final = 30_000
"""Of causes that wait for their alert; those that have waited longest give way."""


def in_brief(evidence: Evidence) -> Evidence:
    """The causes of the evidence, as far as a message shows them."""
    return Evidence(
        alert_id=evidence.alert_id,
        transition=evidence.transition,
        onset_unix_s=evidence.onset_unix_s,
        made_unix_s=evidence.made_unix_s,
        causes=[
            msgspec.structs.replace(
                each,
                what=each.what[:CAUSE_CHARS],
                why=each.why[:CAUSE_CHARS],
                kind=each.kind[:CAUSE_CHARS],
                labels={},
                field=None,
            )
            for each in evidence.causes[:MOST_CAUSES]
        ],
    )


class Causes(Struct, array_like=True, frozen=True):
    """Those of an alert's newest evidence, packed. ``transition``: of the alert's record that they explain."""

    transition: int
    packed: bytes

    @classmethod
    def of(cls, evidence: Evidence) -> Causes:
        causes = msgspec.json.encode(in_brief(evidence).causes)
        return cls(evidence.transition, bytes(zstd.compress(causes, 1)))

    @property
    def told(self) -> dict[str, Any]:
        """As the evidence of an alert has them."""
        return {"causes": msgspec.json.decode(bytes(zstd.decompress(self.packed)))}


Early = dict[str, Causes]
"""Causes that came before their alert, by its id, the oldest first."""


def keep_early(early: Early, alert_id: str, causes: Causes) -> None:
    """Of the same alert, the newest; in all, what there is room for."""
    if _size(alert_id, causes) > EARLY_BYTES:
        return
    if (known := early.pop(alert_id, None)) and known.transition > causes.transition:
        causes = known
    early[alert_id] = causes
    while sum(_size(*each) for each in early.items()) > EARLY_BYTES:
        del early[next(iter(early))]


def _size(alert_id: str, causes: Causes) -> int:
    return len(alert_id.encode()) + len(causes.packed)


def only_causes(alert: Alert) -> Alert:
    """The alert, of its evidence nothing but the causes."""
    causes = alert.evidence.get("causes")
    return msgspec.structs.replace(alert, evidence={"causes": causes} if causes else {})
