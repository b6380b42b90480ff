"""How soon a person sees it: from ``streammon up --demo`` to data on the page, and from a window's end to SQLite."""

from __future__ import annotations

import json
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from streammon.config import WindowSettings
from streammon_sinks.sqlite import ResultStore

WATCH_S = 40.0


def main() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as directory:
        program = "from streammon.cli import main; main()"
        command = [sys.executable, "-c", program, "up", "--demo", "--data-dir", directory, "--port", str(port)]
        started = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            for what in ("hosts", "models"):
                _wait_for(port, what)
                print(f"{what} on the page after {time.monotonic() - started:.1f} s")
            _print_delays(Path(directory) / "results.sqlite")
        finally:
            process.send_signal(signal.SIGTERM)
            stopping = time.monotonic()
            process.wait(15)
            print(f"stopped {time.monotonic() - stopping:.1f} s after SIGTERM, exit status {process.returncode}")


def _wait_for(port: int, what: str) -> None:
    while not _overview(port).get(what):
        time.sleep(0.05)


def _overview(port: int) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/overview?range_s=300", timeout=2) as response:
            overview: dict[str, Any] = json.load(response)
            return overview
    except OSError:
        return {}


def _print_delays(path: Path) -> None:
    """Seconds from the moment a window may close (its end and the lateness) until it can be read."""
    store = ResultStore.open(path, read_only=True)
    lateness_s = WindowSettings().lateness_s
    for source in ("inference", "resource"):
        seen: dict[float, float] = {}
        began = time.time()
        while time.time() < began + WATCH_S / 2:
            now = time.time()
            for window in store.windows(source, began):
                if window.part == "main":
                    seen.setdefault(window.end_unix_s, now)
            time.sleep(0.02)
        delays = sorted(at - end - lateness_s for end, at in seen.items())
        print(
            f"{source}: {len(delays)} windows readable after end + lateness + "
            f"{statistics.median(delays):.2f} s (median), {delays[-1]:.2f} s (worst)"
        )
    store.close()


if __name__ == "__main__":
    main()
