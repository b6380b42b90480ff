"""The model: says whether a web page is phishing, and learns from those it is told about.

A k-nearest-neighbours classifier of River over the last examples, on River's own data set ``Phishing`` (1,250 real
web pages, nine features each). River and the data set load in half a second; its linear models would need SciPy's
statistics and four times as long.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from river import datasets
from river.neighbors import KNNClassifier, LazySearch

Features = dict[str, float]
NEIGHBOURS = (1, 3, 5, 9, 15)
"""The numbers of neighbours that tuning chooses from."""
RECENT = 10_000
"""Examples kept for tuning: more than can be scored in one round."""


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
    return [Example(features, label) for features, label in datasets.Phishing()]


class Detector:
    """One version of the model, remembering the last ``memory`` examples.

    ``lock`` is for whoever uses the model, so that no prediction sees it half changed.
    """

    def __init__(self, version: str, memory: int) -> None:
        self.version = version
        self.lock = asyncio.Lock()
        self._memory = memory
        self._recent: deque[Example] = deque(maxlen=RECENT)
        self._model = _model(5, memory)

    def predict(self, features: Features) -> Prediction:
        """What the neighbours say."""
        odds: dict[bool, float] = self._model.predict_proba_one(features)
        answer = max(odds, key=lambda label: odds[label])
        return Prediction(answer, odds[answer])

    def learn(self, example: Example) -> None:
        self._model.learn_one(*example)
        self._recent.append(example)

    async def tune(self, budget_s: float) -> int:
        """Choose the number of neighbours by the newest examples, as many as can be scored in ``budget_s``.

        It keeps the lock all the while. That is the mistake this example is about: every prediction waits.
        """
        async with self.lock:
            recent = list(self._recent)
            best = await asyncio.to_thread(_best, recent[: self._memory], recent[self._memory :], budget_s)
            self._model.n_neighbors = best
        return best


def _model(neighbours: int, memory: int) -> Any:  # River is typed only in part
    return KNNClassifier(n_neighbors=neighbours, engine=LazySearch(window_size=memory))


def _best(known: Sequence[Example], newer: Sequence[Example], budget_s: float) -> int:
    deadline = time.monotonic() + budget_s
    models = {neighbours: _model(neighbours, len(known)) for neighbours in NEIGHBOURS}
    for model in models.values():
        for example in known:
            model.learn_one(*example)
    right: Counter[int] = Counter(dict.fromkeys(NEIGHBOURS, 0))
    for features, label in newer:
        if time.monotonic() >= deadline:
            break
        right.update(n for n, model in models.items() if model.predict_one(features) == label)
    return right.most_common(1)[0][0]
