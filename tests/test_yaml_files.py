"""YAML files of people: what an error says, where, and what it does not repeat."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import pytest
from msgspec import Struct

from streammon.errors import ConfigError
from streammon.yaml_files import MAX_MISTAKES, parse_yaml


class Hidden(Struct, forbid_unknown_fields=True):
    confidential: ClassVar[bool] = True
    env: str


class Part(Struct, forbid_unknown_fields=True):
    kind: Literal["a", "b"] = "a"
    hidden: Hidden | None = None
    inner: dict[str, int] = {}


class File(Struct, forbid_unknown_fields=True):
    parts: dict[str, Part] = {}
    lists: list[dict[str, Part]] = []


class Item(Struct, forbid_unknown_fields=True):
    name: str
    size: int = 0


class Listed(Struct):
    items: list[Item]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("parts: {one: {kind: a}, two: {kind: c}}", "f:1:37: two.kind = 'c': Invalid enum value 'c'; allowed: a, b"),
        ("colour: 3", "= '3': Object contains unknown field `colour`"),
        ("parts: {x: {inner: {k: 1, l: z}}}", "f:1:30: x.inner.l = 'z': Expected `int`, got `str`"),
        ("lists: [{a: {}}, {b: {}, c: {kind: x}}]", "f:1:36: c.kind = 'x': Invalid enum value 'x'"),
    ],
)
def test_an_error_below_a_name_of_the_file_says_which_name(text: str, said: str) -> None:
    assert said in message(text)


@pytest.mark.parametrize("hidden", ["hush", "{env: 7, hush: 1}", "{env: [hush]}", "{value: hush}"])
def test_what_stands_where_a_secret_belongs_is_not_repeated(hidden: str) -> None:
    said = message(f"parts: {{one: {{hidden: {hidden}}}}}")
    assert said.startswith("f:1:")
    assert "one.hidden" in said
    assert "a secret is not written here, only where it is kept" in said
    assert "= " not in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("parts: {one: {hiden: hush}}", "f:1:22: one.hiden: Object contains unknown field `hiden`"),
        ("parts: {one: hush}", "f:1:14: one: Expected `object`, got `str`"),
    ],
)
def test_secret_in_a_wrong_place_is_not_repeated(text: str, said: str) -> None:
    assert said in message(text)
    assert "hush" not in message(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("parts: {one: 2027-13-45}", "month must be in 1..12"),
        ("parts: {one: 0b_}", "invalid literal for int()"),
        ("parts: {one: " + "1" * 5000 + "}", "Exceeds the limit"),
        ("? [a, b]\n: c", "f:1:3: a key is a plain text here"),
        ("parts: &x {one: *x}", "recursion"),
    ],
)
def test_text_that_only_looks_like_a_value_is_refused_and_raises_nothing_else(text: str, said: str) -> None:
    assert said in message(text)


def test_each_item_of_a_list_is_told_its_first_mistake() -> None:
    told = message("items: [{name: a, size: x}, {name: b, size: 1}, {name: c, sise: 1}, {name: d, size: []}]", Listed)
    assert told.splitlines() == [
        "f:1:25: item 'a': size = 'x': Expected `int`, got `str`",
        "f:1:65: item 'c': sise = '1': Object contains unknown field `sise`; allowed: name, size",
        "f:1:85: item 'd': size: Expected `int`, got `array`",
    ]
    many = "items: [" + ", ".join(f"{{name: n{number}, size: x}}" for number in range(1000)) + "]"
    assert len(message(many, Listed).splitlines()) == MAX_MISTAKES


def test_what_stands_at_the_top_is_named() -> None:
    assert message("items: 1\n", Listed) == "f:1:8: items = '1': Expected `array`, got `int`"
    assert message("part: x\n") == "f:1:7: part = 'x': Object contains unknown field `part`; allowed: parts, lists"
    assert message("nothing", Listed) == "f:1:1: 'nothing': Expected `object`, got `str`; allowed: items"


def test_what_is_no_yaml_is_told_in_one_line_with_its_place() -> None:
    told = message("parts:\n  - one: 1\n   two: 2\n")
    assert told.startswith("f:3:4: this is not valid YAML: while parsing a block collection, expected <block end>")
    assert "\n" not in told
    assert "hush" not in message("parts:\n  one: hush\n   two: hush\n")  # the parser's own words quote the line


def message(text: str, type_: Any = File) -> str:
    with pytest.raises(ConfigError) as raised:
        parse_yaml(text, type_, "f")
    return str(raised.value)
