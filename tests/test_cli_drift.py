"""References as a person publishes them: from a file and from the log, taken over by the processor, and looked at."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from streammon.broker import Outgoing, connect
from streammon.cli import drift  # noqa: F401 - importing registers the commands
from streammon.cli.base import app
from streammon.config import ModelSettings, Settings
from streammon.errors import ConfigError
from streammon.events import EventType, record_key
from streammon.profiles import REFERENCES
from streammon.topics import topic_specs
from streammon.wire import Density, Identity, encode
from streammon_processors import builtin
from streammon_processors.builtin import profiles_processor
from streammon_processors.runtime import run_processor

OF = ("--service", "shop", "--model", "ranker")


@pytest.fixture(autouse=True)
def logging_of_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that run inside this process leave its logging alone."""
    monkeypatch.setattr("streammon.cli.base.configure_logging", lambda level: None)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """60 predictions of 10 a second in the log, sent twice, half of another version; and a file of 30 rows."""
    (tmp_path / "train.csv").write_text("price,city\n" + "".join(f"{300 + n / 8},Rome\n" for n in range(30)))
    asyncio.run(_write(tmp_path))
    return tmp_path


def events() -> list[dict[str, Any]]:
    return [
        {"time_unix_s": 1000.0 + n / 10, "service": "shop", "model": "ranker", "model_version": f"v{n % 2}",
         "duration_s": 0.1, "status": "ok", "features": {"price": 300.0 + n, "city": "Rome"}}
        for n in range(60)
    ]  # fmt: skip


async def _write(directory: Path) -> None:
    broker = await connect(Settings(data_dir=directory / "data"))
    await broker.create_topics(topic_specs(partitions=4))
    key = record_key(EventType.INFERENCE, ("shop", "ranker"))
    (value,) = encode(EventType.INFERENCE, events(), Density.PACKED, Identity("agent", "boot", 0))
    other = encode(EventType.INFERENCE, [each | {"model": "other"} for each in events()], Density.PACKED)[0]
    await broker.append([Outgoing("inference", key, value)] * 2 + [Outgoing("inference", b"shop/other", other)])
    await broker.close()


def run(directory: Path, *options: object) -> Result:
    command = ["drift", *options, "--data-dir", directory / "data"]
    return CliRunner().invoke(app, [str(each) for each in command], env={"COLUMNS": "300"})


def shown(directory: Path, *options: object) -> Any:
    done = run(directory, *options, "--output", "json")
    assert done.exit_code == 0, done
    return [json.loads(line) for line in done.stdout.splitlines()]


async def take_over(directory: Path) -> None:
    """Run the processor until there is a reference."""
    (models := directory / "models.yaml").write_text("profile_window: 1s")
    settings = Settings(data_dir=directory / "data", models=ModelSettings(file=models))
    broker, stop = await connect(settings), asyncio.Event()
    running = asyncio.create_task(run_processor(broker, profiles_processor(settings), settings, stop=stop))
    reader = await broker.reader([REFERENCES])
    try:
        async with asyncio.timeout(20):
            while not await reader.poll():
                pass
    finally:
        stop.set()
        await running
        await reader.close()
        await broker.close()


def test_a_reference_of_a_file_is_taken_over_listed_and_shown(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (published,) = shown(directory, "reference", *OF, "--from", directory / "train.csv")
    again = run(directory, "reference", *OF, "--from", directory / "train.csv")
    assert again.stdout.startswith(f"reference {published['id']} of shop/ranker, file train.csv: 30 events")
    monkeypatch.setattr(builtin, "PROFILES_TICK_S", 0.05)
    asyncio.run(take_over(directory))
    (listed,) = shown(directory, "references", "--service", "shop")
    assert listed["id"] == published["id"]
    assert (listed["sample_size"], listed["targets"]) == (30, ["features.city", "features.price"])
    assert listed["since_unix_s"] == 1005.9  # the newest prediction before it
    (whole,) = shown(directory, "show", published["id"][:6])
    assert whole["targets"] == published["targets"]
    assert whole["targets"]["features.price"]["edges"][-1] == 303.625
    assert "features.price  numeric" in run(directory, "show", published["id"]).stdout
    assert shown(directory, "references", "--model", "other") == []


def test_a_reference_of_the_log_is_of_the_predictions_in_a_time(directory: Path) -> None:
    times = ("--from-time", "1001", "--to-time", "1003")
    (whole,) = shown(directory, "reference", *OF, *times, "--dry-run")
    assert whole["sample_size"] == 20
    assert (whole["targets"]["features.price"]["min"], whole["targets"]["features.price"]["max"]) == (310.0, 329.0)
    assert whole["origin"] == "log 1970-01-01T00:16:41Z to 1970-01-01T00:16:43Z"
    (one,) = shown(directory, "reference", *OF, *times, "--dry-run", "--model-version", "v1")
    assert (one["sample_size"], one["model_version"]) == (10, "v1")
    assert shown(directory, "references") == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "say where the reference comes from"),
        (("--from", "x.csv", "--from-time", "1h"), "say where the reference comes from"),
        (("--from", "x.csv"), "cannot read x.csv"),
        (("--from", "x.csv", "--column", "price"), "--column is 'price', expected FEATURE=COLUMN"),
        (("--from-time", "never"), "--from-time is 'never'"),
        (("--from-time", "10", "--to-time", "5"), "--from-time 10 is not before --to-time 5"),
        (("--from-time", "10", "--to-time", "20"), "the log holds no predictions of shop/ranker from 1970"),
    ],
)
def test_what_cannot_be_asked_is_said(directory: Path, options: tuple[str, ...], said: str) -> None:
    error = run(directory, "reference", *OF, *options).exception
    assert isinstance(error, ConfigError)
    assert said in str(error)


def test_an_id_that_is_none_is_refused(directory: Path) -> None:
    assert "there is no reference 'abc'" in str(run(directory, "show", "abc").exception)
