"""Which container a cgroup is, by what the runtimes call theirs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streammon_agents.containers import container_of
from streammon_agents.containers.identity import Container, of_path, pod_uid_of

ID = "34dc0b5e626f2c5c4c5170e34b10e7654ce36f0fcd532739f4445baabea03376"
SHORT = "34dc0b5e626f"
UID = "74c13223-5a00-11e9-b385-42010a80018d"
UID_ = UID.replace("-", "_")
STATIC = "a32907ed7b1e0d2fd0d3a0c7a1b0c1d2"
"""Pods of files on the node have a hash for a uid."""
KUBEPODS = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod"


@pytest.mark.parametrize(
    ("path", "runtime", "pod_uid", "qos"),
    [
        (f"/docker/{ID}", "docker", None, None),
        (f"/system.slice/docker-{ID}.scope", "docker", None, None),
        (f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope/container", "podman", None, None),
        (f"/libpod_parent/libpod-{ID}", "podman", None, None),
        (f"/default/{ID}", None, None, None),
        (f"/system.slice/nerdctl-{ID}.scope", "containerd", None, None),
        (f"/kubepods/burstable/pod{UID}/{ID}", None, UID, "burstable"),
        (f"/kubepods/pod{UID}/{ID}", None, UID, "guaranteed"),
        (f"/kubepods/besteffort/pod{STATIC}/{ID}", None, STATIC, "besteffort"),
        (f"{KUBEPODS}{UID_}.slice/cri-containerd-{ID}.scope", "containerd", UID, "burstable"),
        (f"{KUBEPODS}{UID_}.slice/crio-{ID}.scope/container", "cri-o", UID, "burstable"),
        (f"{KUBEPODS}{UID_}.slice/docker-{ID}.scope", "docker", UID, "burstable"),
        (f"/kubepods.slice/kubepods-pod{STATIC}.slice/cri-containerd-{ID}.scope", "containerd", STATIC, "guaranteed"),
        (f"/system.slice/c.service/kubepods-pod{UID_}.slice:cri-containerd:{ID}", "containerd", UID, "guaranteed"),
        (f"/docker/{'0' * 64}/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/"
         f"kubelet-kubepods-besteffort-pod{UID_}.slice/cri-containerd-{ID}.scope", "containerd", UID, "besteffort"),
        (f"/../cri-containerd-{ID}.scope", "containerd", None, None),
        (f"/ecs/{STATIC}/{ID}", "docker", None, None),
    ],
)  # fmt: skip
def test_container_is_known_by_its_path(path: str, runtime: str | None, pod_uid: str | None, qos: str | None) -> None:
    assert of_path(path) == Container(SHORT, ID, runtime, pod_uid, qos)
    assert pod_uid_of(path) == pod_uid


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "",
        "/init.scope",
        "/system.slice/docker.service",
        f"{KUBEPODS}{UID_}.slice",
        f"{KUBEPODS}{UID_}.slice/crio-conmon-{ID}.scope",
        f"/machine.slice/libpod-conmon-{ID}.scope",
        f"/docker/{ID[:-1]}",
        f"/docker/{ID}0",
        "/lxc",
    ],
)
def test_what_is_no_container_is_none(path: str) -> None:
    assert of_path(path) is None


def test_names_of_lxc_and_fargate() -> None:
    assert of_path("/lxc.payload.web-1/system.slice/ssh.service") == Container("web-1", "web-1", "lxc")
    assert of_path("/lxc/web-1") == Container("web-1", "web-1", "lxc")
    fargate = f"{STATIC}-3484927383"
    assert of_path(f"/ecs/{STATIC}/{fargate}") == Container(STATIC[:12], fargate, "docker")


def process(procfs: Path, pid: int, cgroup: str) -> None:
    (procfs / str(pid)).mkdir()
    (procfs / str(pid) / "cgroup").write_text(cgroup)


def test_process_is_in_the_container_that_any_hierarchy_tells(tmp_path: Path) -> None:
    process(tmp_path, 1, f"12:pids:/init.scope\n11:memory:/docker/{ID}\n1:name=systemd:/docker/{ID}\n0::/\n")
    process(tmp_path, 2, f"0::{KUBEPODS}{UID_}.slice/cri-containerd-{ID}.scope\n")
    process(tmp_path, 3, "0::/user.slice\n")
    process(tmp_path, 4, f"12:pids\n::\n\0\xff\n5:memory:/docker/{ID}:with:colons\n")
    found = [container_of(pid, tmp_path) for pid in range(1, 6)]
    assert [each and each.pod_uid for each in found] == [None, UID, None, None, None]
    assert [each and each.id for each in found] == [SHORT, SHORT, None, None, None]


@pytest.mark.skipif(not Path("/proc/self/cgroup").exists(), reason="Linux only")
def test_live_process_is_asked_without_complaint() -> None:
    here = Path("/proc/self/cgroup").read_text()
    assert (container_of(os.getpid()) is not None) == any(of_path(line.split(":", 2)[2]) for line in here.splitlines())
    assert container_of(2**22 + 1) is None


@given(st.text(alphabet="/podkubeslice.-_:0123456789abcdef\n", max_size=300))
def test_no_path_is_too_odd(path: str) -> None:
    found = of_path(path)
    assert found is None or found.full_id in path
