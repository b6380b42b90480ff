"""ack, silence, alerts, audit and report as a person runs them, on the embedded log and on Kafka."""

from __future__ import annotations

import asyncio
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from streammon.broker import connect
from streammon.broker.reading import read
from streammon.cli import people, remediate  # noqa: F401 - importing registers the commands
from streammon.cli.base import app
from streammon.config import Settings
from streammon.errors import ConfigError
from streammon.results import Alert
from streammon.servers import Server
from streammon.topics import topic_specs
from streammon_sinks.sqlite import ResultStore
from tests.people import NOON, ack, alert, opened, outgoing

SHOP = "aaaa1111" + "0" * 24
MAIL = "bbbb2222" + "0" * 24


@pytest.fixture(autouse=True)
def logging_of_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that run inside this process leave its logging alone."""
    monkeypatch.setattr("streammon.cli.base.configure_logging", lambda level: None)


def since(seconds: float) -> float:
    """So long ago, in seconds after noon."""
    return time.time() - seconds - NOON


def firing(id: str, transition: int = 1, state: str = "firing", ago: float = 90.0, **fields: Any) -> Alert:  # noqa: A002
    return alert(id, transition, state, since(ago), started_unix_s=time.time() - ago, **fields)


class Program:
    """The program beside a log that holds these alerts."""

    def __init__(self, *options: object) -> None:
        self._options = options

    def run(self, *arguments: object) -> Result:
        command = [*map(str, arguments), *map(str, self._options)]
        return CliRunner().invoke(app, command, env={"COLUMNS": "300"})

    def said(self, *arguments: object) -> str:
        done = self.run(*arguments)
        assert (done.exit_code, done.stderr) == (0, ""), done
        return done.stdout

    def json(self, *arguments: object) -> list[Any]:
        return [json.loads(line) for line in self.said(*arguments, "--output", "json").splitlines()]

    def refused(self, *arguments: object) -> str:
        done = self.run(*arguments)
        assert done.exit_code == 1, done
        return done.stderr

    def wrong(self, *arguments: object) -> str:
        error = self.run(*arguments).exception
        assert isinstance(error, ConfigError), error
        return str(error)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def shop(directory: Path) -> Program:
    """Two alerts fire, in different partitions."""
    mail = firing(MAIL, rule="failing", severity="critical", labels={"service": "mail"}, summary="mail fails")
    asyncio.run(written(directory, (firing(SHOP), 2), (mail, 3)))
    return Program("--data-dir", directory)


async def written(directory: Path, *alerts: tuple[Alert, int]) -> None:
    await (await opened(directory, *alerts)).close()


def commands(settings: Settings) -> list[tuple[int, str, Any]]:
    """Partition, key and content of every command in the log."""

    async def found() -> list[tuple[int, str, Any]]:
        broker = await connect(settings)
        try:
            batches = [each async for each in read(broker, ["commands"])]
        finally:
            await broker.close()
        return [
            (record.partition, (record.key or b"").decode(), json.loads(record.value or b""))
            for _, records in batches
            for record in records
        ]

    return asyncio.run(found())


# -- ack -----------------------------------------------------------------------------------------------


def test_an_acknowledgement_is_written_beside_its_alert_with_who_and_why(shop: Program, directory: Path) -> None:
    said = shop.said("ack", "aaaa111", "--note", "on it", "--by", "ann")
    assert said == "acknowledged aaaa111 slow: shop is slow\n"
    [(partition, key, command)] = commands(Settings(data_dir=directory))
    assert (partition, key) == (2, SHOP)
    assert command["id"]
    assert command.items() >= {
        "type": "ack", "alert_id": SHOP, "transition": 1, "by": "ann", "note": "on it", "schema": 1,
    }.items()  # fmt: skip
    assert command["time_unix_s"] == pytest.approx(time.time(), abs=30)


def test_several_are_acknowledged_and_what_cannot_be_is_said(shop: Program, directory: Path) -> None:
    done = shop.run("ack", "aaaa111", "cccc333", "bbbb222", "bbbb222", "--by", "ann")
    assert done.exit_code == 1
    assert done.stdout.splitlines() == [
        "acknowledged aaaa111 slow: shop is slow",
        "acknowledged bbbb222 failing: mail fails",
    ]
    assert done.stderr == "streammon: no alert 'cccc333'; `streammon alerts` lists those there are\n"
    assert [(partition, key) for partition, key, _ in commands(Settings(data_dir=directory))] == [(2, SHOP), (3, MAIL)]


def test_whoever_comes_second_is_told_who_was_first(shop: Program) -> None:
    shop.said("ack", SHOP, "--by", "ann")
    assert re.search(r"aaaa111 \(slow\) is acknowledged already by ann, \d+ s ago", shop.refused("ack", "aaaa1"))


def test_who_was_first_cannot_move_the_cursor_of_who_comes_second(shop: Program) -> None:
    shop.said("ack", SHOP, "--by", "ann\x1b[2J")
    assert r"acknowledged already by ann\x1b[2J" in shop.refused("ack", SHOP)


def test_who_acknowledges_is_the_login_if_not_said(shop: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "root-of-all")
    [command] = shop.json("ack", SHOP)
    assert (command["by"], command["alert_id"]) == ("root-of-all", SHOP)

    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 1234")

    monkeypatch.setattr("getpass.getuser", nobody)
    assert shop.wrong("ack", MAIL).startswith("--by is not given")


@pytest.mark.parametrize("command", [("ack", SHOP), ("silence", "service=shop", "--for", "1h"), ("approve", "x")])
@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (("--note", "x" * 10_001), "--note has 10001 characters; at most 10000 are kept"),
        (("--note", "\udcff"), "--note is not text in UTF-8: '\\udcff'"),
        (("--by", "x" * 201), "--by has 201 characters; at most 200 are kept"),
    ],
)
def test_what_no_reader_of_commands_would_take_is_not_said_to_be_done(
    shop: Program, directory: Path, command: tuple[str, ...], said: tuple[str, ...], expected: str
) -> None:
    assert shop.wrong(*command, *said) == expected
    assert commands(Settings(data_dir=directory)) == []


def test_one_alert_of_an_impossible_time_does_not_hide_the_others(directory: Path) -> None:
    asyncio.run(written(directory, (firing(SHOP), 2), (alert(MAIL, 1, started_unix_s=1e300), 3)))
    told = Program("--data-dir", directory).said("alerts")
    assert "aaaa111" in told
    assert "1e+300" in told


# -- silences ------------------------------------------------------------------------------------------


def test_a_silence_is_made_listed_and_lifted(shop: Program) -> None:
    said = shop.said("silence", "service=shop", 'rule=~"sl.*"', "--for", "2h", "--note", "deploy", "--by", "ann")
    found = re.fullmatch(r'silenced service="shop", rule=~"sl\.\*" until (.+), as (\w{6}): 1 active alert now\n', said)
    assert found, said
    id_ = found[2]
    [row] = shop.json("silences")
    assert (row["id"], row["state"], row["by"], row["note"], row["matches"]) == (id_, "active", "ann", "deploy", 1)
    assert row["matchers"] == ['service="shop"', 'rule=~"sl.*"']
    assert row["ends_unix_s"] == pytest.approx(time.time() + 7200, abs=30)
    assert {each["id"]: each["silenced"] for each in shop.json("alerts")} == {SHOP: id_, MAIL: None}
    assert f"ann  deploy  {1}".split() == shop.said("silences").splitlines()[1].split()[-3:]

    assert shop.said("unsilence", id_[:4], "--by", "bob") == f'lifted {id_}: service="shop", rule=~"sl.*"\n'
    assert shop.said("silences") == "no silences\n"
    assert "(lifted by bob)" in shop.said("silences", "--all")
    assert re.search(rf"{id_} was lifted by bob, \d+ s ago", shop.refused("unsilence", id_))
    assert shop.json("alerts")[0]["silenced"] is None


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("shop", "--for", "1h"), "MATCHER: 'shop' is no matcher; write label=\"value\""),
        (("service=~(", "--for", "1h"), "is no regular expression"),
        (("service=shop", "--for", "soon"), "--for: 'soon' is no duration"),
        (("service=shop", "--for", "0s"), "--for is '0s': 0 s: a silence lasts longer than nothing and at most 30 d"),
        (("service=shop", "--for", "31d"), "--for is '31d': 31 d: a silence lasts"),
        (("service=\udcff", "--for", "1h"), "MATCHER is not text in UTF-8"),
        ((*(f"l{n}={'x' * 300}" for n in range(40)), "--for", "1h"), "MATCHER: matchers of 13"),
    ],
)
def test_a_silence_that_makes_no_sense_is_refused_with_what_to_write(
    shop: Program, directory: Path, arguments: tuple[str, ...], expected: str
) -> None:
    assert expected in shop.wrong("silence", *arguments)
    assert commands(Settings(data_dir=directory)) == []


# -- alerts, audit -------------------------------------------------------------------------------------


def test_alerts_shows_what_is_active_with_ids_to_type_and_who_has_it(shop: Program, directory: Path) -> None:
    assert shop.said("ack", SHOP, "--by", "ann", "--note", "on it")
    asyncio.run(written(directory, (firing(SHOP, 2, "acknowledged"), 2), (firing(MAIL, 2, "resolved"), 3)))
    header, line = shop.said("alerts").splitlines()
    assert header.split() == ["id", "state", "severity", "rule", "labels", "since", "by", "silenced", "summary"]
    assert line.split()[:5] == ["aaaa111", "acknowledged", "warning", "slow", "service=shop"]
    assert line.split()[-4:] == ["ann", "shop", "is", "slow"]
    found, ended = shop.json("alerts", "--all")
    assert (found["acknowledged"]["by"], found["acknowledged"]["note"]) == ("ann", "on it")
    assert (ended["id"], ended["state"], ended["acknowledged"]) == (MAIL, "resolved", None)


def test_without_alerts_everything_says_so(directory: Path) -> None:
    asyncio.run(written(directory))
    program = Program("--data-dir", directory)
    for command, said in {
        "alerts": "no active alerts\n", "silences": "no silences\n", "audit": "nobody did anything\n",
    }.items():  # fmt: skip
        assert program.said(command) == said
        assert program.json(command) == []
    assert program.said("rules", "report").startswith("no rule fired\n")


def test_the_audit_lists_who_did_what_and_what_became_of_it(shop: Program, directory: Path) -> None:
    shop.said("ack", SHOP, "--by", "ann", "--note", "on it")
    shop.said("silence", "service=mail", "--for", "1h", "--by", "bob")
    asyncio.run(written(directory, (firing(SHOP, 2, "acknowledged"), 2)))
    first, second = shop.json("audit")
    assert (first["by"], first["what"], first["target"], first["rule"], first["outcome"], first["note"]) == (
        "ann", "ack", SHOP, "slow", "applied", "on it",
    )  # fmt: skip
    assert (second["by"], second["what"], second["via"], second["target"]) == (
        "bob",
        "silence",
        "cli",
        'service="mail"',
    )
    assert [each["by"] for each in shop.json("audit", "--alert", "aaaa111")] == ["ann"]
    assert [each["by"] for each in shop.json("audit", "list", "--by", "bob")] == ["bob"]
    assert shop.json("audit", "--from", "1h", "--to", "30m") == []
    assert len(shop.said("audit").splitlines()) == 3


def test_the_audit_asks_the_results_for_what_compaction_took(shop: Program, directory: Path) -> None:
    """The log has the end of the alert alone; the results know that it was acknowledged before."""

    async def past() -> None:
        broker = await opened(directory, (firing(SHOP, 3, "resolved"), 2))
        await broker.append([outgoing("commands", SHOP, ack(SHOP, 1, since(60)), 2)])
        await broker.close()

    asyncio.run(past())
    [entry] = shop.json("audit", "--alert", SHOP)
    assert entry["outcome"] == "unknown"
    store = ResultStore.open(directory / "results.sqlite")
    store.write_alerts([firing(SHOP, 2, "acknowledged")])
    store.close()
    [entry] = shop.json("audit", "--alert", SHOP)
    assert entry["outcome"] == "applied"


# -- rules report --------------------------------------------------------------------------------------


def test_the_report_reads_the_history_and_without_one_the_topic(shop: Program, directory: Path) -> None:
    [from_topic] = shop.json("rules", "report", "--from", "1d")
    assert from_topic["source"] == "the topic alerts"
    assert {rule["rule"]: rule["firings"] for rule in from_topic["rules"]} == {"slow": 1, "failing": 1}

    store = ResultStore.open(directory / "results.sqlite")
    for n in range(4):
        id_, begun = f"{n}" * 32, 4000.0 * n + 5000
        store.write_alerts([firing(id_, 1, ago=begun), firing(id_, 2, "resolved", ago=begun - 90)])
    store.close()
    shop.said("ack", SHOP, "--by", "ann")
    [report] = shop.json("rules", "report", "--from", "1d")
    assert report["source"] == str(directory / "results.sqlite")
    [rule] = report["rules"]
    assert (rule["rule"], rule["firings"], rule["firing_now"], rule["acted_on"]) == ("slow", 4, 0, 0)
    assert rule["firing_s"]["median"] == pytest.approx(90, abs=0.5)
    header, line, *said = shop.said("rules", "report", "--from", "1d").splitlines()
    assert header.split()[:3] == ["rule", "a", "day"]
    assert line.split()[:5] == ["slow", "4.00", "4", "4", "0%"]
    assert said[0].endswith(f"read from {directory / 'results.sqlite'}")
    assert said[1].startswith("the history begins at ")


def test_a_report_of_no_time_is_refused(shop: Program) -> None:
    assert "--to is '2h', which is not after --from '1h'" in shop.wrong("rules", "report", "--from", "1h", "--to", "2h")
    assert "--flap: 'x' is no duration" in shop.wrong("rules", "report", "--flap", "x")
    assert "--from is 'soon'" in shop.wrong("audit", "--from", "soon")


# -- Kafka ---------------------------------------------------------------------------------------------


@pytest.mark.kafka
def test_on_kafka_people_do_the_same(
    kafka: Server, unique: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STREAMMON_TOPICS__PREFIX", f"{unique}.")
    settings = Settings(bootstrap=kafka.address)

    async def fill() -> None:
        broker = await connect(settings)
        await broker.create_topics(topic_specs(partitions=4))
        await broker.append([outgoing("alerts", SHOP, firing(SHOP), 2)])
        await broker.close()

    asyncio.run(fill())
    program = Program("--bootstrap", kafka.address, "--data-dir", tmp_path)
    assert program.said("ack", "aaaa111", "--by", "ann") == "acknowledged aaaa111 slow: shop is slow\n"
    program.said("silence", "service=shop", "--for", "1h", "--by", "bob")
    [(partition, key, _), (_, id_, silence)] = sorted(commands(settings), key=lambda each: each[2]["time_unix_s"])
    assert ((partition, key), id_) == ((2, SHOP), silence["id"])
    program.said("unsilence", id_, "--by", "bob")
    assert [each["what"] for each in program.json("audit")] == ["ack", "silence", "unsilence"]
    assert [each["silenced"] for each in program.json("alerts")] == [None]
    [report] = program.json("rules", "report")
    assert [(rule["firings"], rule["acted_on"]) for rule in report["rules"]] == [(1, 1)]
