"""`MathGrader`: grades values, with the algebra in killable worker processes.

Numbers, letters, words and what is equal as written are graded at once, on the event loop, in microseconds. All else goes
to a worker, one comparison at a time; one that overruns or dies is killed and replaced, the comparison is tried once more
in a fresh worker, and is a `GraderFault` if that fails too. Model text reaches a worker as JSON over a pipe. Workers start
when they are first needed.
"""

import asyncio
import json
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from dataclasses import asdict
from typing import Any, Self

from troupe_orchestrator.datasets.task import MathReference
from troupe_orchestrator.grading.grades import Correct, Grade, GraderFault, Incorrect
from troupe_orchestrator.grading.math_grader import LibraryNeededError, is_correct, no_library

_KEPT_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "LANG", "LC_ALL")
_ATTEMPTS = 2
_WALL_FACTOR = 4


class WorkerFailedError(Exception):
    """A worker did not answer; says how it ended."""


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
        reasons = []
        for _ in range(_ATTEMPTS):
            worker = await self._idle.get()
            try:
                return _grade(await worker.ask(request))
            except WorkerFailedError as error:
                reasons.append(str(error))
            finally:
                self._idle.put_nowait(worker)
        return GraderFault("; ".join(reasons))

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
            raise WorkerFailedError(f"the worker ended with exit status {code}")
        parsed: dict[str, Any] = json.loads(answer)
        return parsed


def _grade(correct: bool) -> Grade:
    return Correct() if correct else Incorrect("the value differs from the reference")
