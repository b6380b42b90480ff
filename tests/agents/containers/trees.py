"""Trees of cgroups, made of what was recorded in ``tests/data/cgroups``."""

from __future__ import annotations

from pathlib import Path

DATA = Path(__file__).parents[2] / "data" / "cgroups"
V1_ID, V1_POD = "c0ffee" * 10 + "1234", "5f0c2d3a-8a1e-4b77-9d53-0c6d1f2e3a4b"
V2_ID, V2_POD = (
    "34dc0b5e626f2c5c4c5170e34b10e7654ce36f0fcd532739f4445baabea03376",
    "74c13223-5a00-11e9-b385-42010a80018d",
)
DOCKER_ID = "9ec39b91f3d70e1beff50a308f77067065ea6be0d91a3378375056cd4422cf3d"
V1_PATH = f"kubepods/burstable/pod{V1_POD}/{V1_ID}"
V2_POD_PATH = f"kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{V2_POD.replace('-', '_')}.slice"
V2_PATH = f"{V2_POD_PATH}/cri-containerd-{V2_ID}.scope"
DOCKER_PATH = f"system.slice/docker-{DOCKER_ID}.scope"


def tree(name: str, sysfs: Path) -> Path:
    """``sysfs`` with the tree in it."""
    for part in ("\n" + (DATA / f"{name}.txt").read_text()).split("\n=== ")[1:]:
        path, _, content = part.partition("\n")
        file = sysfs / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content if not content or content.endswith("\n") else content + "\n")
    return sysfs


def change(file: Path, old: str, new: str) -> None:
    """Let the kernel count on."""
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
