"""Remediation as it travels: what is decided about the action that a rule names, what was done, and the policy for it.

    alert that names an action ─► Remediation: awaiting_approval | due | skipped
    awaiting_approval ─► due | refused | skipped | withdrawn | expired
    due ─► started | withdrawn | expired | failed
    started ─► done | failed | unknown

One record a transition on `remediations`, in one partition; its only writer is the deciding task. Whoever executes says
what it does as an `Execution` on `remedies`, and the decision writes that down.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec
from msgspec import Meta, Struct

from streammon.durations import Duration, seconds
from streammon.errors import ConfigError
from streammon.events import _schema
from streammon.results import Severity
from streammon.retraining import Retrain
from streammon.yaml_files import parse_yaml, text_of

REMEDIES: Final = "remedies"
REMEDIATIONS: Final = "remediations"
MOST_IN: Final = 100
"""The largest count of a rate limit."""
MOST_MODELS: Final = 40
"""So many models one file may train anew."""

State = Literal[
    "awaiting_approval", "due", "skipped", "refused", "withdrawn", "expired", "started", "done", "failed", "unknown"
]
Executed = Literal["started", "expired", "done", "failed", "unknown"]
ENDS: Final = frozenset({"skipped", "refused", "withdrawn", "expired", "done", "failed", "unknown"})


class Why(StrEnum):
    """Why nothing was done. The values go over the wire: add, never rename."""

    COOL_DOWN = "cool_down"  # the action was due a moment ago
    RATE_LIMIT = "rate_limit"  # the action was due too often
    STALE = "stale"  # the alert, or the approval, is old news: streammon was away, or reads an old log
    IN_PROGRESS = "in_progress"  # the same action for the same alert has not ended yet
    UNKNOWN_ACTION = "unknown_action"  # no such action in the file
    CHANGED = "changed"  # the action is not the one any more that was proposed
    TOO_MANY = "too_many"  # more is open than is remembered
    RESOLVED = "resolved"  # the alert has ended meanwhile
    UNANSWERED = "unanswered"  # nobody approved it in time
    LATE = "late"  # nobody was there to execute it in time
    OTHER_MODEL = "other_model"  # the alert is about another model than the action trains
    TOO_FEW_LABELS = "too_few_labels"  # there is too little to learn from
    LOW_COVERAGE = "low_coverage"  # too few predictions have a label


class Approval(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who said yes or no."""

    command_id: str
    by: str
    via: str
    time_unix_s: float
    note: str | None = None


class Remediation(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type", tag="remediation"):
    """The newest state of one remediation; one record a transition, under the same id."""

    schema: int = msgspec.field(default_factory=_schema)
    id: str
    """Of the alert, its transition and the action: the same whenever it is decided again."""
    action: str
    action_version: str | None = None
    """Names the action as the file described it; None: there is none."""
    state: State
    transition: int = 0
    dry_run: bool = False
    time_unix_s: float
    """By the broker's clock."""
    proposed_unix_s: float
    alert_id: str
    alert_transition: int
    rule: str
    severity: Severity
    labels: dict[str, str] = {}
    summary: str = ""
    reason: Why | None = None
    approval: Approval | None = None
    detail: str | None = None
    """What was done, or why not, for people; without secrets."""


class Execution(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type", tag="execution"):
    """What whoever executes says about a remediation that was due."""

    schema: int = msgspec.field(default_factory=_schema)
    remediation: Remediation
    """As it was due."""
    state: Executed
    time_unix_s: float
    reason: Why | None = None
    detail: str | None = None


class Requests(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type", tag="requests"):
    """How many requests one version of a model had in a window, how many failed, and how many were slow."""

    schema: int = msgspec.field(default_factory=_schema)
    service: str
    model: str
    model_version: str | None = None
    start_unix_s: float
    end_unix_s: float
    count: int
    error_count: int
    slow_count: int | None = None
    """Those that took longer than is asked about, if anything is."""


def remediation_id(alert_id: str, transition: int, action: str) -> str:
    return blake2b(msgspec.json.encode([alert_id, transition, action]), digest_size=12).hexdigest()


# --- the file ---------------------------------------------------------------------------------------------------------


class AtMost(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """So many times in so long."""

    count: Annotated[int, Meta(ge=1, le=MOST_IN)] = 3
    per: Duration = "1d"

    def __post_init__(self) -> None:
        if self.per_s <= 0:
            raise ValueError("`per` has to be longer than nothing")

    @property
    def per_s(self) -> float:
        return seconds(self.per)


class Policy(Struct, frozen=True, kw_only=True):
    """When an action may be done: what the fields mean that every action has.

    The limits hold for the action as a whole, whatever alert asks for it.
    """

    mode: Literal["dry_run", "approve", "auto"] = "dry_run"
    """``dry_run``: say what would be done. ``approve``: wait for a person. ``auto``: do it."""
    when: Literal["firing", "no_data"] = "firing"
    """Which state of the alert asks for it."""
    cool_down: Duration = "30m"
    """The least time between two of it."""
    at_most: AtMost = AtMost()
    approve_within: Duration = "1h"
    """How long a person has for saying yes."""
    timeout: Duration = "30s"
    """How long doing it may take."""
    retrain: Retrain | None = None
    """It trains a model anew, and is followed until it is known whether that helped."""

    def __post_init__(self) -> None:
        _ = self.cool_down_s
        if self.approve_within_s <= 0:
            raise ValueError("`approve_within` has to be longer than nothing")
        if not 0 < self.timeout_s <= 300:
            raise ValueError("`timeout` has to be more than 0 and at most 5m")

    @property
    def cool_down_s(self) -> float:
        return seconds(self.cool_down)

    @property
    def approve_within_s(self) -> float:
        return seconds(self.approve_within)

    @property
    def timeout_s(self) -> float:
        return seconds(self.timeout)


class Known(NamedTuple):
    """An action of the file, as far as deciding goes, and the version of the whole of it."""

    policy: Policy
    version: str


Policies = Mapping[str, Known]


class _Policies(Struct, frozen=True, forbid_unknown_fields=True):
    actions: dict[str, Policy]


class _Plain(Struct, frozen=True):
    actions: dict[str, dict[str, Any]]


def load_policies(file: Path | None) -> Policies:
    """The policies in a file of actions; without a file there are none.

    Raises:
        ConfigError: naming the file, line and column.
    """
    if file is None:
        return {}
    text = text_of(file)
    policies = parse_yaml(text, _Policies, str(file)).actions
    _check_models(policies, file)
    return {name: Known(policies[name], version) for name, version in versions(text, str(file)).items()}


def _check_models(policies: Mapping[str, Policy], file: Path) -> None:
    """Raises ConfigError: there are too many, or one that is watched in two ways."""
    models: dict[str, tuple[str, Retrain]] = {}
    for name, policy in policies.items():
        if policy.retrain is not None:
            other, retrain = models.setdefault(policy.retrain.key, (name, policy.retrain))
            if retrain != policy.retrain:
                raise ConfigError(
                    f"{file}: actions {other!r} and {name!r} both train {retrain.key}: give them the same `retrain`"
                )
    if len(models) > MOST_MODELS:
        raise ConfigError(f"{file}: trains {len(models)} models; one file may train {MOST_MODELS}")


def versions(text: str, file: str) -> dict[str, str]:
    """The version of each action in the text of a file: another one as soon as anything in it is another.

    Raises:
        ConfigError: naming the file.
    """
    actions = parse_yaml(text, _Plain, file).actions
    return {name: _version(content, f"{file}: action {name!r}") for name, content in actions.items()}


def _version(content: Mapping[str, Any], what: str) -> str:
    try:
        return blake2b(msgspec.json.encode(content, order="sorted"), digest_size=6).hexdigest()
    except TypeError:
        raise ConfigError(f"{what}: holds what JSON does not have, such as a key that is no text: quote it") from None
