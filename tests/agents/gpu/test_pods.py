"""Who holds which GPU, from a kubelet's own words over gRPC."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc
import pytest

from streammon.config import GpuSettings
from streammon_agents.gpu.devices import Device
from streammon_agents.gpu.gpus import Gpus
from streammon_agents.gpu.pods import METHOD, Held, Holder, Pods, held, name_of
from streammon_agents.source import Measured
from tests.gpus import Nvml, gpu, uuid

ANSWER = b64decode(
    "CnsKEXJhbmtlci01ZDljLWFiY2RlEgJtbBpiCgZzZXJ2ZXISPgoObnZpZGlhLmNvbS9ncHUSKEdQVS0wMDAwMDAwMC0wMDAwLTQwMDAtODAwMC"
    "0wMDAwMDAwMDAwMDAaAgoAGgICAyIUCgZtZW1vcnkQgICAgAQaBAoCCAEKcwoHYmF0Y2gtMBICbWwaZAoFdHJhaW4SQQoObnZpZGlhLmNvbS9n"
    "cHUSK0dQVS0wMDAwMDAwMS0wMDAwLTQwMDAtODAwMC0wMDAwMDAwMDAwMDA6OjAaAgoAGgICAyIUCgZtZW1vcnkQgICAgAQaBAoCCAEKcwoHYm"
    "F0Y2gtMRICbWwaZAoFdHJhaW4SQQoObnZpZGlhLmNvbS9ncHUSK0dQVS0wMDAwMDAwMS0wMDAwLTQwMDAtODAwMC0wMDAwMDAwMDAwMDA6OjEa"
    "AgoAGgICAyIUCgZtZW1vcnkQgICAgAQaBAoCCAEKdwoFc21hbGwSAm1sGmoKBnNlcnZlchJGChZudmlkaWEuY29tL21pZy0xZy4xMGdiEihNSU"
    "ctMTExMTExMTEtMjIyMi0zMzMzLTQ0NDQtNTU1NTU1NTU1NTU1GgIKABoCAgMiFAoGbWVtb3J5EICAgIAEGgQKAggBCjUKBWRucy0xEgtrdWJl"
    "LXN5c3RlbRofCgNkbnMaAgIDIhQKBm1lbW9yeRCAgICABBoECgIIAQpHCgVzcmlvdhIDbmV0GjkKA2FwcBIYCg9pbnRlbC5jb20vc3Jpb3YSAT"
    "AaAgoAGgICAyIUCgZtZW1vcnkQgICAgAQaBAoCCAEKeAoGY2xhaW1zEgJtbBpqCgNhcHAaAgIDIhQKBm1lbW9yeRCAgICABBoECgIIASpJEgNn"
    "cHUaAm1sIj4KIgogazhzLmdwdS5udmlkaWEuY29tL2NsYWltPTEtZ3B1LTMSDmdwdS5udmlkaWEuY29tGgFuIgVncHUtMw=="
)
"""A ListPodResourcesResponse, made with protoc from the messages of the kubelet's api.proto (v1): GPU 0 held by one
pod, GPU 1 shared by two, a MIG instance, a pod without devices, one with another vendor's, one with a dynamic claim;
all with CPUs, memory and NUMA nodes, which nobody here reads.
"""
MIG = "MIG-11111111-2222-3333-4444-555555555555"


@pytest.fixture
def socket() -> Iterator[Path]:
    """A path that is short enough for a socket."""
    with TemporaryDirectory(prefix="kubelet-") as directory:
        yield Path(directory) / "kubelet.sock"


@contextmanager
def kubelet(socket: Path, answer: bytes | grpc.StatusCode) -> Iterator[None]:
    """A gRPC server on a unix socket that answers ``List``."""

    def list_(request: bytes, context: grpc.ServicerContext) -> bytes:
        assert request == b"", "ListPodResourcesRequest is empty"
        if isinstance(answer, grpc.StatusCode):
            context.abort(answer, "rejected by rate limit")
        return answer

    service, _, method = METHOD[1:].partition("/")
    handler = grpc.method_handlers_generic_handler(service, {method: grpc.unary_unary_rpc_method_handler(list_)})
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((handler,))
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    try:
        yield
    finally:
        server.stop(None).wait()


def test_gpus_and_instances_get_the_names_of_who_holds_them(nvml: Nvml, tmp_path: Path, socket: Path) -> None:
    nvml.say(
        {"count": 3}
        | gpu(0, utilization="50 10", memory_v2="1000 250 700 50", field__83=1000)
        | gpu(1, utilization="50 0")
        | gpu(2, mig=1, migs_max=7, temperature=40)
        | {"2/0.uuid": MIG, "2/0.name": "A MIG 1g.10gb", "2/0.gi": 7}
    )
    pod = tmp_path / "4242"
    pod.mkdir()
    (pod / "cgroup").write_text("0::/kubepods/pod11111111-2222-3333-4444-555555555555/" + "ab" * 32 + "\n")
    nvml.say(gpu(0, compute__0="4242 5000", compute__1="77 100"))
    gpus = Gpus(GpuSettings(pod_resources=socket, processes_s=1), 1.0, tmp_path)
    names = ("namespace", "pod", "container")
    with kubelet(socket, ANSWER):
        gpus.measure()
        nvml.say(gpu(0, field__83=3000))
        seen = gpus.measure()
    gpus.close()
    held_by = {
        thing.id: tuple((thing.labels or {})[name] for name in names if name in (thing.labels or {}))
        for thing in seen.things
    }
    assert held_by == {
        uuid(0): (),  # a GPU is the same whoever holds it
        "ml/ranker-5d9c-abcde/server": ("ml", "ranker-5d9c-abcde", "server"),
        f"{uuid(0)}/4242": ("ml", "ranker-5d9c-abcde", "server"),
        f"{uuid(0)}/77": (),  # in no pod: it looks after the node
        uuid(1): (),  # shared
        uuid(2): (),
        MIG: (),
    }
    assert [thing for thing in seen.things if thing.entity == "container"] == [
        Measured(
            "container",
            "ml/ranker-5d9c-abcde/server",
            {
                "gpu_utilization": 0.5,
                "gpu_memory_busy_fraction": 0.1,
                "gpu_memory_total_bytes": 1000,
                "gpu_memory_used_bytes": 250,
                "gpu_memory_utilization": 0.25,
            },
            {"namespace": "ml", "pod": "ranker-5d9c-abcde", "container": "server", "gpu": uuid(0)},
            {"gpu_energy_j": 2.0},
        )
    ]
    assert seen.why is None


def test_kubelet_that_is_away_or_refuses_leaves_gpus_without_names(socket: Path) -> None:
    device = Device(None, None, uuid(0), {"index": "0"})
    pods = Pods(socket)
    pods.refresh()
    assert (pods.why, pods.labels(device)) == (None, {}), "not on Kubernetes: nothing is wrong"
    with kubelet(socket, ANSWER):
        pods.refresh()
        assert pods.labels(device)["pod"] == "ranker-5d9c-abcde"
    with kubelet(socket, grpc.StatusCode.RESOURCE_EXHAUSTED):
        pods.refresh()
        assert "rejected by rate limit" in (pods.why or "")
        assert pods.labels(device) == {}, "what was true once is not told for ever"
    with kubelet(socket, b"\xff\xff"):
        pods.refresh()
        assert pods.why is not None


def test_words_of_the_kubelet_that_are_not_about_gpus_are_passed_over(socket: Path) -> None:
    with kubelet(socket, ANSWER):
        found = held(socket)
    assert [each.resource for each in found if each.resource != "nvidia.com/gpu"] == [
        "nvidia.com/mig-1g.10gb",
        "intel.com/sriov",
    ]
    assert found[0] == Held("nvidia.com/gpu", uuid(0), Holder("ml", "ranker-5d9c-abcde", "server"))


@pytest.mark.parametrize(
    ("device_id", "name"),
    [
        (uuid(0), uuid(0)),
        (f"{uuid(0)}::7", uuid(0)),
        (MIG, MIG),
        (f"{MIG}::0", MIG),
        (f"MIG-{uuid(0)}/7/0", f"{uuid(0)}/7"),
        ("3", "3"),
        ("nvidia3", "3"),
        ("nvidia3/vgpu1", "3"),
        ("nvidia3/gi5", "3/5"),
        ("nvidia3/gi5/vgpu0", "3/5"),
        ("/dev/nvidia0", None),
        ("", None),
    ],
)
def test_devices_are_known_by_what_plugins_call_them(device_id: str, name: str | None) -> None:
    assert name_of(device_id) == name


def test_instance_is_found_by_the_number_that_older_plugins_give_it() -> None:
    whole = Device(None, None, uuid(3), {"index": "3"})
    part = Device(None, None, MIG, {"index": "3"}, whole)
    part.instance = "5"
    holder = Holder("ml", "p", "c")
    for device_id in (f"MIG-{uuid(3)}/5/0", "nvidia3/gi5", MIG, "nvidia3"):
        pods = Pods(Path("/"), lambda _, id_=device_id: [Held("nvidia.com/gpu", id_, holder)])  # type: ignore[misc]
        pods.refresh()
        assert pods.labels(part) == {"namespace": "ml", "pod": "p", "container": "c"}
        assert bool(pods.labels(whole)) == (device_id == "nvidia3")
