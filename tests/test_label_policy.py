"""What may be said of a model's labels, and how a mistake is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from streammon.errors import ConfigError
from streammon.models import LabelPolicy, load_models


def policy(said: str, directory: Path) -> LabelPolicy:
    file = directory / "models.yaml"
    file.write_text(f"models: [{{model: ranker, labels: {{{said}}}}}]")
    return load_models(file).policy("shop", "ranker").labels


@pytest.mark.parametrize(
    ("said", "positive"), [("positive: fraud", "fraud"), ("positive: true", True), ("positive: 1", 1.0), ("", None)]
)
def test_the_positive_class_may_be_text_truth_or_a_number(said: str, positive: object, tmp_path: Path) -> None:
    assert policy(said, tmp_path).positive == positive


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("task: clustering", "allowed: classification, regression"),
        ("window: 0s", "window is '0s'; it must be 1s or longer"),
        ("window: soon", "'soon' is no duration"),
        ("horizon: 1m", "horizon is '1m'; it must be as long as window, '5m', or longer"),
        ("positive: [1]", "positive"),
    ],
)
def test_a_mistake_is_named(said: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"models\.yaml:1:") as error:
        policy(said, tmp_path)
    assert expected in str(error.value)
