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
        detectors: {season: week, targets: {error: [{}], duration_s: [{}, {detector: adwin, per_event: true}]}}
        labels: {horizon: 7d, slices: [tenant, features.country]}

The first entry that fits a model is the one that holds; a ``service`` or ``model`` that is left out fits all.
"""

from __future__ import annotations

from math import ceil
from pathlib import Path
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from streammon.durations import Duration, seconds
from streammon.results import DISTRIBUTIONS
from streammon.yaml_files import load_yaml

Positive = Annotated[int, Meta(ge=1)]
TestName = Literal["ks", "wasserstein", "chi_square", "psi", "kl", "jensen_shannon", "hellinger"]
"""`streammon_processors.drift.statistics` says what each is."""
COHORTS = 168
"""Times of predictions that wait for labels at once, at most: each hour of a week."""

ONLINE_SHARE: Final = 0.5
"""Of a model's budget of false alarms, what the online detectors may use; the rest is for tests of data drift."""


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
    learn: Duration = "7d"
    """How long it is learned how far a version lies from its first events by itself; 0: not at all."""

    def __post_init__(self) -> None:
        if self.rolling is not None and self.same_hour_last_week:
            raise ValueError("rolling and same_hour_last_week exclude each other; keep one")
        if self.rolling is not None and not seconds(self.rolling):
            raise ValueError("rolling is 0; write how long a time a window is held against, such as 7d")
        seconds(self.learn)

    @property
    def learn_s(self) -> float:
        return seconds(self.learn)


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

    def __post_init__(self) -> None:
        named = (*self.tests, *self.thresholds, *self.weights, *self.text, *self.categorical)
        for target in (*named, *(each for pair in self.pairs for each in pair)):
            if target not in ("prediction", "confidence") and not target.startswith("features."):
                raise ValueError(f"{target!r} is no target; there are features.NAME, prediction and confidence")

    @property
    def window_s(self) -> float:
        return seconds(self.window)


Detector = Literal["page_hinkley", "adwin", "kswin", "ddm", "eddm", "hddm_a", "hddm_w", "fhddm"]
PER_EVENT: Final = ("page_hinkley", "adwin", "eddm")
"""Those cheap enough to be given every event."""
OF_RATES: Final = ("ddm", "eddm", "hddm_a", "hddm_w", "fhddm")
"""Those that are about errors, and know nothing but shares from 0 to 1."""
RATES: Final = ("error", "accuracy")
QUALITIES: Final = ("accuracy", "mae", "score")
"""What comes with labels, in the topic `quality`; nothing of it is in an event."""
DETECTED: Final = ("duration_s", "error", "confidence", "input_tokens", "output_tokens", "accuracy")
"""What is watched unless a policy says otherwise."""
DETECTABLE: Final = tuple(dict.fromkeys((*DISTRIBUTIONS, "error", *QUALITIES)))


class Use(Part, frozen=True):
    """A detector, and how it is set."""

    detector: Detector = "page_hinkley"
    settings: dict[str, float] = {}
    """As River calls them. Without a ``threshold``, that of `page_hinkley` follows from the budget of false alarms;
    the others have defaults that `streammon drift calibrate` replaces by what a history needs."""
    per_event: bool = False
    """Whether it sees every event instead of sums over five minutes: sooner, and for 20 to 60 µs an event."""

    def __post_init__(self) -> None:
        if self.per_event and self.detector not in PER_EVENT:
            raise ValueError(f"{self.detector} takes too long for every event; per_event: {', '.join(PER_EVENT)}")


class DetectorPolicy(Part, frozen=True):
    """Online detectors on its measurements: whether they still come as they did."""

    targets: dict[str, tuple[Use, ...]] = {}
    """By what is watched, the detectors on it; if none is given, `DETECTED`, each by `page_hinkley`."""
    effect: Annotated[float, Meta(gt=0, le=4)] = 0.5
    """The smallest shift worth an alarm, in standard deviations of sums over five minutes."""
    season: Literal["day", "week", "none"] = "day"
    """What comes again and is no drift. ``week`` takes two weeks to learn, and three times the memory."""
    warm_up: Duration | None = None
    """How long a version is watched before anything is said of it; as long as its season takes, if not given."""
    cool_down: Duration = "6h"
    """How long, after an alarm, the new level is learned before it is watched again."""
    heartbeat: Duration = "1h"
    """How often a record says that nothing has changed, or that it still is as changed."""

    def __post_init__(self) -> None:
        for target, uses in self.targets.items():
            if target not in DETECTABLE:
                raise ValueError(f"target {target!r} is none that can be watched: {', '.join(DETECTABLE)}")
            if len({use.detector for use in uses}) < len(uses):
                raise ValueError(f"a detector is named twice for {target}: their results could not be told apart")
            for use in uses:
                if use.detector in OF_RATES and target not in RATES:
                    raise ValueError(f"{use.detector} is about {' and '.join(RATES)} only, not {target}")
                if use.per_event and target in QUALITIES:
                    raise ValueError(f"{target} comes with labels, not with events: leave out per_event")
        for duration in (self.warm_up_s, self.cool_down_s, self.heartbeat_s):
            if duration <= 0:
                raise ValueError("warm_up, cool_down and heartbeat are longer than 0")

    @property
    def watched(self) -> dict[str, tuple[Use, ...]]:
        """By target, the detectors on it."""
        return self.targets or dict.fromkeys(DETECTED, (Use(),))

    @property
    def warm_up_s(self) -> float:
        return seconds(
            {"none": "1d", "day": "2d", "week": "14d"}[self.season] if self.warm_up is None else self.warm_up
        )

    @property
    def cool_down_s(self) -> float:
        return seconds(self.cool_down)

    @property
    def heartbeat_s(self) -> float:
        return seconds(self.heartbeat)


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

    def __post_init__(self) -> None:
        if self.window_s < 1:
            raise ValueError(f"window is {self.window!r}; it must be 1s or longer")
        if self.horizon_s < self.window_s:
            raise ValueError(f"horizon is {self.horizon!r}; it must be as long as window, {self.window!r}, or longer")

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
