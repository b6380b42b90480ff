"""docs/slo.md and the example: they are read by the code that they are about, and the numbers are its own."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from streammon.results import Slo
from streammon_processors.rules import ServiceLevel, load_slos, refuse_incomplete
from streammon_processors.rules.levels import BURNS, MAX_WINDOW_S, MIN_WINDOW_S, MOST_OF_ALL
from streammon_processors.slos import task
from streammon_processors.slos.requests import Requests
from tests.slos import level

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/slo.md").read_text(encoding="utf-8")


def block(kind: str) -> str:
    [found] = re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return str(found)


@pytest.fixture
def on_the_page(tmp_path: Path) -> tuple[ServiceLevel, ...]:
    (path := tmp_path / "slos.yaml").write_text(block("yaml"))
    refuse_incomplete([path])
    return load_slos([path])


def test_the_file_on_the_page_is_one(on_the_page: tuple[ServiceLevel, ...]) -> None:
    assert [each.name for each in on_the_page] == ["answers", "answers-in-time"]


def test_the_example_is_complete() -> None:
    refuse_incomplete([ROOT / "examples/slos.yaml", ROOT / "examples/rules.yaml"])
    assert len(load_slos([ROOT / "examples/slos.yaml"])) == 2


def test_the_record_on_the_page_is_one_that_adds_up(on_the_page: tuple[ServiceLevel, ...]) -> None:
    shown = msgspec.json.decode(block("json"), type=Slo)
    answers = on_the_page[0]
    seen = Requests(shown.total - shown.good, shown.total)
    assert shown.budget_left == pytest.approx(seen.budget_left(answers))
    assert (shown.slo, shown.indicator, shown.window_s) == ("answers", answers.good, answers.window_s)
    assert set(msgspec.json.decode(block("json"))) == {*Slo.__struct_fields__, "type"}


def test_the_alerts_on_the_page_are_those_that_are_made() -> None:
    rows = re.findall(r"^\| `NAME-(\w+)` \| (\d+) % \| ([^|]+) \| ([^|]+) \| ([\d.]+) \| (\w+) \|", PAGE, re.MULTILINE)
    example = level(objective=0.999)
    made = [
        (
            burn.name,
            f"{100 * burn.share:g}",
            burn.long.replace("h", " h").replace("d", " d"),
            burn.short.replace("m", " min").replace("h", " h"),
            f"{example.burn_threshold(burn):g}",
            rule.severity,
        )
        for burn, rule in zip(BURNS, example.rules, strict=True)
    ]
    assert rows == made


def test_the_bounds_on_the_page_are_the_codes() -> None:
    assert (MIN_WINDOW_S, MAX_WINDOW_S) == (3 * 86_400, 90 * 86_400)
    assert "3d to 90d" in PAGE
    assert f"at most {MOST_OF_ALL} ÷ (1 − objective)" in PAGE
    assert f"{task.MAX_SERIES} budgets a partition" in PAGE
