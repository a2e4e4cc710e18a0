"""Runs branches of a workflow side by side, with results and labels that do not depend on timing.

The caller's thread always works too, so that nested fan-outs never wait for a free helper. Each branch has
a *lane*, a counter with a label of its own; what is numbered in a lane (conversations) gets the same label
in every run of a script.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import ContextVar, copy_context
from typing import Generic, TypeVar

# Threads beyond the script's own, in all fan-outs together.
MAX_HELPERS = 16

Result = TypeVar("Result")

_helpers = threading.BoundedSemaphore(MAX_HELPERS)


class Lane:
    """Hands out the labels of one branch: prefix1, prefix2, …"""

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self._count = 0
        self._lock = threading.Lock()

    def next_label(self) -> str:
        with self._lock:
            self._count += 1
            return f"{self._prefix}{self._count}"


_main_lane = Lane()
_lane: ContextVar[Lane] = ContextVar("lane", default=_main_lane)


def next_label() -> str:
    """The next label of the branch that the caller is in: 1, 2, … or, within branch 3 of fan-out 1, 1.3.1, 1.3.2, …"""
    return _lane.get().next_label()


class _Outcome(Generic[Result]):
    """What a branch returned or raised."""

    def __init__(self, branch: Callable[[], Result], lane: Lane) -> None:
        _lane.set(lane)
        self.error: BaseException | None = None
        try:
            self.result = branch()
        # Whatever a branch raises, SystemExit too, is raised again where the branches meet.
        except BaseException as error:
            self.error = error


def run_all(branches: Sequence[Callable[[], Result]]) -> list[Result]:
    """Runs all branches side by side; their results in the order given. Raises the first error in that order."""
    if len(branches) == 1:
        return [branches[0]()]
    fan_out = next_label()
    contexts = [copy_context() for _ in branches]
    outcomes: list[_Outcome[Result] | None] = [None] * len(branches)
    todo = deque(range(len(branches)))

    def work() -> None:
        while todo:
            try:
                index = todo.popleft()
            except IndexError:
                return
            lane = Lane(f"{fan_out}.{index + 1}.")
            outcomes[index] = contexts[index].run(_Outcome, branches[index], lane)

    helpers = _start_helpers(work, len(branches) - 1)
    work()
    for helper in helpers:
        helper.join()
    results = []
    for outcome in outcomes:
        assert outcome is not None
        if outcome.error is not None:
            raise outcome.error
        results.append(outcome.result)
    return results


def _start_helpers(work: Callable[[], None], wanted: int) -> list[threading.Thread]:
    """Starts as many helpers as are wanted and free. With none at all the caller does all the work, one by one."""

    def help_out() -> None:
        try:
            work()
        finally:
            _helpers.release()

    started: list[threading.Thread] = []
    while len(started) < wanted and _helpers.acquire(blocking=False):
        # Daemons: a script that ends by an error does not wait for branches that nobody awaits any more.
        helper = threading.Thread(target=help_out, daemon=True)
        try:
            helper.start()
        except RuntimeError:
            # The sandbox allows no further thread.
            _helpers.release()
            break
        started.append(helper)
    return started
