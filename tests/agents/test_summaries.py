"""What the SDK tells of embeddings and free text: a few numbers, and never an exception."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from streammon_agents.sdk.summaries import Embedding, Summary, Text, summarized

SUMMARIES: dict[str, Summary] = {"query": Text(), "vector": Embedding([3.0, 0.0])}


def test_an_embedding_is_told_by_its_norm_and_its_distance_from_the_centroid() -> None:
    told = Embedding([3.0, 0.0])
    assert told([5.0, 0.0]) == {"norm": 5.0, "distance": 0.0}
    assert told([0.0, 2.0]) == {"norm": 2.0, "distance": 1.0}
    assert told(np.array([-1.0, 0.0], dtype=np.float32)) == {"norm": 1.0, "distance": 2.0}
    assert told([1.0, 1.0])["distance"] == pytest.approx(1 - math.sqrt(0.5))


def test_the_centroid_is_the_mean_of_the_vectors_given() -> None:
    assert Embedding.of([[1.0, 0.0], [0.0, 1.0]])([2.0, 2.0])["distance"] == pytest.approx(0.0)


@pytest.mark.parametrize(("centroid", "value"), [(None, [3, 4]), ([1.0], [3, 4]), ([0.0, 0.0], [3, 4])])
def test_without_a_centroid_that_fits_there_is_only_the_norm(centroid: Any, value: Any) -> None:
    assert Embedding(centroid)(value) == {"norm": 5.0}


def test_features_with_a_summary_are_replaced_and_others_are_left() -> None:
    found = summarized({"price": 1.5, "query": "red shoes", "vector": [0.0, 2.0], "none": None}, SUMMARIES)
    assert found == {"price": 1.5, "query.length": 9, "vector.norm": 2.0, "vector.distance": 1.0, "none": None}


@pytest.mark.parametrize("value", [None, 7, "text", object(), [[1], [2, 3]], [None], {"a": 1}])
def test_what_cannot_be_summed_up_is_left_out_and_never_raises(value: Any) -> None:
    assert summarized({"vector": value, "price": 1.0}, SUMMARIES).keys() <= {"price", "vector.norm"}
