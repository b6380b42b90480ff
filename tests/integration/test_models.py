"""Models, from events to the page: `up`, fed over HTTP, says what drifts and how good a model is."""

from __future__ import annotations

import json
import random
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support import cli, wait_until

MODELS = """
profile_window: 10s
models:
  - model: ranker
    drift: {window: 20s, reference: {first: 300}}
    labels: {horizon: 10m, window: 10s, slices: [features.country]}
"""
LASTS_S, DRIFTS_AFTER_S, PER_S = 420, 200, 10
RIGHT, RIGHT_AFTER = 0.95, 0.6


def story(random_: random.Random) -> Iterator[tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    """Ten seconds at a time, predictions and the labels that come 3 s after them, until now.

    From the middle on one feature has drifted, and the model is wrong more often for one country.
    """
    first = time.time() - LASTS_S - 5
    model = {"service": "shop", "model": "ranker"}
    for second in range(0, LASTS_S, 10):
        predictions, labels = [], []
        drifted = second >= DRIFTS_AFTER_S
        for number in range(10 * PER_S):
            at, id_ = first + second + number / PER_S, f"e{second}-{number}"
            country, truth = random_.choice(["NO", "SE"]), random_.random() < 0.5
            wrong = random_.random() > (RIGHT_AFTER if drifted and country == "NO" else RIGHT)
            features = {
                "age": random_.gauss(60 if drifted else 40, 10),
                "size": random_.gauss(5, 1),
                "country": country,
            }
            predictions.append(
                model
                | {"time_unix_s": at, "duration_s": 0.01, "status": "ok", "model_version": "3", "event_id": id_}
                | {"features": features, "prediction": truth != wrong, "confidence": random_.uniform(0.8, 1.0)}
            )
            labels.append(model | {"time_unix_s": at + 3, "event_id": id_, "label": truth})
        yield predictions, labels


def post(address: str, kind: str, events: list[dict[str, Any]]) -> None:
    body = json.dumps(events).encode()
    request = urllib.request.Request(f"{address}/v1/events?type={kind}", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as response:
        assert json.load(response)["rejected"] == 0


def models_on_the_page(address: str) -> list[dict[str, Any]]:
    try:
        with urllib.request.urlopen(f"{address}/api/overview?range_s=900", timeout=5) as response:
            found: list[dict[str, Any]] = json.load(response)["quality"]
            return found
    except OSError:
        return []


@contextmanager
def up(data: Path, models: Path, port: int) -> Iterator[str]:
    process = cli("up", "--data-dir", data, "--models", models, "--port", port, "--log-level", "warning")
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        assert process.wait(15) == 0


def test_up_shows_what_drifted_and_how_good_a_model_is(tmp_path: Path, free_port: int) -> None:
    (file := tmp_path / "models.yaml").write_text(MODELS)
    with up(tmp_path / "data", file, free_port) as address:
        wait_until(lambda: reachable(address), 40, "the page")
        for predictions, labels in story(random.Random(1)):
            post(address, "inference", predictions)
            post(address, "label", labels)

        def told() -> bool:
            found = models_on_the_page(address)
            return bool(found and found[0]["drifted"] and any(each["slices"] for each in found[0]["versions"]))

        wait_until(told, 60, "drift and quality on the page")
        [model] = models_on_the_page(address)
    [version] = model["versions"]
    assert {target["target"] for target in model["drift"] if target["drifted"]} == {"features.age"}
    assert version["measured"]["low"] < (RIGHT + RIGHT_AFTER) / 2 < version["measured"]["high"]
    assert version["slices"][0]["slice"] == {"features.country": "NO"}
    assert version["label_delay_s"] == pytest.approx(3.0, rel=0.01)
    known = [value for value in version["accuracy"] if value is not None]
    assert min(known[:15]) > 0.8, "before"
    assert sum(known[-10:]) / 10 == pytest.approx((RIGHT + RIGHT_AFTER) / 2, abs=0.06), "after"


def reachable(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/healthz", timeout=1) as response:
            return bool(response.status == 200)
    except OSError:
        return False
