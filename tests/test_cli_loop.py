"""`streammon query loop`: how models are trained anew, as a person and as a program read it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from streammon.broker import Outgoing, connect
from streammon.cli import query  # noqa: F401 - importing registers the command
from streammon.config import Settings
from streammon.results import Loop
from streammon.topics import LOOPS, topic_specs
from tests.loops import Looping, drifted, labelled, predicted
from tests.remedies import ended
from tests.test_cli_people import Program, logging_of_pytest  # noqa: F401 - a fixture


def helped() -> list[Loop]:
    looping = Looping(labels=0)
    looping.at(0, predicted(-60, 1000), labelled(-60, 900, 0.7))
    looping.deployed()
    looping.at(450, drifted("b", 450, rule="accuracy-falls"))
    looping.at(460, ended("a1", 460))
    looping.at(480, predicted(420, 500, "8"), labelled(420, 300, 0.9, "8"))
    return looping.loops


def waiting() -> list[Loop]:
    looping = Looping()
    looping.at(1000, drifted("c", 1000, action="retrain-asking"))
    return looping.loops


@pytest.fixture
def program(tmp_path: Path) -> Program:
    asyncio.run(written(tmp_path, [*helped(), *waiting()]))
    return Program("--data-dir", tmp_path)


async def written(directory: Path, loops: list[Loop]) -> None:
    broker = await connect(Settings(data_dir=directory))
    await broker.create_topics(topic_specs(partitions=1))
    forgotten = [Outgoing(LOOPS, b"gone", msgspec.json.encode(loops[0])), Outgoing(LOOPS, loops[0].id.encode(), None)]
    records = [Outgoing(LOOPS, each.id.encode(), msgspec.json.encode(each)) for each in loops]
    await broker.append([*forgotten, Outgoing(LOOPS, b"x", b"{"), *records])
    await broker.close()


def test_every_retraining_is_a_line_with_how_it_is_going(program: Program) -> None:
    header, first, second = program.said("query", "loop").splitlines()
    assert header.split()[:4] == ["id", "model", "state", "since"]
    assert "shop/ranker" in first
    assert "closed: helped (measured)" in first
    assert "input-drift and 1 more" in first
    assert "7 → 8" in first
    assert "accuracy +20.00 (" in first
    assert "awaiting approval" in second


def test_they_are_found_by_what_they_are_about(program: Program) -> None:
    assert len(program.json("query", "loop", "--where", "service=shop", "--where", "model=ranker")) == 2
    assert program.said("query", "loop", "--where", "model=other") == "no model was trained anew\n"
    [found] = program.json("query", "loop", "--where", "outcome=helped")
    assert (found["type"], found["new_version"], found["comparison"]["way"]) == ("loop", "8", "before_after")
    assert len(program.json("query", "loop", "--limit", "1")) == 1
    assert "--where names 'host'" in program.wrong("query", "loop", "--where", "host=a")


def test_one_is_told_in_full(program: Program) -> None:
    id_ = helped()[0].id
    said = program.said("query", "loop", "--id", id_[:7])
    for line in (
        "shop/ranker, action retrain: closed: helped (measured)",
        f"id {id_} ({id_[:7]})",
        "version 7 → 8",
        "run r1 of train-ranker",
        "Accuracy: 70.00 % → 90.00 %",
        "  of 900 and 300 predictions, in 1 windows of the new one, and before them of the old",
    ):
        assert line in said.splitlines()
    states = said.partition("States\n")[2].partition("\n\n")[0].splitlines()
    assert [line.split()[-1] for line in states] == [
        "approved",
        "started",
        "training",
        "trained",
        "deployed",
        "confirming",
        "closed",
    ]
    assert "over since" in said
    assert "given up, if it is still awaiting approval" in program.said("query", "loop", "--id", waiting()[0].id)


def test_an_id_that_is_none_is_explained(program: Program) -> None:
    assert "no retraining 'zzz'" in program.wrong("query", "loop", "--id", "zzz")


def test_a_log_without_any_has_none(tmp_path: Path) -> None:
    async def empty() -> None:
        broker = await connect(Settings(data_dir=tmp_path))
        await broker.create_topics([])
        await broker.close()

    asyncio.run(empty())
    assert Program("--data-dir", tmp_path).said("query", "loop") == "no model was trained anew\n"
