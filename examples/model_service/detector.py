"""The model: says whether a web page is phishing, as far as it could learn that before it was deployed.

A k-nearest-neighbours classifier of River, on River's own data set ``Phishing`` (1,250 real web pages, nine features
each, one of them a word here). River and the data set load in half a second; its linear models would need SciPy's
statistics and four times as long.

Like most models it stays as it was trained, whatever becomes of the pages. What it is told afterwards is kept to tune
it by, and to train the version that follows.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from river import datasets
from river.neighbors import KNNClassifier, LazySearch

Features = dict[str, float | str]
HTTPS = {"none": 0.0, "untrusted": 0.5, "trusted": 1.0}
"""How a page proves who it is: the numbers of the data set, in words."""
NEIGHBOURS = (1, 3, 5, 9, 15)
"""The numbers of neighbours that tuning chooses from."""
RECENT = 10_000
"""Examples kept for tuning: more than can be scored in one round."""
TRAINED_ON = 400
"""The newest examples that a new version is made of."""


class Example(NamedTuple):
    """A web page, and whether it is phishing."""

    features: Features
    label: bool


class Prediction(NamedTuple):
    """The more likely answer, and how likely: 0.5 to 1."""

    phishing: bool
    confidence: float


def phishing_pages() -> list[Example]:
    """River's data set, in its order."""
    words = {number: word for word, number in HTTPS.items()}
    return [Example({**features, "https": words[features["https"]]}, label) for features, label in datasets.Phishing()]


def numbers(features: Features) -> dict[str, float]:
    """The features as the model takes them."""
    return {name: HTTPS[value] if isinstance(value, str) else value for name, value in features.items()}


class Detector:
    """One version of the model, made of ``examples``.

    ``lock`` is for whoever uses the model, so that no prediction sees it half changed; ``waiting``: how many want to.
    """

    def __init__(self, version: str, examples: Sequence[Example]) -> None:
        self.version = version
        self.lock = asyncio.Lock()
        self.waiting = 0
        self._examples = list(examples)
        self._newer: deque[Example] = deque(maxlen=RECENT)
        self._model = _model(5, examples)

    def predict(self, features: Features) -> Prediction:
        """What the neighbours say."""
        odds: dict[bool, float] = self._model.predict_proba_one(numbers(features))
        answer = max(odds, key=lambda label: odds[label])
        return Prediction(answer, odds[answer])

    def take_note(self, example: Example) -> None:
        """Of what turned out to be true. It changes no answer until the next tuning, or the next version."""
        self._newer.append(example)

    def successor(self, version: str) -> Detector:
        """A version that is made of the newest examples alone."""
        return Detector(version, [*self._examples, *self._newer][-TRAINED_ON:])

    async def tune(self, budget_s: float) -> int:
        """Choose the number of neighbours by the newest examples, as many as can be scored in ``budget_s``.

        It keeps the lock all the while. That is the mistake this example is about: every prediction waits.
        """
        async with self.lock:
            best = await asyncio.to_thread(_best, self._examples, list(self._newer), budget_s)
            self._model.n_neighbors = best
        return best


def _model(neighbours: int, examples: Sequence[Example]) -> Any:
    model: Any = KNNClassifier(  # River is typed only in part
        n_neighbors=neighbours, engine=LazySearch(window_size=max(1, len(examples)))
    )
    for features, label in examples:
        model.learn_one(numbers(features), label)
    return model


def _best(known: Sequence[Example], newer: Sequence[Example], budget_s: float) -> int:
    deadline = time.monotonic() + budget_s
    models = {neighbours: _model(neighbours, known) for neighbours in NEIGHBOURS}
    right: Counter[int] = Counter(dict.fromkeys(NEIGHBOURS, 0))
    for features, label in newer:
        if time.monotonic() >= deadline:
            break
        right.update(n for n, model in models.items() if model.predict_one(numbers(features)) == label)
    return right.most_common(1)[0][0]
