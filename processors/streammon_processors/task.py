"""What a processor is: a pure task, where it reads and writes, and the name under which it remembers.

The runtime runs it, `streammon replay` repeats it, and `streammon_processors.contract` tests it.
`docs/component-contract.md` shows how to write one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import msgspec

from streammon.broker import Outgoing, Record
from streammon.topics import DAY_S, TopicSpec, journal_topic, state_topics

JOURNAL_MARGIN_S = 2 * DAY_S
"""How much longer a journal is kept than it is needed: for as long a processor may stand still."""


class Task(Protocol):
    """A pure, deterministic computation over the records of one partition number.

    No clock, no I/O, no randomness: the same records in the same order give the same bytes out, however they are cut
    into calls. `tests/contracts/test_task.py` holds every task to that.
    """

    def process(self, topic: str, records: Sequence[Record]) -> list[Outgoing]:
        """Take in the next records of one input topic; what is to be published because of them."""
        ...

    def snapshot(self) -> bytes:
        """What `restore` needs, as of the last published output."""
        ...

    def restore(self, snapshot: bytes) -> None: ...

    def offsets(self) -> Mapping[str, int]:
        """By topic, the first record that has to be given again after `restore`."""
        ...

    @property
    def waiting(self) -> Sequence[str]:
        """The topics in which the passing of time alone would bring output; idle ones get tick records."""
        ...

    def watermarks(self) -> Mapping[str, float]:
        """By topic, how far event time has come, Unix seconds; nothing is published before its time has passed.

        Shown to people, and how a replay knows that a snapshot is old enough. Empty for a task without event time.
        """
        ...


class Step(NamedTuple):
    """A piece of what a task makes of a batch. After it, `snapshot` and `offsets` are as of this piece."""

    outputs: Sequence[Outgoing]
    taken: int | None = None
    """So many records of the batch are done with: it may end there, and the others come later. None: within one."""


@runtime_checkable
class Stepwise(Protocol):
    """What a task may offer beside `Task.process`, if a single record can bring much output, or take long."""

    def steps(self, topic: str, records: Sequence[Record]) -> Iterator[Step]:
        """What `process` returns, in pieces. Each may be the last that is asked for."""
        ...


@runtime_checkable
class Journaled(Protocol):
    """What a task offers beside `Task`, if its memory is too large for a snapshot.

    It has a *journal*, a topic of its own: it puts what changes in its memory out as records of that topic, among its
    other outputs, and its snapshot says which of them was the last. Restored from the snapshot, it is given the
    records of the journal up to that one, and then knows what it knew. See `streammon_processors.journal`.

    What it keeps on a disk is a copy that saves reading the journal from its start: nothing depends on it.
    """

    def keep_in(self, directory: Path) -> None:
        """Keep the memory there; called before `Task.restore`. Else it is gone with the task."""
        ...

    def recover_from(self) -> float | None:
        """After `Task.restore`, or instead of it: from which broker time on (Unix seconds) the journal is needed."""
        ...

    def recover(self, records: Sequence[Record]) -> None:
        """Take in the next records of the journal, of which those after the snapshot are none of its business."""
        ...

    def recovered(self) -> bool:
        """Whether it knows all now; if not, it has forgotten all, and needs the journal from the start."""
        ...

    def committed(self) -> None:
        """The snapshot that was taken last is committed, and the journal as far as that says."""
        ...

    def close(self) -> None:
        """Let go of the disk; nothing is called after it."""
        ...


def close(task: Task) -> None:
    """Let go of what a task may hold."""
    if isinstance(task, Journaled):
        task.close()


def in_steps(task: Task, topic: str, records: Sequence[Record]) -> Iterator[Step]:
    """What a task puts out because of these records: in pieces if it works so, else all at once."""
    if isinstance(task, Stepwise) and callable(task.steps):
        yield from task.steps(topic, records)
    else:
        yield Step(list(task.process(topic, records)), len(records))


def outputs_of(steps: Iterable[Step]) -> Iterator[Outgoing]:
    """All that some steps put out."""
    return chain.from_iterable(step.outputs for step in steps)


@dataclass(frozen=True)
class Output:
    """A topic that a processor writes."""

    topic: str
    time_of: Callable[[bytes], float | None]
    """The time a record's value is about, Unix seconds: what `streammon replay` means by a range. None for records
    that are another processor's. See `time_field`."""
    retention_s: float | None = 30 * DAY_S
    """How long its records are kept. This and ``compact`` are for topics that are not in `streammon.topics`."""
    compact: bool = False
    """Whether the newest record of each key is kept instead, for ever."""
    partition: int | None = None
    """The one partition in which the records of all tasks meet; None: each stays in its own."""
    by_key: bool = False
    """Whether its records go to the partitions of their keys instead, there to meet those of other tasks."""
    elements: Callable[[bytes], Iterable[tuple[float, bytes]]] | None = None
    """What a record consists of, each with the time it is about, where only that is promised: not how the task packs
    it into records, nor in which order. For tasks that join topics, between which there is no order."""

    def spec(self, partitions: int) -> TopicSpec:
        retention_s = None if self.compact else self.retention_s
        meeting = 1 if self.partition == 0 else partitions
        return TopicSpec(self.topic, meeting, retention_s, self.compact, log_append_time=True)


@dataclass(frozen=True)
class Processor:
    """A task, where it reads and writes, and under which name it remembers."""

    name: str
    inputs: tuple[str, ...]
    task: Callable[[int], Task]
    """Makes the task of one partition number."""
    outputs: tuple[Output, ...] = ()
    """Every topic it writes, but for the dead letters."""
    idle_tick_s: float | None = None
    """How long an input partition is idle before time passes in it by a tick record; `windows.idle_tick_s` if None."""
    files: tuple[Path, ...] = ()
    """What it was made from, beside the settings: when one of them changes, it is made anew."""
    journal_s: float | None = None
    """How long what its tasks write into their journal is needed, if they are `Journaled`."""

    @property
    def journal(self) -> str | None:
        """The topic of the journal, if its tasks have one."""
        return None if self.journal_s is None else journal_topic(self.name)

    @property
    def group(self) -> str:
        return self.name

    def topics(self, partitions: int) -> list[TopicSpec]:
        """The topics it needs beside its inputs."""
        own = [each.spec(partitions) for each in self.outputs]
        if self.journal_s is not None:
            retention_s = self.journal_s + JOURNAL_MARGIN_S
            own.append(TopicSpec(journal_topic(self.name), partitions, retention_s, log_append_time=True))
        return [*own, *state_topics([self.name], partitions)]

    @property
    def written_topics(self) -> frozenset[str]:
        """The topics of its outputs; empty if it does not say."""
        return frozenset(each.topic for each in self.outputs)

    @property
    def own_topics(self) -> frozenset[str]:
        """All it may write to, but for the dead letters; empty if it does not say."""
        journal = {self.journal} if self.journal else set()
        return self.written_topics | journal if self.written_topics else frozenset()

    def elements(self, topic: str, value: bytes | None) -> list[tuple[float, bytes]] | None:
        """What a record consists of, if only that is promised of its topic: see `Output.elements`."""
        splits = [each.elements for each in self.outputs if each.topic == topic and each.elements is not None]
        return [found for split in splits for found in split(value or b"")] if splits else None

    def time_of(self, topic: str, value: bytes | None) -> float | None:
        """The time that a record is about; None if it is not a result of this processor."""
        times = (each.time_of(value) for each in self.outputs if each.topic == topic and value is not None)
        return next((time for time in times if time is not None), None)


def time_field(name: str, *, having: str = "", lacking: str = "") -> Callable[[bytes], float | None]:
    """Reads the time of a record from a field of its JSON.

    Where several processors write one topic, the field that their records are ``having`` or ``lacking`` tells whose a
    record is.
    """
    marks = [(mark, Any, None) for mark in (having, lacking) if mark]
    decoder = msgspec.json.Decoder(msgspec.defstruct("Record", [(name, float | None, None), *marks]))

    def time_of(value: bytes) -> float | None:
        try:
            record: Any = decoder.decode(value)
        except msgspec.DecodeError:
            return None
        ours = getattr(record, having, ...) is not None and getattr(record, lacking, None) is None
        time: float | None = getattr(record, name) if ours else None
        return time

    return time_of
