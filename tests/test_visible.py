"""What others have written does not command a terminal."""

from __future__ import annotations

import pytest

from streammon.cli.base import Output, print_rows


def test_table_shows_control_characters_and_sends_none(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows([{"labels": "a\x1b]0;title\x07\x1b[2J\nb"}], ["labels"], Output.TABLE, empty="nothing")
    said = capsys.readouterr().out
    assert "\\x1b]0;title\\x07\\x1b[2J\\nb" in said
    assert "\x1b" not in said
