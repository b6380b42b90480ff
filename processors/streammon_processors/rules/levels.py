"""Service level objectives: what share of requests has to be good, and the alerts on how fast the rest is used up.

An objective of 0.999 over 30 days lets one request in a thousand be bad: that is the *error budget*. The *burn rate*
is how many times faster than that it is being used; at 1 it lasts exactly as long as the window. After chapter 5 of
Google's Site Reliability Workbook, each objective becomes three rules, each with a long window, which says that it
matters, and a short one, which says that it is still so, and ends the alert soon after it is over:

========  ===========  ============  ============================  ============
rule      budget used  long, short   burn rate of a 30-day window  severity
========  ===========  ============  ============================  ============
-fast     2 %          1 h, 5 min    14.4                          critical
-medium   5 %          6 h, 30 min   6                             critical
-slow     10 %         3 d, 6 h      1                             warning
========  ===========  ============  ============================  ============

They are three rules and no ladder, since they look at windows of different lengths. Of another window, the burn rates
are the share of the budget times its length over the long window, within two bounds. Below 1 nothing is wrong, so it is
at least 1. And nothing burns faster than when every request is bad, `MOST_OF_ALL` of which always is an alert.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Final, Literal, NamedTuple

from msgspec import Meta, Struct

from streammon.durations import Duration, seconds, shown
from streammon.results import DISTRIBUTIONS, Severity
from streammon_processors.rules.conditions.past import allowed
from streammon_processors.rules.description import Rule, digest

MIN_WINDOW_S: Final = 3 * 86_400.0
MAX_WINDOW_S: Final = 90 * 86_400.0
MOST_OF_ALL: Final = 0.9
"""An alert, whatever the objective: this share of all requests is bad."""


class Burn(NamedTuple):
    """One of the alerts: so much of the budget is gone within ``long``, and it goes on."""

    name: Literal["fast", "medium", "slow"]
    share: float
    long: str
    short: str
    windows: str
    """The windows that the rule looks at: as long as allows it to look so far back."""


BURNS: Final = (
    Burn("fast", 0.02, "1h", "5m", "1m"),
    Burn("medium", 0.05, "6h", "30m", "5m"),
    Burn("slow", 0.10, "3d", "6h", "1h"),
)


class Latency(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Good is a request whose ``field`` is at most ``under``; those that do not have the field do not count."""

    under: Annotated[float, Meta(gt=0)]
    field: str = "duration_s"


class LatencyIndicator(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``indicator: {latency: {under: 0.3}}``"""

    latency: Latency


class Severities(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How bad each of the alerts is."""

    fast: Severity = "critical"
    medium: Severity = "critical"
    slow: Severity = "warning"


class ServiceLevel(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """What share of the requests of each series has to be good, and what a person should know if they are not."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=90)]
    objective: float
    """The share of good requests, a fraction such as 0.999."""
    window: Duration = "30d"
    """Over how long; it ends now and moves along."""
    indicator: Literal["availability"] | LatencyIndicator = "availability"
    """Bad are the requests that fail; or, of ``{latency: {field: duration_s, under: 0.3}}``, those that are slow."""
    source: Literal["inference"] = "inference"
    where: dict[str, str] = {}
    """Labels that a series must have; each that has them has a budget of its own."""
    severity: Severities = Severities()
    summary: str | None = None
    """One line for a person; ``{label}`` and ``{value}`` are filled in."""
    resolution_steps: tuple[str, ...] = ()
    contact: str | None = None
    escalation: tuple[str, ...] = ()
    runbook_url: str | None = None

    def __post_init__(self) -> None:
        if not 0.5 <= self.objective < 1:
            raise ValueError(f"`objective` is {self.objective:g}; it is a fraction from 0.5 to below 1, such as 0.999")
        if self.latency and self.latency.field not in DISTRIBUTIONS:
            raise ValueError(f"`latency.field` is {self.latency.field!r}; allowed: {', '.join(DISTRIBUTIONS)}")
        _ = self.rules  # raises ValueError

    @property
    def latency(self) -> Latency | None:
        return self.indicator.latency if isinstance(self.indicator, LatencyIndicator) else None

    @property
    def good(self) -> str:
        """Which requests are good, in words."""
        return f"{self.latency.field} <= {self.latency.under:g}" if self.latency else "no error"

    @cached_property
    def window_s(self) -> float:
        """Raises ValueError."""
        try:
            found = seconds(self.window)
        except ValueError as error:
            raise ValueError(f"`window`: {error}") from None
        if not MIN_WINDOW_S <= found <= MAX_WINDOW_S:
            raise ValueError(f"`window` is {self.window!r}; an objective is over 3d to 90d")
        return found

    @property
    def allowed(self) -> float:
        """The share of requests that may be bad."""
        return allowed(self.objective)

    def burn_threshold(self, burn: Burn) -> float:
        """The burn rate that uses this share of the budget within the long window; see the module for its bounds."""
        exact = burn.share * self.window_s / seconds(burn.long)
        return min(max(exact, 1.0), MOST_OF_ALL / self.allowed)

    @cached_property
    def rules(self) -> tuple[Rule, ...]:
        """The rules that alert on it."""
        return tuple(map(self._rule, BURNS))

    def _rule(self, burn: Burn) -> Rule:
        threshold = f"{self.burn_threshold(burn):.10g}"
        spans = f"{shown(seconds(burn.long))} and {shown(seconds(burn.short))}"
        return Rule(
            name=f"{self.name}-{burn.name}",
            source=self.source,
            where=self.where,
            window=burn.windows,
            expr=" && ".join(f"{self._burn_rate(span)} > {threshold}" for span in (burn.long, burn.short)),
            severity=getattr(self.severity, burn.name),
            summary=self.summary
            or f"{{service}}/{{model}} uses up the error budget of {self.name} {{value}} times too fast ({spans})",
            resolution_steps=self.resolution_steps,
            contact=self.contact,
            escalation=self.escalation,
            runbook_url=self.runbook_url,
        )

    def _burn_rate(self, span: str) -> str:
        of = f"{self.latency.field}, {self.latency.under!r}, " if self.latency else ""
        return f'burn_rate({of}{self.objective!r}, "{span}")'

    @cached_property
    def counted(self) -> str:
        """Names what is counted: equal for objectives of the same requests over as long, whatever their objective."""
        return digest((self.name, self.where, self.good, self.window_s), size=6)
