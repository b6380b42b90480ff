"""What Evidently says of samples that can be made again: writes ``values.json`` beside this file.

It runs in an environment of its own, because Evidently 0.7 needs plotly below 6; see README.md.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from evidently import DataDefinition, Dataset, Report
from evidently.legacy.calculations.stattests.utils import get_binned_data
from evidently.legacy.core import ColumnType
from evidently.metrics import ValueDrift
from samples import CATEGORICAL, METHODS, NUMERIC, OF_CATEGORIES, SIZES, sample


def drift_of(reference: list[Any], current: list[Any], method: str, numeric: bool) -> float:
    """What `ValueDrift` reports: a p-value, or a distance."""
    columns = {"numerical_columns": ["x"]} if numeric else {"categorical_columns": ["x"]}
    both = [
        Dataset.from_pandas(pd.DataFrame({"x": values}), DataDefinition(**columns)) for values in (current, reference)
    ]
    snapshot = Report([ValueDrift(column="x", method=method)]).run(*both)
    return float(snapshot.dict()["metrics"][0]["value"])


def binned(reference: list[Any], current: list[Any]) -> dict[str, Any]:
    """Evidently's own bins, and its counts in them."""
    first, second = pd.Series(reference), pd.Series(current)
    edges = np.histogram_bin_edges(np.concatenate([first, second]), bins="sturges")
    shares = get_binned_data(first, second, ColumnType.Numerical, 30, False)
    counts = [np.histogram(each, edges)[0] for each in (first, second)]
    assert all(np.allclose(c / c.sum(), s) for c, s in zip(counts, shares, strict=True))
    return {"edges": edges.tolist(), "reference": counts[0].tolist(), "current": counts[1].tolist()}


def case(name: str, shift: float, seed: int, methods: tuple[str, ...], numeric: bool) -> dict[str, Any]:
    reference, current = sample(name, seed, SIZES[0], 0.0), sample(name, seed + 1, SIZES[1], shift)
    return {
        "name": name,
        "seeds": [seed, seed + 1],
        "sizes": SIZES,
        "shift": shift,
        "numeric": numeric,
        "first_values": [reference[:3], current[:3]],
        "says": {method: drift_of(reference, current, method, numeric) for method in methods},
        "bins": binned(reference, current) if numeric and len(set(reference)) > 20 else None,
    }


def main() -> None:
    cases = [case(name, shift, 10 * at, METHODS, True) for at, (name, shift) in enumerate(NUMERIC.items(), 1)]
    cases += [
        case(name, shift, 500 + 10 * at, OF_CATEGORIES, False) for at, (name, shift) in enumerate(CATEGORICAL.items())
    ]
    made_with = {name: version(name) for name in ("evidently", "numpy", "pandas", "scipy")}
    file = Path(__file__).with_name("values.json")
    file.write_text(json.dumps({"made_with": made_with, "cases": cases}, indent=1) + "\n")


if __name__ == "__main__":
    main()
