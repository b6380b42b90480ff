"""Matchers: which labels people mean."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streammon.commands import matcher

LABELS = {"service": "shop", "model": "ranker-2"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("service=shop", True),
        ('service="shop"', True),
        ("service!=shop", False),
        ('region=""', True),
        ('model=~"ranker.*"', True),
        ("model=~ranker", False),  # the whole value has to match
        ("model=~rank.*|scorer", True),
        ("model!~ranker.*", False),
        ("region!~.+", True),
    ],
)
def test_a_matcher_means_what_alertmanagers_does(text: str, expected: bool) -> None:
    assert matcher(text).matches(LABELS) is expected


def test_no_regular_expression_holds_anybody_up() -> None:
    """Python's would take years for this one, and the one task that decides would stand still."""
    assert not matcher('service=~"(a+)+$"').matches({"service": "a" * 1000 + "!"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("service=~(", r"'\(' is no regular expression: missing \)"),
        ("service=~(?=a)b", "invalid perl operator"),
        ('service=~"(a{1000}){1000}"', "is no regular expression"),
        ("service", "is no matcher; write label="),
    ],
)
def test_what_is_no_matcher_is_refused_with_the_reason(text: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        matcher(text)


@given(st.text(max_size=50))
def test_any_text_is_a_matcher_or_refused(text: str) -> None:
    try:
        found = matcher(f"a=~{text}")
    except ValueError:
        return
    assert found.matches({"a": text}) in (True, False)
