"""What makes an action a retraining: of which model, from how many labels, how long it may take, and how it is judged.

    actions:
      retrain-ranker:
        type: kubernetes
        do: create_job
        cron_job: train-ranker
        namespace: ml
        mode: approve
        cool_down: 7d
        retrain: {service: shop, model: ranker, job: train-ranker}

It stands with the action, in the one file that says what is done and who may allow it, so that what a person approves
is all of it. What becomes of it is a `streammon.results.Loop` on the topic `loops`. ``docs/retraining.md`` tells it to
users.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from streammon.durations import Duration, seconds

Name = Annotated[str, Meta(min_length=1, max_length=200)]
Measure = Literal["accuracy", "mae", "estimated_accuracy"]
LABELLED: Final[tuple[Measure, ...]] = ("accuracy", "mae")
"""Measured by labels; the first of them that a model has is its measure unless somebody says otherwise."""
SMALLER_IS_BETTER: Final = frozenset({"mae", "error_rate", "slow_rate"})
MOST_WITHIN_S: Final = 90 * 86_400.0


class _Part(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Strict about its keys."""


class Confirm(_Part, frozen=True):
    """How the new version is compared with the old one."""

    measure: Measure | None = None
    """``accuracy`` or ``mae``, by labels; ``estimated_accuracy``, by confidence alone. The first that there is."""
    min_labels: Annotated[int, Meta(ge=100, le=10_000_000)] = 200
    """How many labelled predictions of each version there are before anybody looks."""
    smallest: Annotated[float, Meta(ge=0, le=1)] = 0.01
    """A difference that does not matter; of ``mae``, as a share of the old version's."""
    within: Duration = "7d"
    """How long the new version is watched."""
    errors: bool = True
    """Whether a higher share of failed requests makes it worse, too."""
    slow: Duration | None = None
    """A request that takes longer is slow, and a higher share of those makes it worse, too."""

    @property
    def guards(self) -> tuple[str, ...]:
        """What must not become worse, by requests."""
        return ("error_rate",) * self.errors + ("slow_rate",) * (self.slow is not None)

    @property
    def slow_s(self) -> float | None:
        return None if self.slow is None else seconds(self.slow)

    @property
    def within_s(self) -> float:
        return seconds(self.within)


class Retrain(_Part, frozen=True):
    """Of which model, and how long each part of it may take."""

    service: Name
    model: Name
    job: Name | None = None
    """Of the pipeline run that trains it. A run whose ``run_id`` holds the id of the request is always known."""
    min_labels: Annotated[int, Meta(ge=0)] = 500
    """Labels that came within ``labels_within``; with fewer there is nothing to learn from."""
    min_coverage: Annotated[float, Meta(ge=0, le=1)] = 0.2
    """Labels for each prediction within that time."""
    labels_within: Duration = "1d"
    run_within: Duration = "1d"
    """From the start of the hook to a run, or a deploy."""
    train_within: Duration = "1d"
    deploy_within: Duration = "7d"
    """From the end of the run to the deploy."""
    confirm: Confirm = Confirm()

    def __post_init__(self) -> None:
        for name in ("labels_within", "run_within", "train_within", "deploy_within"):
            _check(name, seconds(getattr(self, name)))
        _check("confirm.within", self.confirm.within_s)
        _ = self.confirm.slow_s

    @property
    def labels_within_s(self) -> float:
        return seconds(self.labels_within)

    def within_s(self, state: str) -> float:
        """How long it may be in this state."""
        within = {
            "training": self.train_within,
            "trained": self.deploy_within,
            "deployed": self.confirm.within,
        }
        return seconds(within.get(state, self.run_within))

    @property
    def key(self) -> str:
        """Of the model, as records have it."""
        return f"{self.service}/{self.model}"


def _check(name: str, length_s: float) -> None:
    if not 0 < length_s <= MOST_WITHIN_S:
        raise ValueError(f"`{name}` has to be longer than nothing and at most 90d")
