"""The join: which label goes with which prediction, whichever comes first, and what is told of the others."""

from __future__ import annotations

import random

import pytest

from streammon_processors.contract import run
from tests.joins import expected, join_logs, join_task, joined


@pytest.mark.parametrize("seed", range(12))
def test_pairs_and_counts_are_those_of_a_plain_computation_whichever_topic_is_read_first(seed: int) -> None:
    logs = join_logs(seed)
    right = expected(logs)
    assert right.pairs
    for rng, longest in ((None, 0), (random.Random(seed), 1), (random.Random(seed), 9)):
        outputs = run(join_task(), logs, rng, longest)
        found = joined(output for some in outputs.values() for output in some)
        assert found.pairs == right.pairs
        assert found.cohorts == right.cohorts
        assert found.unmatched == right.unmatched
        assert found.relabelled == right.relabelled
        assert not found.forgotten
