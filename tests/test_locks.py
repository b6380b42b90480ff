"""The lock files: what pip has to find in them, so that a machine that is new next year installs what we did."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent


def locked(name: str) -> list[Requirement]:
    lines = re.findall(r"^[A-Za-z0-9].*?==.*?(?= \\)", (ROOT / name).read_text(), flags=re.MULTILINE)
    return [Requirement(line) for line in lines]


def needed(requirement: Requirement) -> list[Requirement]:
    """What a locked distribution that is installed here asks for."""
    try:
        asked = [Requirement(line) for line in requires(requirement.name) or []]
    except PackageNotFoundError:  # of another platform
        return []
    extras = requirement.extras or {""}
    return [
        each for each in asked if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in extras)
    ]


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-dev.lock"])
def test_what_is_asked_for_with_an_extra_is_locked_with_it(name: str) -> None:
    """pip takes ``coverage==1`` for no pin of ``coverage[toml]``: it looks for the newest, which has no hash here."""
    extras = {canonicalize_name(each.name): each.extras for each in locked(name)}
    assert len(extras) > 20
    for requirement in locked(name):
        for each in needed(requirement):
            assert each.extras <= extras[canonicalize_name(each.name)], f"{requirement} needs {each}: make lock"


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-dev.lock"])
def test_no_address_is_locked(name: str) -> None:
    assert "://" not in (ROOT / name).read_text()
