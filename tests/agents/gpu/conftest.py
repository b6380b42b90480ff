from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import gpus


@pytest.fixture
def nvml(tmp_path: Path) -> Iterator[gpus.Nvml]:
    with gpus.nvml(tmp_path) as said:
        yield said
