"""The samples of which Evidently was asked. `values.json` has the first values of each, should numpy change them."""

from __future__ import annotations

from typing import Any

import numpy as np

SIZES = (1500, 700)
NUMERIC = {
    "normal": 0.3,
    "same": 0.0,
    "lognormal": 0.4,
    "heavy": 0.5,
    "bimodal": 0.6,
    "large_offset": 0.5,
    "zero_inflated": 0.3,
}
CATEGORICAL = {"countries": 0.3, "same_countries": 0.0}
METHODS = ("ks", "wasserstein", "jensenshannon", "psi", "kl_div", "hellinger")
OF_CATEGORIES = ("chisquare", "jensenshannon", "psi", "kl_div", "hellinger")


def sample(name: str, seed: int, size: int, shift: float) -> list[Any]:
    """Values of one distribution, moved by so much."""
    rng = np.random.default_rng(seed)
    return list((_numbers if name in NUMERIC else _countries)(name, rng, size, shift).tolist())


def _numbers(name: str, rng: np.random.Generator, size: int, shift: float) -> Any:
    match name:
        case "lognormal":
            return np.exp(rng.standard_normal(size) + shift)
        case "heavy":
            return rng.standard_normal(size) / rng.random(size) + shift
        case "bimodal":
            return rng.standard_normal(size) + np.where(rng.random(size) < 0.5 - shift / 4, -3.0, 3.0)
        case "large_offset":
            return 1e9 + rng.standard_normal(size) + shift
        case "zero_inflated":
            return np.where(rng.random(size) < 0.6 - shift, 0.0, 1 + rng.random(size))
    return rng.standard_normal(size) + shift


def _countries(name: str, rng: np.random.Generator, size: int, shift: float) -> Any:
    shares = np.array([0.4, 0.3, 0.2, 0.1]) + np.array([-shift, shift / 2, shift / 2, 0.0])
    return rng.choice(["de", "fr", "it", "pl"], size, p=shares)
