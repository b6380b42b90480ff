"""The alerts that the notifier follows: little of each, so that ten thousand fit into one record.

What a matcher looks at is kept of all of them. The whole record, with its evidence, is kept until people have been told
(its texts and likely causes until the end), for as many alerts as fit into `STORIES_BYTES`; the others are told by rule
and labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Final

import msgspec
from cramjam import zstd
from msgspec import Struct
from prometheus_client import Counter

from streammon.results import Alert, AlertState, Evidence, Severity
from streammon_processors.notifier.causes import Causes, Early, keep_early

LIMITED = Counter("streammon_notifier_limited", "What the notifier had no room for, by which limit", ["limit"])
ALERTS_BYTES: Final = 1_450_000
"""Of all alerts together, without their stories: more than 10,000 with ordinary labels. With the other limits, what may
fill a snapshot, were it as hard to compress as noise."""
STORIES_BYTES: Final = 350_000
"""Of all stories and causes together, compressed."""
LABELS_BYTES: Final = 4096
TEXTS_BYTES: Final = 20_000
"""A story without its evidence, uncompressed."""
STALE_S: Final = 300.0
"""An alert whose newest change is so long ago is read late, and its end may come right behind."""
SEVERITIES: Final[Sequence[Severity]] = ("critical", "warning", "info")
STATES: Final[Sequence[AlertState]] = ("pending", "firing", "acknowledged", "resolved", "no_data")

OWN: Final = "notifier:"
"""How the ids of alerts about the notifier itself begin."""
_MEMBERSHIP_BYTES: Final = 24
_HEX, _TEXT = b"#", b"="


class Limit(StrEnum):
    """What there was no room for. The values are labels: add, never rename."""

    ALERTS = "alerts"  # followed no further; an alert of the notifier's own says so
    STORIES = "stories"  # told by rule and labels alone
    CAUSES = "causes"  # told without its likely causes
    GROUPS = "groups"  # told in one message with others
    LABELS = "labels"  # too long: some are left out
    SILENCES = "silences"  # not obeyed


class Followed(Struct, array_like=True, kw_only=True):
    """One alert that has fired. ``number`` is its short name; ``story`` its compressed record.

    Fields are added at the end, with a default: so the snapshots of earlier versions can be read.
    """

    number: int
    name: bytes
    """Its id; see `_name`."""
    rule: str
    phase: int
    """Of `STATES`."""
    rank: int
    """Of `SEVERITIES`: 0 is the worst."""
    labels: dict[str, str]
    transition: int
    started_unix_s: float
    updated_unix_s: float
    stale: bool
    story: bytes = b""
    causes: Causes | None = None

    @property
    def id(self) -> str:
        return self.name[1:].hex() if self.name[:1] == _HEX else self.name[1:].decode()

    @property
    def state(self) -> AlertState:
        return STATES[self.phase]

    @property
    def severity(self) -> Severity:
        return SEVERITIES[self.rank]

    @property
    def active(self) -> bool:
        return self.state != "resolved"

    @property
    def acknowledged(self) -> bool:
        return self.state == "acknowledged"

    @property
    def size(self) -> int:
        """Bytes of it in a snapshot, without its story and causes."""
        return len(msgspec.msgpack.encode(msgspec.structs.replace(self, story=b"", causes=None))) + _MEMBERSHIP_BYTES

    @property
    def story_size(self) -> int:
        """Bytes of the rest."""
        return len(self.story) + (len(self.causes.packed) if self.causes else 0)

    @property
    def matched(self) -> dict[str, str]:
        """What matchers see: its labels, and ``rule``, ``severity`` and ``alert_id``."""
        return {**self.labels, "rule": self.rule, "severity": self.severity, "alert_id": self.id}

    def told(self) -> Alert:
        """The record to tell, with the likely causes that came to light since."""
        alert = self.record()
        return msgspec.structs.replace(alert, evidence=alert.evidence | self.causes.told) if self.causes else alert

    def record(self) -> Alert:
        """The whole of it, or what is known."""
        if self.story:
            return msgspec.json.decode(bytes(zstd.decompress(self.story)), type=Alert)
        labels = " ".join(f"{name}={value}" for name, value in self.labels.items())
        return Alert(
            id=self.id,
            rule=self.rule,
            rule_version="",
            state=self.state,
            severity=self.severity,
            labels=self.labels,
            value=None,
            condition="",
            summary=f"{self.rule}: {labels}",
            started_unix_s=self.started_unix_s,
            updated_unix_s=self.updated_unix_s,
            ended_unix_s=None if self.active else self.updated_unix_s,
            transition=self.transition,
            evidence={"note": "not_kept"},
        )


class Following:
    """All alerts that are followed, by number and by id, within what there is room for.

    ``early``: the causes of alerts that have not come yet.
    """

    def __init__(self, alerts: list[Followed], next_number: int, early: Early) -> None:
        self.by_number = {alert.number: alert for alert in alerts}
        self._by_id = {alert.id: alert for alert in alerts}
        self.next_number = next_number
        self.bytes = sum(alert.size for alert in alerts)
        self._stories_bytes = sum(alert.story_size for alert in alerts)
        self._early = early

    def __len__(self) -> int:
        return len(self.by_number)

    def __iter__(self) -> Iterator[Followed]:
        return iter(self.by_number.values())

    def get(self, id_: str) -> Followed | None:
        return self._by_id.get(id_)

    def take(self, alert: Alert, now_unix_s: float) -> Followed | None:
        """Follow the newest state of an alert; None if that is no news, or there is no room for it."""
        known = self._by_id.get(alert.id)
        if alert.transition <= (known.transition if known else -1) or (not known and alert.state == "resolved"):
            return None
        followed = self._followed(alert, known, now_unix_s)
        if not known and self.bytes + followed.size > ALERTS_BYTES and not alert.id.startswith(OWN):
            LIMITED.labels(Limit.ALERTS).inc()
            return None
        if known:
            self.forget(known)
        else:
            self.next_number += 1
        self._keep(followed)
        self._tell_story(followed, alert)
        if known and known.causes:
            self._tell_causes(followed, known.causes)
        elif early := self._early.pop(alert.id, None):
            self._tell_causes(followed, early)
        return followed

    def explain(self, evidence: Evidence) -> Followed | None:
        """Keep the likely causes with their alert; None: it has not come yet, or that is no news."""
        followed, causes = self._by_id.get(evidence.alert_id), Causes.of(evidence)
        if followed is None:
            keep_early(self._early, evidence.alert_id, causes)
            return None
        known = followed.causes
        if known and (causes.transition < known.transition or causes == known):
            return None
        self._tell_causes(followed, causes)
        return followed if followed.causes else None

    def _followed(self, alert: Alert, known: Followed | None, now_unix_s: float) -> Followed:
        return Followed(
            number=known.number if known else self.next_number,
            name=_name(alert.id),
            rule=alert.rule,
            phase=STATES.index(alert.state),
            rank=SEVERITIES.index(alert.severity),
            labels=_fitting(alert.labels),
            transition=alert.transition,
            started_unix_s=alert.started_unix_s,
            updated_unix_s=alert.updated_unix_s,
            stale=alert.updated_unix_s < now_unix_s - STALE_S,
        )

    def _keep(self, followed: Followed) -> None:
        self.by_number[followed.number] = self._by_id[followed.id] = followed
        self.bytes += followed.size

    def _tell_story(self, followed: Followed, alert: Alert) -> None:
        """The whole record if there is room for it, else its texts, else nothing."""
        self._stories_bytes -= len(followed.story)
        followed.story = b""
        for story in _stories(alert):
            if self._stories_bytes + len(story) <= STORIES_BYTES or alert.id.startswith(OWN):
                followed.story = story
                self._stories_bytes += len(story)
                return
        LIMITED.labels(Limit.STORIES).inc()

    def _tell_causes(self, followed: Followed, causes: Causes) -> None:
        """If there is room for them."""
        self._stories_bytes -= followed.story_size
        followed.causes = causes
        if self._stories_bytes + followed.story_size > STORIES_BYTES:
            followed.causes = None
            LIMITED.labels(Limit.CAUSES).inc()
        self._stories_bytes += followed.story_size

    def has_been_told(self, followed: Followed) -> None:
        """The evidence need not be kept: it was sent, and is in `alerts`."""
        if followed.story and (alert := followed.record()).evidence:
            self._tell_story(followed, without_evidence(alert))

    def forget(self, followed: Followed) -> None:
        if self.by_number.pop(followed.number, None) is not None:
            del self._by_id[followed.id]
            self.bytes -= followed.size
            self._stories_bytes -= followed.story_size


def _name(id_: str) -> bytes:
    """An id in bytes; what is hexadecimal, as the ids of rules are, in half as many."""
    try:
        short = bytes.fromhex(id_)
    except ValueError:
        short = b""
    return _HEX + short if short.hex() == id_ else _TEXT + id_.encode()


def without_evidence(alert: Alert) -> Alert:
    return msgspec.structs.replace(alert, evidence={})


def _stories(alert: Alert) -> Iterator[bytes]:
    """The record compressed, the best first."""
    plain = without_evidence(alert)
    if len(msgspec.json.encode(plain)) <= TEXTS_BYTES:
        for each in (alert, plain):
            yield bytes(zstd.compress(msgspec.json.encode(each), 1))


def _fitting(labels: dict[str, str]) -> dict[str, str]:
    """As many of the labels as may be kept."""
    kept: dict[str, str] = {}
    left = LABELS_BYTES
    for name, value in labels.items():
        left -= len(msgspec.json.encode((name, value)))
        if left < 0:
            LIMITED.labels(Limit.LABELS).inc()
            break
        kept[name] = value
    return kept
