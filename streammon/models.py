"""How models are watched: one YAML file, with a default for everything, and for every model that it does not name.

    profile_window: 5m
    models:
      - service: shop
        model: ranker
        max_false_alarms_per_month: 1
        drift:
          window: 1h
          reference: {first: 5000}
          text: [features.query]
          pairs: [[features.price, features.area]]
        labels: {horizon: 7d, slices: [tenant, features.country]}

The first entry that fits a model is the one that holds; a ``service`` or ``model`` that is left out fits all.
"""

from __future__ import annotations

from math import ceil
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

from streammon.durations import Duration, seconds
from streammon.yaml_files import load_yaml

Positive = Annotated[int, Meta(ge=1)]
COHORTS = 168
"""Times of predictions that wait for labels at once, at most: each hour of a week."""


class Part(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of what is said about a model: strict about its keys."""


class ReferencePolicy(Part, frozen=True):
    """What drift is measured from, where nobody has published a reference with ``streammon drift reference``."""

    first: Annotated[int, Meta(ge=20, le=100_000)] = 1000
    """The first events of each model version are its reference, and fix the bins in which its numbers are counted."""
    rolling: Duration | None = None
    """Hold a window against the profiles of this long before it instead; counted in the same bins."""
    same_hour_last_week: bool = False
    """Hold a window against the profiles of the same time a week before it instead; counted in the same bins."""

    def __post_init__(self) -> None:
        if self.rolling is not None and self.same_hour_last_week:
            raise ValueError("rolling and same_hour_last_week exclude each other; keep one")
        if self.rolling is not None and not seconds(self.rolling):
            raise ValueError("rolling is 0; write how long a time a window is held against, such as 7d")


class DriftPolicy(Part, frozen=True):
    """What its inputs and outputs are held against, and how."""

    window: Duration = "1h"
    """How long a time is tested as one; a multiple of ``profile_window``."""
    reference: ReferencePolicy = ReferencePolicy()
    text: tuple[str, ...] = ()
    """Targets, such as ``features.query``, that are free text: only its length is looked at."""
    categorical: tuple[str, ...] = ()
    """Targets whose numbers are names, such as ``features.store_id``."""
    pairs: Annotated[tuple[tuple[str, str], ...], Meta(max_length=20)] = ()
    """Targets whose correlation is watched: ``[[features.price, features.area]]``."""

    def __post_init__(self) -> None:
        for target in (*self.text, *self.categorical, *(each for pair in self.pairs for each in pair)):
            if target not in ("prediction", "confidence") and not target.startswith("features."):
                raise ValueError(f"{target!r} is no target; there are features.NAME, prediction and confidence")

    @property
    def window_s(self) -> float:
        return seconds(self.window)


class DetectorPolicy(Part, frozen=True):
    """Online detectors on its measurements."""


class LabelPolicy(Part, frozen=True):
    """How its labels come, and what is made of them."""

    horizon: Duration = "7d"
    """How long a prediction waits for its label, and a label for its prediction."""
    window: Duration = "5m"
    """How long a time the quality of predictions is told of."""
    slices: tuple[str, ...] = ()
    """Fields of inference events (``tenant``, ``features.country``) by whose values quality is told, too."""
    task: Literal["classification", "regression"] | None = None
    """What it predicts; by the values if not given: text and truth are classes, numbers with fractions are not."""
    positive: str | bool | float | None = None
    """The class that precision, recall and F1 are of; of two classes 0 and 1, or false and true, the latter."""

    @property
    def cohort_s(self) -> float:
        """How long a time of predictions is judged as one, as labels come in: `COHORTS` of them fill the horizon."""
        return self.window_s * max(1, ceil(self.horizon_s / COHORTS / self.window_s))

    @property
    def horizon_s(self) -> float:
        return seconds(self.horizon)

    @property
    def window_s(self) -> float:
        return seconds(self.window)


class ModelPolicy(Part, frozen=True):
    """How one model, or many, are watched."""

    service: str | None = None
    """Its service; any if not given."""
    model: str | None = None
    """Its name; any if not given."""
    max_false_alarms_per_month: Annotated[float, Meta(gt=0)] = 1.0
    """How often a model that is as it was may be called drifted, by all detectors together."""
    drift: DriftPolicy = DriftPolicy()
    detectors: DetectorPolicy = DetectorPolicy()
    labels: LabelPolicy = LabelPolicy()

    def fits(self, service: str, model: str) -> bool:
        return self.service in (None, service) and self.model in (None, model)


class Models(Struct, frozen=True, forbid_unknown_fields=True):
    """All that a file says."""

    models: tuple[ModelPolicy, ...] = ()
    profile_window: Duration = "5m"
    """How long a time one profile is of, for all models; the windows of drift are made of these."""

    def __post_init__(self) -> None:
        part_s = self.profile_window_s
        if not part_s:
            raise ValueError("profile_window is 0; write a length, such as 5m")
        for each in self.models:
            parts = each.drift.window_s / part_s
            if parts < 1 or abs(parts - round(parts)) > 1e-6:
                raise ValueError(
                    f"drift.window of model {each.model or 'any'} is {each.drift.window}, "
                    f"which is no multiple of profile_window, {self.profile_window}"
                )

    @property
    def profile_window_s(self) -> float:
        return seconds(self.profile_window)

    def policy(self, service: str, model: str) -> ModelPolicy:
        """How this model is watched."""
        return next((each for each in self.models if each.fits(service, model)), _DEFAULT)


_DEFAULT = ModelPolicy()


def load_models(file: Path | None) -> Models:
    """What a file says of models; without a file, nothing.

    Raises:
        ConfigError: naming the file, line and column, the model, the field, its value, and what is allowed.
    """
    return Models() if file is None else load_yaml(file, Models)
