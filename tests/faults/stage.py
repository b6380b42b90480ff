"""Where faults take place: a Kafka of their own, a proxy in front of it, and processors under a supervisor."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from streammon.config import Settings
from streammon.servers import Server, free_ports
from tests.faults.kafka_proxy import KafkaProxy
from tests.support import cli, eventually

PARTITIONS = 8
SESSION_S = 1.5
BORN_S = 30.0


@dataclass(frozen=True)
class Grounds:
    """Where scenarios take place: a broker of their own, with short sessions and a listener behind the proxy."""

    kafka: Server
    proxy_port: int
    proxied_port: int
    directory: Path

    @classmethod
    def open(cls, start: Callable[..., Server], directory: Path) -> Grounds:
        proxy, proxied = free_ports(2)
        kafka = start("kafka", directory / "kafka", properties=_properties(proxy, proxied))
        return cls(kafka, proxy, proxied, directory)

    def settings(self, prefix: str, bootstrap: str, client: str = "harness") -> Settings:
        return Settings(
            bootstrap=bootstrap,
            topics={"prefix": prefix, "partitions": PARTITIONS},
            kafka={"client_id": client, "session_timeout_s": SESSION_S, "heartbeat_s": SESSION_S / 6},
        )


def _properties(proxy: int, proxied: int) -> dict[str, str]:
    """Who comes by the proxied listener is told to come by the proxy."""
    own = "PLAINTEXT://127.0.0.1:{port}"
    return {
        "listeners": f"{own},PROXIED://127.0.0.1:{proxied},CONTROLLER://127.0.0.1:{{inner_port}}",
        "advertised.listeners": f"{own},PROXIED://127.0.0.1:{proxy}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "group.min.session.timeout.ms": "1000",
    }


# ---------------------------------------------------------------- processes


class Member:
    """One ``streammon process`` under a supervisor that starts it again when it ends, as operations demand."""

    def __init__(self, client: str, config: Path) -> None:
        self.client = client
        """The beginning of what its connections call themselves."""
        self.gave_up: list[str] = []
        """The last words of each time that it ended by itself."""
        self._config = config
        self._errors = config.with_suffix(".log")
        self._start()
        self._supervisor = asyncio.create_task(self._supervise())

    @property
    def pid(self) -> int:
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """kill -9; a new one is started at once."""
        self._process.kill()
        self._process.wait()
        self._start()

    async def stop(self) -> int:
        """SIGTERM; the exit status, which is -9 if it did not end in time."""
        try:
            await eventually(self._minds_sigterm, BORN_S, "a process that minds SIGTERM")
            self._supervisor.cancel()
            self._process.terminate()
            return await asyncio.to_thread(self._process.wait, 10)
        except subprocess.TimeoutExpired:
            return -9
        finally:
            self._supervisor.cancel()
            self._process.kill()
            self._process.wait()

    def has_partitions(self) -> bool:
        """Whether it was assigned any, ever."""
        said = (json.loads(line) for line in self._errors.read_text().splitlines() if line.startswith("{"))
        return any(each.get("event") == "partitions assigned" and each["partitions"] for each in said)

    def _minds_sigterm(self) -> bool:
        """Whether it has come so far: a process that has only just begun ends by any signal."""
        if self._process.poll() is not None:
            return False  # the supervisor is about to start another
        status = Path(f"/proc/{self.pid}/status").read_text()
        caught = int(status.partition("SigCgt:")[2].split()[0], 16)
        return bool(caught >> (signal.SIGTERM - 1) & 1)

    def _start(self) -> None:
        with self._errors.open("ab") as errors:
            self._process = cli("process", "windows", "rollups", "--config", self._config, stderr=errors)

    async def _supervise(self) -> None:
        while True:
            await asyncio.sleep(0.05)
            if (status := self._process.poll()) is not None:
                self.gave_up.append(f"status {status}: {_last_words(self._errors.read_text())}")
                self._start()


def _last_words(errors: str) -> str:
    """What the command says to a person at its end; all the rest are logs."""
    return next((line for line in reversed(errors.splitlines()) if line.startswith("streammon: ")), errors[-2000:])


class Stage:
    """What a fault can get hold of."""

    def __init__(self, grounds: Grounds, prefix: str, proxy: KafkaProxy) -> None:
        self.kafka, self.proxy = grounds.kafka, proxy
        self.members: list[Member] = []
        self.gave_up: list[str] = []
        self._grounds, self._prefix = grounds, prefix
        self._numbers = itertools.count()

    def join(self) -> Member:
        client = f"member-{next(self._numbers)}-"
        settings = self._grounds.settings(self._prefix, f"127.0.0.1:{self._grounds.proxy_port}", client)
        config = self._grounds.directory / f"{self._prefix}{client}.json"  # JSON is YAML
        config.write_text(settings.model_dump_json(include={"bootstrap", "topics", "kafka"}))
        self.members.append(Member(client, config))
        return self.members[-1]

    async def leave(self, member: Member) -> int:
        self.members.remove(member)
        status = await member.stop()
        self.gave_up += member.gave_up
        return status

    async def leave_all(self) -> list[int]:
        return list(await asyncio.gather(*map(self.leave, [*self.members])))

    def named(self, client: str) -> Member:
        return next(member for member in self.members if client.startswith(member.client))
