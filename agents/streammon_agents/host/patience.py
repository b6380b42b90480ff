"""Asking what may never answer: the file system of a server that is gone, a sensor on a bus that hangs.

Such a call cannot be ended, not even by a signal. So it is made in a thread of its own, and waited for only so long.
Who hangs is not asked again until the call has returned; the others are asked by another thread. There are thus as many
threads as things that hang, and at most `MOST`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from queue import SimpleQueue
from typing import Any

MOST = 32
"""Threads that may hang; beyond them nothing more is asked until one is back."""


class Patience:
    """Asks many questions, for ``patience_s`` together."""

    def __init__(self, name: str, patience_s: float = 0.25) -> None:
        self._name, self._patience_s = name, patience_s
        self._worker: _Worker | None = None
        self._hanging: dict[str, _Worker] = {}

    def __del__(self) -> None:
        if self._worker is not None:
            self._worker.end()

    @property
    def hanging(self) -> list[str]:
        """Who has not answered yet."""
        return sorted(self._hanging)

    def ask(self, questions: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
        """The answers that came in time; who raises OSError has none."""
        self._hanging = {name: worker for name, worker in self._hanging.items() if worker.busy}
        left = {name: question for name, question in questions.items() if name not in self._hanging}
        answers: dict[str, Any] = {}
        until = time.monotonic() + self._patience_s
        while left and len(self._hanging) < MOST and (patience_s := until - time.monotonic()) > 0:
            worker = self._worker = self._worker or _Worker(self._name)
            answered = worker.ask(left, patience_s)
            answers |= answered
            left = {name: question for name, question in left.items() if name not in answered}
            if left:  # the first of them hangs: asked in order
                self._worker = None
                self._hanging[next(iter(left))] = worker
                del left[next(iter(left))]
        return {name: answer for name, answer in answers.items() if answer is not None}


_Round = tuple[Mapping[str, Callable[[], Any]], dict[str, Any], threading.Event]


class _Worker:
    """A thread that asks; once it was given up it ends after the question that it hangs on."""

    def __init__(self, name: str) -> None:
        self._rounds: SimpleQueue[_Round] = SimpleQueue()
        self._given_up = threading.Event()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        return self._thread.is_alive()

    def ask(self, questions: Mapping[str, Callable[[], Any]], patience_s: float) -> dict[str, Any]:
        """The answers so far, None for an error; if not all of them, this worker is given up."""
        answers: dict[str, Any] = {}
        done = threading.Event()
        self._rounds.put((questions, answers, done))
        if not done.wait(patience_s):
            self._given_up.set()
        return dict(answers)

    def end(self) -> None:
        """Once it is done with what it was asked."""
        self._given_up.set()
        self._rounds.put(({}, {}, threading.Event()))

    def _work(self) -> None:
        while not self._given_up.is_set():
            questions, answers, done = self._rounds.get()
            for name, question in questions.items():
                answers[name] = _answer(question)
                if self._given_up.is_set():
                    break
            done.set()


def _answer(question: Callable[[], Any]) -> Any:
    try:
        return question()
    except OSError:
        return None
