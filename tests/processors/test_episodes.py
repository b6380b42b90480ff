"""Episodes: lives of alerts as a table, and what is true of every one of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from streammon_processors.rules import Rule
from streammon_processors.rules.description import SEVERITIES
from streammon_processors.rules.episodes import (
    Episode,
    Step,
    Verdict,
    acknowledged,
    follow,
    given_up,
    silent,
)

SIZE_S: Final = 10.0
SERIES: Final = {"service": "shop"}
LETTERS: Final = {
    "B": Verdict(True, False),
    "c": Verdict(False, True),
    "m": Verdict(False, False),  # between the bound and where it is clear
    "b": Verdict(True, True),
    "?": Verdict(None, None),
    "n": Verdict(None, False),
    "y": Verdict(None, True),
}


def described(**said: Any) -> Rule:
    """A rule as a file says it; what its conditions are does not matter here."""
    if severities := said.pop("severities", ()):
        said["ladder"] = [{"severity": each, "above": 2.0, **fields} for each, fields in severities.items()]
    base = {"name": "r", "source": "inference", "severity": "warning", "summary": "s", "field": "count", "above": 1.0}
    return msgspec.convert(base | said, Rule)


class Life:
    """One series under one rule: what happens to it, and what is told of it."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.now = 1000.0
        self.heard = 1000.0
        self.episode: Episode | None = None
        self.told: list[Episode] = []

    def window(self, verdicts: Sequence[Verdict]) -> None:
        start, self.now = self.now, self.now + SIZE_S
        self.heard = self.now
        self._keep(follow(self.rule, self.episode, verdicts, SERIES, start, self.now))

    def silence(self) -> None:
        self.now += SIZE_S
        self._keep(silent(self.rule, self.episode, SERIES, self.heard, self.now))

    def acknowledge(self, transition: int) -> None:
        if self.episode:
            self._keep(acknowledged(self.episode, transition))

    def give_up(self) -> None:
        if self.episode and not self.episode.fired:
            self._keep(given_up(self.episode))

    def _keep(self, step: Step) -> None:
        self.episode = step.episode
        if step.told:
            self.told.append(step.told)

    def happens(self, what: str) -> None:
        """``-``: time passes; ``~``: it is not heard; ``a2``: transition 2 is acknowledged; ``x``: it is given up."""
        match what[0]:
            case "-":
                self.now += SIZE_S
            case "~":
                self.silence()
            case "a":
                self.acknowledge(int(what[1:]))
            case "x":
                self.give_up()
            case _:
                self.window([LETTERS[letter] for letter in what])


def told(rule: Rule, script: str) -> str:
    """What is told of what happens, each with its place in the script."""
    life, said = Life(rule), []
    for place, what in enumerate(script.split()):
        before = len(life.told)
        life.happens(what)
        said += [f"{place}:{each.state}={each.severity[0]}{each.transition}" for each in life.told[before:]]
    return " ".join(said)


PLAIN: Final[dict[str, Any]] = {}
HELD: Final = {"for": "30s"}
KEPT: Final = {"keep_firing_for": "20s"}
LADDER: Final[dict[str, Any]] = {"severities": {"critical": {}}}
"""Letters of a ladder: first what the warning says, then the critical."""
STEEP: Final[dict[str, Any]] = {"severities": {"critical": {"for": 0.0}}, "for": "30s"}
THREE: Final[dict[str, Any]] = {"severities": {"critical": {}, "info": {}}}
FIRE: Final = {"no_data": "fire"}


@pytest.mark.parametrize(
    ("rule", "script", "expected"),
    [
        # one level
        (PLAIN, "c m ? c", ""),
        (PLAIN, "B", "0:firing=w1"),
        (PLAIN, "c B B B c c", "1:firing=w1 4:resolved=w2"),
        (PLAIN, "B c B c", "0:firing=w1 1:resolved=w2 2:firing=w1 3:resolved=w2"),
        (PLAIN, "B m m ? c", "0:firing=w1 4:resolved=w2"),
        (PLAIN, "B ? n B y", "0:firing=w1 4:resolved=w2"),
        (PLAIN, "B b B", "0:firing=w1 1:resolved=w2 2:firing=w1"),
        # held for
        (HELD, "B B", "0:pending=w0"),
        (HELD, "B B B", "0:pending=w0 2:firing=w1"),
        (HELD, "B B c B B B", "0:pending=w0 2:resolved=w1 3:pending=w0 5:firing=w1"),
        (HELD, "B B m B", "0:pending=w0 2:resolved=w1 3:pending=w0"),
        (HELD, "B ? ? B", "0:pending=w0 3:firing=w1"),
        (HELD, "B - B", "0:pending=w0 2:firing=w1"),
        (HELD, "B x B", "0:pending=w0 1:resolved=w1 2:pending=w0"),
        (HELD, "B B B x c", "0:pending=w0 2:firing=w1 4:resolved=w2"),
        # keep firing for
        (KEPT, "B c B c c", "0:firing=w1 4:resolved=w2"),
        (KEPT, "B c c", "0:firing=w1 2:resolved=w2"),
        (KEPT, "B c m c c", "0:firing=w1 4:resolved=w2"),
        (KEPT, "B c ? c", "0:firing=w1 3:resolved=w2"),
        (KEPT, "B c - c", "0:firing=w1 3:resolved=w2"),
        (KEPT, "B c n c c", "0:firing=w1 4:resolved=w2"),
        # a ladder up and down
        (LADDER, "Bc", "0:firing=w1"),
        (LADDER, "BB", "0:firing=c1"),
        (LADDER, "Bc BB Bc cc", "0:firing=w1 1:firing=c2 2:firing=w3 3:resolved=w4"),
        (LADDER, "BB Bc BB", "0:firing=c1 1:firing=w2 2:firing=c3"),
        (LADDER, "BB cc", "0:firing=c1 1:resolved=c2"),
        (LADDER, "Bc BB B? ?? Bc", "0:firing=w1 1:firing=c2 4:firing=w3"),
        (LADDER, "cB Bc", "0:firing=c1 1:firing=w2"),
        (THREE, "Bcc BBc BBB BBc Bcc ccc", "0:firing=i1 1:firing=w2 2:firing=c3 3:firing=w4 4:firing=i5 5:resolved=i6"),
        (STEEP, "Bc Bc Bc", "0:pending=w0 2:firing=w1"),
        (STEEP, "Bc BB Bc", "0:pending=w0 1:firing=c1 2:firing=w2"),
        # the graver ends while the milder has not held yet: that goes on waiting
        (STEEP, "BB Bc Bc", "0:firing=c1 1:resolved=c2 2:firing=w1"),
        (STEEP, "BB Bc cc", "0:firing=c1 1:resolved=c2 2:resolved=w1"),
        # acknowledged
        (PLAIN, "B a1 B c", "0:firing=w1 1:acknowledged=w2 3:resolved=w3"),
        (PLAIN, "B a0 a2 a1 a1 a2", "0:firing=w1 3:acknowledged=w2"),
        (PLAIN, "a1 B c a2 B", "1:firing=w1 2:resolved=w2 4:firing=w1"),
        (HELD, "B a0 B B a0 a1", "0:pending=w0 3:firing=w1 5:acknowledged=w2"),
        (KEPT, "B a1 c B c c", "0:firing=w1 1:acknowledged=w2 5:resolved=w3"),
        (LADDER, "Bc a1 BB a1 a2 a3", "0:firing=w1 1:acknowledged=w2 2:firing=c3 5:acknowledged=c4"),
        (LADDER, "BB a1 Bc BB", "0:firing=c1 1:acknowledged=c2 2:acknowledged=w3 3:firing=c4"),
        (LADDER, "BB Bc a1 a2", "0:firing=c1 1:firing=w2 3:acknowledged=w3"),
        # silence
        (PLAIN, "~", ""),
        (PLAIN, "B ~ ~ c", "0:firing=w1 3:resolved=w2"),
        (FIRE, "c ~ ~ ~ c", "1:no_data=w1 4:resolved=w2"),
        (FIRE, "c ~ ?", "1:no_data=w1 2:resolved=w2"),
        (FIRE, "c ~ B", "1:no_data=w1 2:firing=w2"),
        (FIRE, "B ~ B c", "0:firing=w1 1:no_data=w2 2:firing=w3 3:resolved=w4"),
        (FIRE, "B ~ ? c", "0:firing=w1 1:no_data=w2 2:firing=w3 3:resolved=w4"),
        (FIRE, "B ~ c", "0:firing=w1 1:no_data=w2 2:resolved=w3"),
        (FIRE, "B a1 ~ B", "0:firing=w1 1:acknowledged=w2 2:no_data=w3 3:firing=w4"),
        (FIRE, "B ~ a2 ~ B", "0:firing=w1 1:no_data=w2 2:acknowledged=w3 4:firing=w4"),
        (FIRE, "c ~ a1 c ~", "1:no_data=w1 2:acknowledged=w2 3:resolved=w3 4:no_data=w1"),
        (FIRE | LADDER, "BB ~ Bc", "0:firing=c1 1:no_data=c2 2:firing=w3"),
        (FIRE | KEPT, "B c ~ c", "0:firing=w1 2:no_data=w2 3:resolved=w3"),
        # a breach has not held because nothing was heard of it
        (FIRE | HELD, "B ~ ~ ~ B B B", "0:pending=w0 1:no_data=w1 4:resolved=w2 6:firing=w1"),
        (FIRE | HELD, "B ~ c", "0:pending=w0 1:no_data=w1 2:resolved=w2"),
        ({"no_data": "resolve"}, "B ~ ~ B", "0:firing=w1 1:resolved=w2 3:firing=w1"),
        ({"no_data": "resolve"}, "c ~ c", ""),
        ({"no_data": "resolve", **HELD}, "B ~ B", "0:pending=w0 1:resolved=w1 2:pending=w0"),
        ({"no_data": "hold", **HELD}, "B ~ B", "0:pending=w0 2:firing=w1"),
    ],
)  # fmt: skip
def test_what_is_told_of_a_series(rule: dict[str, Any], script: str, expected: str) -> None:
    assert told(described(**rule), script) == expected


def test_an_alert_keeps_its_id_while_it_changes_and_the_next_has_another() -> None:
    life = Life(described(**LADDER))
    for what in ["Bc", "a1", "BB", "Bc", "cc", "BB"]:
        life.happens(what)
    ids = [each.alert_id for each in life.told]
    assert len(ids) == 6
    assert len(set(ids[:5])) == 1
    assert ids[5] != ids[0]


def test_an_episode_goes_from_its_first_breach_to_the_end_of_what_decided() -> None:
    life = Life(described(**HELD))
    for what in ["c", "B", "B", "?", "B", "?", "c"]:
        life.happens(what)
    assert [(each.since_unix_s, each.through_unix_s) for each in life.told] == [
        (1010, 1020), (1010, 1050), (1010, 1070),
    ]  # fmt: skip


@pytest.mark.parametrize("since", [0.0, 1_700_000_000.0, 1_700_000_000.1, 1_700_000_000.3, 1_700_000_000.7])
def test_three_windows_of_a_tenth_of_a_second_are_as_long_as_that(since: float) -> None:
    subject, episode = described(**{"for": "300ms"}), None
    for index in range(3):
        start, end = round(since + index / 10, 1), round(since + (index + 1) / 10, 1)
        episode = follow(subject, episode, [LETTERS["B"]], SERIES, start, end).episode
        assert episode is not None
        assert episode.fired == (index == 2)


def test_an_episode_outlives_being_stored() -> None:
    life = Life(described(**STEEP, **FIRE))
    for what in ["Bc", "BB", "~", "Bc", "BB", "a4"]:
        life.happens(what)
        if life.episode:
            stored = msgspec.msgpack.decode(msgspec.msgpack.encode(life.episode), type=Episode)
            assert stored == life.episode
            assert stored.alert_id == life.episode.alert_id


# ---------------------------------------------------------------- what is true of every life

durations: Final = st.sampled_from([0.0, 10.0, 20.0, 50.0])
rules: Final = st.builds(
    lambda severities, holds, keep, no_data: described(
        severity=severities[0],
        severities={each: {"for": hold} for each, hold in zip(severities[1:], holds, strict=False)},
        keep_firing_for=keep,
        no_data=no_data,
        **{"for": holds[-1]},
    ),
    st.permutations(SEVERITIES).flatmap(lambda order: st.integers(1, 3).map(lambda many: order[:many])),
    st.lists(durations, min_size=3, max_size=3),
    durations,
    st.sampled_from(["hold", "fire", "resolve"]),
)
verdicts: Final = st.sampled_from(list(LETTERS.values()))


class Lives(RuleBasedStateMachine):
    """Anything may happen to a series, in any order."""

    @initialize(described=rules)
    def begin(self, described: Rule) -> None:
        self.life = Life(described)
        self.asked = set[tuple[str, int]]()

    @rule(found=st.lists(verdicts, min_size=3, max_size=3))
    def a_window(self, found: list[Verdict]) -> None:
        before = self.life.episode
        self.life.window(found[: len(self.life.rule.levels)])
        if all(each == (None, None) for each in found) and before is not None and not before.quiet:
            assert (self.life.episode or before).state == before.state

    @rule(breach=st.booleans(), windows=st.integers(1, 6))
    def the_same_for_a_while(self, breach: bool, windows: int) -> None:
        for _ in range(windows):
            self.life.window([LETTERS["B" if breach else "c"]] * len(self.life.rule.levels))
        firing = self.life.episode is not None and self.life.episode.state in ("firing", "acknowledged")
        holds = [level.hold_s for level in self.life.rule.levels]
        if breach and windows * SIZE_S >= min(holds):
            assert firing
        if not breach and windows * SIZE_S >= self.life.rule.keep_firing_s:
            assert self.life.episode is None

    @rule()
    def a_silence(self) -> None:
        before = self.life.episode
        self.life.silence()
        match self.life.rule.no_data:
            case "hold":
                assert self.life.episode == before
            case "fire":
                assert self.life.episode is not None
                assert self.life.episode.quiet
            case "resolve":
                assert self.life.episode is None

    @rule(off=st.sampled_from([0, 0, 0, -1, 1]))
    def an_acknowledgement(self, off: int) -> None:
        before = self.life.episode
        if before is None:
            return
        self.life.acknowledge(before.transition + off)
        after = self.life.episode
        assert after is not None
        if off or before.state not in ("firing", "no_data"):
            assert after == before
        else:
            assert (after.state, after.severity) == ("acknowledged", before.severity)
            self.asked.add((after.alert_id, after.transition))

    @precondition(lambda self: self.life.episode is not None and not self.life.episode.fired)
    @rule()
    def it_is_given_up(self) -> None:
        self.life.give_up()
        assert self.life.episode is None

    @invariant()
    def each_record_is_the_next_transition_of_one_alert_and_says_something_new(self) -> None:
        open_, seen = None, set[str]()
        for before, now in pairwise([None, *self.life.told]):
            assert now is not None
            if open_ is None:
                assert now.alert_id not in seen, "an alert that ended does not come back"
                assert now.transition == (0 if now.state == "pending" else 1)
            else:
                assert before is not None
                assert now.alert_id == open_, "one open alert a series"
                assert now.transition == before.transition + 1
                assert (now.state, now.severity) != (before.state, before.severity)
                self._moves_as_it_may(before, now)
            seen.add(now.alert_id)
            open_ = None if now.state == "resolved" else now.alert_id

    def _moves_as_it_may(self, before: Episode, now: Episode) -> None:
        worse = SEVERITIES.index(now.severity) > SEVERITIES.index(before.severity)
        assert now.state != "pending"
        if worse and before.state != "pending":
            assert now.state == "firing", "what became worse nobody has seen"
        if now.state == "acknowledged" and before.state != "acknowledged":
            assert (now.alert_id, now.transition) in self.asked
        if before.state == "acknowledged" and now.state == "firing":
            assert worse or before.quiet, "what was seen does not page again"
        assert now.since_unix_s == before.since_unix_s
        assert now.through_unix_s >= before.through_unix_s

    @invariant()
    def what_is_followed_is_what_was_told_and_no_more(self) -> None:
        episode, last = self.life.episode, self.life.told[-1] if self.life.told else None
        if episode is None:
            assert last is None or last.state == "resolved"
        elif last is not None and last.alert_id == episode.alert_id:
            assert episode.transition == last.transition
            assert episode.state == last.state
        else:
            assert episode.state == "pending", "it waits since the alert before has ended"

    @invariant()
    def it_is_as_bad_as_the_gravest_level_that_fires(self) -> None:
        episode = self.life.episode
        if episode is None or episode.quiet:
            return
        levels = zip(self.life.rule.levels, episode.rungs, strict=True)
        firing = [level.severity for level, rung in levels if rung.firing]
        assert bool(firing) == (episode.state in ("firing", "acknowledged"))
        if firing:
            assert episode.severity == firing[-1]


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=300, stateful_step_count=25, deadline=None)


@settings(max_examples=100)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=8),
    st.sampled_from([0.0, 20.0]),
)
def test_flapping_within_keep_firing_for_opens_and_closes_one_alert(
    flaps: list[tuple[int, int]], hold_s: float
) -> None:
    """It is clear for 40 s at most between two breaches, and firing is kept for 50 s."""
    life = Life(described(keep_firing_for="50s", **{"for": hold_s}))
    script = "B B " + "".join("B " * breaches + "c " * clear for breaches, clear in flaps) + "B c c c c c c"
    for what in script.split():
        life.happens(what)
    assert [each.state for each in life.told if each.state != "pending"] == ["firing", "resolved"]
    assert life.told[-1].through_unix_s == life.now - SIZE_S


class Order(NamedTuple):
    severity: str
    ladder: tuple[str, ...]


@pytest.mark.parametrize("order", [Order("warning", ("critical",)), Order("critical", ("warning",))])
def test_it_does_not_matter_which_severity_is_the_rules_own(order: Order) -> None:
    subject = described(severity=order.severity, severities={each: {} for each in order.ladder})
    assert told(subject, "Bc BB Bc cc") == "0:firing=w1 1:firing=c2 2:firing=w3 3:resolved=w4"
