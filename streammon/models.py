"""How models are watched: one YAML file, with a default for everything, and for every model that it does not name.

    models:
      - service: shop
        model: ranker
        max_false_alarms_per_month: 1
        drift: {window: 1h, reference: {first: 5000}}
        labels: {horizon: 7d, slices: [tenant, features.country]}

The first entry that fits a model is the one that holds; a ``service`` or ``model`` that is left out fits all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

from streammon.durations import Duration, seconds
from streammon.yaml_files import load_yaml

Positive = Annotated[int, Meta(ge=1)]
Share = Annotated[float, Meta(ge=0, le=1)]
TestName = Literal["ks", "wasserstein", "chi_square", "psi", "kl", "jensen_shannon", "hellinger"]
"""`streammon_processors.drift.statistics` says what each is."""


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
    """How long a time is tested as one."""
    reference: ReferencePolicy = ReferencePolicy()
    tests: dict[str, TestName] = {}
    """By target, such as ``features.age: ks``: which test; left out, it is chosen by kind and size of the reference."""
    threshold: Annotated[float, Meta(gt=0)] = 0.1
    """What a statistic has to reach to be called drift, however sure it is: of all tests of distributions."""
    thresholds: dict[str, Annotated[float, Meta(gt=0)]] = {}
    """The same, by target."""
    share_threshold: Annotated[float, Meta(gt=0, le=1)] = 0.02
    """The same of shares: of events more that lack a target, or have another type, or lie outside its range."""
    min_samples: Annotated[int, Meta(ge=20)] = 100
    """With fewer values in the window, or in the reference, nothing is tested."""
    weights: dict[str, Annotated[float, Meta(gt=0)]] = {}
    """By target: how much it matters beside others, which have 1; for example the importance of a feature."""
    dataset_share: Annotated[float, Meta(gt=0, le=1)] = 0.5
    """As much of the weight of its targets has to drift that the model is called drifted: the target ``dataset``."""
    false_discovery: Literal["bh", "by"] = "bh"
    """Benjamini and Hochberg, for tests that are independent or go together; or Benjamini and Yekutieli, for all."""
    budget_share: Share = 0.5
    """How much of ``max_false_alarms_per_month`` the tests of profiles may use up; online detectors have the rest."""

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

    @property
    def horizon_s(self) -> float:
        return seconds(self.horizon)

    @property
    def window_s(self) -> float:
        return seconds(self.window)


class RetrainPolicy(Part, frozen=True):
    """When it is trained anew, and how that is judged."""


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
    retrain: RetrainPolicy | None = None

    def fits(self, service: str, model: str) -> bool:
        return self.service in (None, service) and self.model in (None, model)


class Models(Struct, frozen=True, forbid_unknown_fields=True):
    """All that a file says."""

    models: tuple[ModelPolicy, ...] = ()

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
