"""The world, of which the model knows only what it was shown: every few minutes phishers learn something.

One feature at a time becomes, on every phishing page, what it is on pages that one may trust. That feature drifts, and
a model that relied on it is wrong more often, until there is a version that was trained on such pages.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from examples.model_service.options import Times

LESSONS: tuple[tuple[str, float | str], ...] = (
    ("https", "trusted"),
    ("empty_server_form_handler", 1.0),
    ("request_from_other_domain", 1.0),
    ("popup_window", 1.0),
)
"""What they do, one after the other, and then again: certificates, form handlers of their own, no foreign content, no
windows that pop up."""


def lesson(elapsed_s: float, times: Times) -> tuple[str, float | str] | None:
    """The feature that phishers have under control at this time, and what they make of it; at first, none."""
    number = times.number(elapsed_s)
    return None if number is None else LESSONS[number % len(LESSONS)]


def as_of(page: Mapping[str, Any], elapsed_s: float, times: Times) -> dict[str, Any]:
    """The features of a page as it looks at this time."""
    learnt = lesson(elapsed_s, times)
    features: dict[str, Any] = dict(page["features"])
    return features | dict([learnt]) if learnt and page["label"] else features
