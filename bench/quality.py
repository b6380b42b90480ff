"""What quality costs: µs a pair by pairs a record and slices, beside River's metrics; what a week of cohorts takes.

And how far off estimates without labels are, on River's data sets, beside the last accuracy that was measured.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import river.datasets
import river.linear_model
import river.metrics
import river.preprocessing
import river.tree
from river.datasets import synth as river_synth

from streammon.broker import Record
from streammon.models import LabelPolicy, ModelPolicy, Models
from streammon.outcomes import CONFIDENCE_BINS, Cohort, Outcomes
from streammon_processors.contract import Stored
from streammon_processors.quality import QualityTask
from streammon_processors.quality.estimate import Calibration

BEGIN_UNIX_S = 1_700_006_400.0
PAIRS = 50_000
RECORDS = 2000
metrics: Any = river.metrics  # which have no types
datasets: Any = river.datasets
synth: Any = river_synth
tree: Any = river.tree
linear_model: Any = river.linear_model
preprocessing: Any = river.preprocessing


def outcomes(count: int, first_s: float, step_s: float, slices: Sequence[str], rng: random.Random) -> Outcomes:
    """Of a binary classifier that knows how sure it is; a label each ``step_s``, minutes after its prediction."""
    confidence = [0.5 + rng.random() / 2 for _ in range(count)]
    predicted = [rng.random() < 0.3 for _ in range(count)]
    labelled = [BEGIN_UNIX_S + first_s + number * step_s for number in range(count)]
    none = [None] * count
    return Outcomes(
        service="shop",
        model="ranker",
        partition=0,
        count=count,
        event_id=[f"{rng.getrandbits(64):016x}" for _ in range(count)],
        model_version=["v1"] * count,
        predicted_unix_s=[each - rng.expovariate(1 / 300) for each in labelled],
        labelled_unix_s=labelled,
        prediction=list(predicted),
        confidence=list(confidence),
        label=[each == (rng.random() < sure) for each, sure in zip(predicted, confidence, strict=True)],
        score=list(none),
        rating=list(none),
        slices={name: rng.choices("abcdefgh", k=count) for name in slices},
    )


def task(horizon: str = "7d") -> QualityTask:
    return QualityTask(Models((ModelPolicy(labels=LabelPolicy(horizon=horizon)),)), 0)


def stored(messages: Sequence[Outcomes | Cohort], times: Sequence[float]) -> list[Record]:
    values = map(msgspec.json.encode, messages)
    return [Stored(value, at, round(1000 * time_)) for at, (value, time_) in enumerate(zip(values, times, strict=True))]


def cost(pairs: int, slices: Sequence[str]) -> None:
    """The best of three, because the others shared the machine."""
    rng = random.Random(1)
    records = min(RECORDS, PAIRS // pairs)
    messages = [outcomes(pairs, number * pairs * 0.01, 0.01, slices, rng) for number in range(records)]
    log = stored(messages, [each.labelled_unix_s[-1] for each in messages])
    best = float("inf")
    for _ in range(3):
        subject, started = task(), time.process_time()
        subject.process("outcomes", log)
        best = min(best, time.process_time() - started)
    told = f"{len(slices)} slices, {pairs:>5} pairs a record"
    print(f"{told}: {best / records * 1e6:6.0f} us a record, {best / records / pairs * 1e6:6.2f} us a pair")


def rivers() -> None:
    found = outcomes(PAIRS, 0.0, 0.01, (), random.Random(1))
    for metric in (metrics.Accuracy(), metrics.F1(), metrics.LogLoss(), metrics.ROCAUC()):
        started = time.process_time()
        for label, prediction, confidence in zip(found.label, found.prediction, found.confidence, strict=True):
            plain = isinstance(metric, metrics.Accuracy | metrics.F1)
            metric.update(label, prediction if plain else confidence)
        spent = time.process_time() - started
        print(f"River's {type(metric).__name__}: {spent / PAIRS * 1e6:.2f} us a pair")


def week(slices: Sequence[str]) -> None:
    """A week of hourly cohorts, all labelled: what they take, and how long it takes to remember them."""
    rng, subject, offset = random.Random(1), task(), 0
    for hour in range(168):
        start = BEGIN_UNIX_S + 3600 * hour
        pairs = outcomes(1000, 3600.0 * hour, 3.5, slices, rng)
        pairs.predicted_unix_s = [start + 3.5 * number for number in range(1000)]
        cohort = Cohort(
            service="shop", model="ranker", model_version="v1", part="main", revision=0, start_unix_s=start,
            end_unix_s=start + 3600, size_s=3600.0, partition=0, count=1000, with_id=1000,
            confidence={"1": [20] * CONFIDENCE_BINS},
        )  # fmt: skip
        log = stored([cohort, pairs], [start + 3600, start + 3600])
        subject.process("outcomes", [each._replace(offset=offset + place) for place, each in enumerate(log)])  # type: ignore[attr-defined]
        offset += 2
    model = subject._models["shop", "ranker"]
    series = sum(len(version.series) for version in model.versions.values())
    cohorts = sum(len(each.cohorts) for version in model.versions.values() for each in version.series.values())
    started = time.process_time()
    packed = subject._snapshot()
    spent = time.process_time() - started
    print(
        f"{series} series, {cohorts} cohorts: {model.weight / 1e3:.0f} kB, {model.weight / cohorts:.0f} B a cohort, "
        f"{len(packed) / 1e3:.0f} kB compressed in {spent * 1e3:.0f} ms"
    )


Answer = tuple[bool, float, bool]
"""Whether a prediction was right, its confidence, and whether it was of the positive class."""


def answers(data: Any, model: Any, *, learnt: int, unseen: int) -> list[Answer]:
    """Of a model that has learnt from the first rows, for those that come then."""
    found = []
    for number, (features, label) in enumerate(data.take(learnt + unseen)):
        chances = model.predict_proba_one(features)
        if number < learnt:
            model.learn_one(features, label)
        else:
            predicted = max(chances, key=chances.get)
            found.append((predicted == label, min(1.0, chances[predicted]), bool(predicted)))
    return found


def shifted(found: Sequence[Answer], size: int, rng: random.Random) -> list[Answer]:
    """Other inputs from cohort to cohort: those of which the model is sure are drawn more often, or less."""
    cohorts = len(found) // size
    weights = ([each[1] ** power for each in found] for power in (rng.uniform(-12, 12) for _ in range(cohorts)))
    return [each for each_weights in weights for each in rng.choices(found, each_weights, k=size)]


def estimates(name: str, found: Sequence[Answer], size: int, delay: int) -> None:
    """Cohorts of so many; the labels of one are there so many cohorts later."""
    calibration, known, off, last, held = Calibration(), list[float](), list[float](), list[float](), 0
    tables = []
    for start in range(0, len(found) - size + 1, size):
        table = np.zeros((2, CONFIDENCE_BINS, 2), dtype=np.int64)
        for right, confidence, positive in found[start : start + size]:
            table[int(positive), min(int(confidence * CONFIDENCE_BINS), CONFIDENCE_BINS - 1), int(right)] += 1
        tables.append(table)
    accuracy = [float(table[:, :, 1].sum() / size) for table in tables]
    for at in range(delay, len(tables)):
        calibration.learn(tables[at - delay])
        known.append(accuracy[at - delay])
        estimate = calibration.estimate(tables[at].sum(axis=2))
        if estimate is not None:
            off.append(abs(estimate.accuracy - accuracy[at]))
            last.append(abs(known[-1] - accuracy[at]))
            held += estimate.where.low <= accuracy[at] <= estimate.where.high
    print(
        f"{name}: {len(off)} cohorts of {size}, accuracy {min(accuracy):.2f} to {max(accuracy):.2f}; off by "
        f"{np.mean(off):.3f}, the last one known by {np.mean(last):.3f}; the interval holds {held / len(off):.0%}"
    )


def off_by() -> None:
    rng = random.Random(1)
    phishing = preprocessing.StandardScaler() | linear_model.LogisticRegression()
    estimates("Phishing", answers(datasets.Phishing(), phishing, learnt=400, unseen=850), 50, 3)
    bananas = answers(datasets.Bananas(), tree.HoeffdingTreeClassifier(), learnt=2000, unseen=3300)
    estimates("Bananas", bananas, 150, 3)
    estimates("Bananas, other inputs", shifted(bananas, 150, rng), 150, 3)
    agrawal = answers(
        synth.Agrawal(seed=1, classification_function=6, perturbation=0.2),
        tree.HoeffdingTreeClassifier(),
        learnt=3000,
        unseen=25_000,
    )
    estimates("Agrawal", agrawal, 500, 5)
    estimates("Agrawal, other inputs", shifted(agrawal, 500, rng), 500, 5)
    parts = (
        synth.Agrawal(seed=seed, classification_function=function, perturbation=0.2)
        for seed, function in ((1, 6), (2, 3))
    )
    drifting = synth.ConceptDriftStream(*parts, seed=1, position=15_000, width=100)
    estimates(
        "Agrawal, concept drift", answers(drifting, tree.HoeffdingTreeClassifier(), learnt=3000, unseen=25_000), 500, 5
    )


def main() -> None:
    names = ("tenant", "country", "device", "plan")
    for slices in (0, 1, 2):
        for pairs in (1, 10, 100, 1000):
            cost(pairs, names[:slices])
    rivers()
    for slices in (0, 2, 4):
        week(names[:slices])
    off_by()


if __name__ == "__main__":
    main()
