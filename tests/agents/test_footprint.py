"""What the agent of a node does without: its memory is taken on every node, for good."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import os, sys
import streammon.broker.kafka  # which the agent has, as soon as it connects
from streammon.cli import main
from streammon_agents.packing import Packer

pack = Packer.pack

def pack_and_tell(self, *given):
    packed = pack(self, *given)
    print(packed.batches[0].event_type, *sys.modules, flush=True)
    os._exit(0)

Packer.pack = pack_and_tell
main()
"""
HEAVY = {
    *("numpy", "aiohttp", "confluent_kafka", "google.protobuf", "grpc", "rich", "sqlite3"),
    *("streammon.cli.admin", "streammon.models", "streammon_agents.sdk"),
}


def test_agent_measures_and_packs_without_libraries_for_what_it_does_not_do(tmp_path: Path) -> None:
    arguments = ["agent", "--bootstrap", "127.0.0.1:9", "--data-dir", str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    packed, *modules = done.stdout.split()
    assert packed == "resource"
    assert HEAVY & set(modules) == set()


def test_numpy_comes_when_it_is_asked_for_and_is_then_all_there() -> None:
    program = """
import sys
from streammon.lazy_numpy import np
assert "numpy" not in sys.modules
assert np.float64(1.5).dtype == "<f8"
assert vars(np)["zeros"] is sys.modules["numpy"].zeros
assert np.linalg is sys.modules["numpy"].linalg
assert np.testing is sys.modules["numpy.testing"]  # which numpy itself looks up when it is asked for
try:
    np.nothing
except AttributeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout == "module 'numpy' has no attribute 'nothing'\n", done.stderr
