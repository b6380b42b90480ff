"""Who should be there: a YAML file.

::

    contact: "#ml-platform"
    expect:
      - {role: agent, hosts: [web-1, web-2]}
      - {role: process, at_least: 2}
      - {role: sink, where: {destination: elasticsearch}, at_least: 1, severity: warning}

Of a role that is named here, absence is what the file says it is. Of any other role, whoever was there once and ended
without a word is missed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from streammon.durations import Duration, seconds
from streammon.heartbeat import Heartbeat
from streammon.results import Severity
from streammon.yaml_files import load_yaml

Text = Annotated[str, Meta(min_length=1, max_length=1000)]
Texts = Annotated[tuple[Text, ...], Meta(max_length=50)]

MINOR_ROLES = ("agent",)
"""Roles whose silence takes away the view of one host, not of all."""


def severity_of(role: str) -> Severity:
    return "warning" if role in MINOR_ROLES else "critical"


class Expectation(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Components that should be there: one on each of some hosts, or some number anywhere."""

    role: Text
    hosts: Annotated[tuple[Text, ...], Meta(max_length=10_000)] = ()
    at_least: Annotated[int, Meta(ge=1, le=10_000)] | None = None
    where: dict[str, str] = {}
    """Details of the heartbeat that have to be so, such as ``destination`` of a sink."""
    stopped_for: Duration = "1h"
    """How long somebody who was stopped in order still counts as there."""
    severity: Severity | None = None
    contact: Text | None = None
    resolution_steps: Texts = ()
    escalation: Texts = ()
    runbook_url: Text | None = None

    def __post_init__(self) -> None:
        if bool(self.hosts) == (self.at_least is not None):
            raise ValueError("give either `hosts` or `at_least`")
        seconds(self.stopped_for)  # raises ValueError

    def covers(self, heartbeat: Heartbeat) -> bool:
        """Whether the component is one of those expected."""
        details = heartbeat.details
        return (
            heartbeat.role == self.role
            and (not self.hosts or heartbeat.host in self.hosts)
            and all(details.get(name) == value for name, value in self.where.items())
        )


class Expected(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file; what it says of all, an expectation may say otherwise."""

    expect: Annotated[tuple[Expectation, ...], Meta(max_length=1000)] = ()
    contact: Text | None = None
    resolution_steps: Texts = ()
    escalation: Texts = ()
    runbook_url: Text | None = None
    forget: Duration = "1d"
    """After this long, whoever is absent and not one of expected hosts is forgotten."""

    def __post_init__(self) -> None:
        if seconds(self.forget) < 60:
            raise ValueError("`forget` must be a minute or more")

    def covering(self, heartbeat: Heartbeat) -> tuple[Expectation, ...]:
        return tuple(each for each in self.expect if each.covers(heartbeat))


def load_expected(file: Path | None) -> Expected:
    """Who is expected; without a file, nobody in particular.

    Raises:
        ConfigError: naming the file, line and column, the field, its value, and what is allowed.
    """
    return load_yaml(file, Expected) if file else Expected()
