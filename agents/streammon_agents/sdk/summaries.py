"""What is told of inputs that are no numbers and no categories: embeddings and free text, by a few numbers each.

::

    monitor = Monitor(service="shop", model="ranker", summaries={"query": Text(), "vector": Embedding(centroid)})
    call.set(features={"price": 3.5, "query": "red shoes", "vector": vector})
    # sends price, query.length, vector.norm and vector.distance: neither the text nor the vector

These numbers are features like any other: they have profiles and references, and their drift is tested.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, Self

from streammon.lazy_numpy import ArrayLike, np


class Summary(Protocol):
    """Makes numbers of a value, by the name of what they say."""

    def __call__(self, value: Any, /) -> Mapping[str, float]: ...


class Text:
    """Of a text its ``length``, in characters."""

    def __call__(self, value: Any, /) -> Mapping[str, float]:
        return {"length": len(value)}


class Embedding:
    """Of a vector its Euclidean ``norm`` and, if there is a centroid of the same length, its ``distance`` from that.

    The distance is 1 minus the cosine: 0 in the direction of the centroid, 1 across, 2 opposite.
    """

    def __init__(self, centroid: ArrayLike | None = None) -> None:
        self._centroid = None if centroid is None else _unit(_vector(centroid))

    @classmethod
    def of(cls, vectors: ArrayLike) -> Self:
        """With the centroid of these vectors, such as those that the model was trained on; shape (n, length)."""
        return cls(np.asarray(vectors, dtype=np.float64).mean(axis=0))

    def __call__(self, value: Any, /) -> Mapping[str, float]:
        vector = _vector(value)
        norm = float(np.sqrt(vector @ vector))
        found = {"norm": norm}
        if self._centroid is not None and norm and vector.shape == self._centroid.shape:
            found["distance"] = 1.0 - float(vector @ self._centroid) / norm
        return found


def _vector(value: Any) -> Any:
    return np.asarray(value, dtype=np.float64).reshape(-1)


def _unit(vector: Any) -> Any:
    norm = float(np.sqrt(vector @ vector))
    return vector / norm if norm else None


def summarized(features: Mapping[str, Any], summaries: Mapping[str, Summary]) -> dict[str, Any]:
    """The features, those with a summary replaced by its numbers. Never raises: a value that has none is left out."""
    found: dict[str, Any] = {}
    for name, value in features.items():
        summary = summaries.get(name)
        if summary is None:
            found[name] = value
        elif value is not None:
            found |= {f"{name}.{what}": number for what, number in _told(summary, value).items()}
    return found


def _told(summary: Summary, value: Any) -> Mapping[str, float]:
    try:
        return summary(value)
    except Exception:  # whatever a value of the service may be; that it is missing is seen in its profile
        return {}
