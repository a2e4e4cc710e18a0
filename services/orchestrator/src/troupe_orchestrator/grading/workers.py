"""`MathGrader`: grades values, with the algebra in killable worker processes.

Numbers, letters, words and what is equal as written are graded at once, on the event loop, in microseconds. All else goes
to a worker, one comparison at a time; one that overruns or dies is killed and replaced, and the comparison is tried once
more in a fresh worker. What it means if that fails too:

- The worker was ended from outside (killed, or starved of its processor): a `GraderFault`, which says nothing of the answer.
- It ended itself both times, at its limit of CPU or memory or by a crash, while "0" is graded against the same reference in
  a fresh worker: the answer cannot be graded, and is wrong for that reason, which is counted. Else whoever writes such an
  answer could have its task dropped, again and again.
- "0" cannot be graded either: a `GraderFault` that names the reference.

Model text reaches a worker as JSON over a pipe. Workers start when they are first needed.
"""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from dataclasses import asdict
from typing import Any, Self

from troupe_orchestrator.datasets.task import MathReference
from troupe_orchestrator.grading.exits import MEMORY_EXIT
from troupe_orchestrator.grading.grades import UNGRADABLE, Correct, Grade, GraderFault, Incorrect
from troupe_orchestrator.grading.math_grader import LibraryNeededError, is_correct, no_library

_KEPT_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "LANG", "LC_ALL")
_ATTEMPTS = 2
_WALL_FACTOR = 4


_FROM_OUTSIDE = frozenset({-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP})
"""Exit statuses that a worker does not give itself. The kernel ends one at its CPU limit by SIGXCPU."""
_HOW_IT_ENDED = {-signal.SIGXCPU: "it used up its CPU seconds", MEMORY_EXIT: "it used up its memory"}
_HARMLESS = "0"


class WorkerFailedError(Exception):
    """A worker did not answer; says how it ended.

    Attributes:
        by_itself: it was at work on the comparison and nobody else ended it.
    """

    def __init__(self, message: str, by_itself: bool = False) -> None:
        self.by_itself = by_itself
        super().__init__(message)


class MathGrader:
    """A pool of grading workers. Close it, or use it as an asynchronous context manager."""

    def __init__(
        self,
        workers: int = 1,
        seconds: float = 5.0,
        memory_bytes: int = 1 << 30,
        start_seconds: float = 60.0,
    ) -> None:
        """
        Args:
            workers: processes that grade at the same time.
            seconds: CPU time of one comparison. Wall time may be four times as much: that the machine is busy
                elsewhere is not the answer's doing.
            memory_bytes: address space of a worker. An idle one has about 90 MiB resident.
            start_seconds: wall time until a new worker is ready.
        """
        if workers < 1:
            raise ValueError(f"a grader needs at least one worker, got {workers}")
        self._limits = (seconds, memory_bytes, start_seconds)
        self._idle: asyncio.Queue[_Worker] = asyncio.Queue()
        self._workers = [_Worker(*self._limits) for _ in range(workers)]
        for worker in self._workers:
            self._idle.put_nowait(worker)

    async def grade(self, reference: MathReference, answer: str, grader: str = "", question: str = "") -> Grade:
        """Grade one answer.

        Args:
            grader: plug-in that grades it, in a worker; empty is the strict grader.
            question: for the plug-in.
        """
        request = {"reference": asdict(reference), "answer": answer, "grader": grader, "question": question}
        if not grader:
            try:
                return _grade(is_correct(reference, answer, no_library))
            except LibraryNeededError:
                pass  # to a worker, as it is
        worker = await self._idle.get()
        try:
            return await _grade_twice(worker, request)
        finally:
            self._idle.put_nowait(worker)

    async def close(self) -> None:
        """End all workers."""
        for worker in self._workers:
            await worker.stop()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class _Worker:
    """One place of the pool: a process that is started when asked and replaced when it failed."""

    def __init__(self, seconds: float, memory_bytes: int, start_seconds: float) -> None:
        self._seconds = seconds
        self._memory_bytes = memory_bytes
        self._start_seconds = start_seconds
        self._process: Process | None = None

    async def ask(self, request: dict[str, Any]) -> bool:
        """Whether the answer is right.

        Raises:
            WorkerFailedError: the process ended or overran. It is gone then.
        """
        answered = False
        try:
            process = self._process or await self._start()
            answer = await self._exchange(process, json.dumps(request), self._seconds * _WALL_FACTOR)
            answered = True
        finally:
            if not answered:
                # Also when we are cancelled: an answer that nobody has read must not be taken for the next one's.
                await self.stop()
        if "fault" in answer:
            raise WorkerFailedError(answer["fault"])
        return bool(answer["equal"])

    async def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            if process.returncode is None:
                process.kill()
            await asyncio.shield(process.wait())

    async def _start(self) -> Process:
        self._process = process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "troupe_orchestrator.grading.worker",
            str(self._seconds),
            str(self._memory_bytes),
            str(os.getpid()),
            stdin=PIPE,
            stdout=PIPE,
            stderr=DEVNULL,
            env={name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ},
            start_new_session=True,
        )
        await self._exchange(process, "", self._start_seconds)
        return process

    async def _exchange(self, process: Process, line: str, seconds: float) -> dict[str, Any]:
        """Send a line, if there is one, and read one."""
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            async with asyncio.timeout(seconds):
                if line:
                    process.stdin.write(line.encode() + b"\n")
                    await process.stdin.drain()
                answer = await process.stdout.readline()
        except TimeoutError as error:
            raise WorkerFailedError(f"no answer within {seconds:g} s") from error
        except (BrokenPipeError, ConnectionResetError):
            answer = b""
        if not answer:
            code = await process.wait()
            how = _HOW_IT_ENDED.get(code, f"it ended with exit status {code}")
            raise WorkerFailedError(how, by_itself=bool(line) and code not in _FROM_OUTSIDE)
        parsed: dict[str, Any] = json.loads(answer)
        return parsed


async def _grade_twice(worker: _Worker, request: dict[str, Any]) -> Grade:
    failures = []
    for _ in range(_ATTEMPTS):
        try:
            return _grade(await worker.ask(request))
        except WorkerFailedError as error:
            failures.append(error)
    reasons = "; ".join(str(failure) for failure in failures)
    if not all(failure.by_itself for failure in failures):
        return GraderFault(f"the grading worker failed: {reasons}")
    try:
        await worker.ask({**request, "answer": _HARMLESS})
    except WorkerFailedError as error:
        return GraderFault(
            f"nothing can be graded against the reference {request['reference']['answer']!r:.200}: {error}"
        )
    return Incorrect(f"{UNGRADABLE}: {reasons}", ungradable=True)


def _grade(correct: bool) -> Grade:
    return Correct() if correct else Incorrect("the value differs from the reference")
