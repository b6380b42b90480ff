"""The file of models: what it may say of data drift."""

from __future__ import annotations

from pathlib import Path

import pytest

from streammon.errors import ConfigError
from streammon.models import Models, load_models


def load(tmp_path: Path, text: str) -> Models:
    file = tmp_path / "models.yaml"
    file.write_text(text)
    return load_models(file)


def test_without_a_file_every_model_is_watched_by_the_defaults() -> None:
    drift = load_models(None).policy("shop", "ranker").drift
    assert (drift.window_s, drift.reference.first, drift.reference.rolling) == (3600.0, 1000, None)


def test_a_file_says_what_a_model_is_held_against(tmp_path: Path) -> None:
    models = load(
        tmp_path,
        """
profile_window: 10m
models:
  - model: ranker
    drift: {window: 30m, reference: {first: 50, rolling: 7d}, pairs: [[features.a, confidence]], text: [features.q]}
""",
    )
    drift = models.policy("shop", "ranker").drift
    assert models.profile_window_s == 600.0
    assert (drift.reference.first, drift.reference.rolling) == (50, "7d")
    assert drift.pairs == (("features.a", "confidence"),)
    assert models.policy("shop", "other").drift.reference.first == 1000


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{drift: {window: 7m}}", "drift.window of model any is 7m, which is no multiple of profile_window, 5m"),
        ("{drift: {reference: {rolling: 7d, same_hour_last_week: true}}}", "exclude each other"),
        ("{drift: {reference: {rolling: 0}}}", "rolling is 0"),
        ("{drift: {reference: {first: 1}}}", "20"),
        ("{drift: {reference: {learn: long}}}", "'long' is no duration"),
        ("{drift: {text: [query]}}", "'query' is no target; there are features.NAME, prediction and confidence"),
        ("{drift: {weights: {age: 2}}}", "'age' is no target; there are features.NAME, prediction and confidence"),
        ("{drift: {tests: {features.age: kss}}}", "kss"),
        ("{drift: {threshold: 0}}", "threshold"),
        ("{drift: {window: soon}}", "'soon' is no duration"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=r"models\.yaml") as error:
        load(tmp_path, f"models: [{text}]")
    assert said in str(error.value)
