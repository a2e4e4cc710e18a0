"""Runs one script, whose frames come over a stream socket, as `__main__`.

In this order: the start frame is read whole before anything of the script is compiled; the channel's thread
starts; the script runs with its question in the global `question`; if no top-level run reported a result,
the workflow that the script defined last is run on the question. Nothing is started when this module is
imported.
"""

import builtins
import linecache
import os
import random
import sys
import traceback
import types

from . import session
from .channel import Channel
from .ending import EXIT_FAILED, EXIT_OUT_OF_MEMORY, exit_status, was_refused_memory
from .frames import Frame, FrameError, field
from .runs import Runnable
from .session import Session, Task

SCRIPT_NAME = "<design>"

EXIT_OK = 0
# The other side of the pipe did not keep to the contract: not the script's doing.
EXIT_NO_START = 70


def main(fd: int) -> int:
    """Runs the script that the start frame on `fd` holds; the exit code of its process."""
    os.set_inheritable(fd, False)
    channel = Channel(fd)
    try:
        start = channel.read_frame()
        task, script, seed = _parse_start(start)
    except (OSError, FrameError) as error:
        print(f"workflow runtime: no start frame: {error}", file=sys.stderr, flush=True)
        return EXIT_NO_START
    channel.start()
    running = Session(task, channel)
    session.install(running)
    random.seed(seed)
    return _run(script, running)


def _parse_start(frame: Frame) -> tuple[Task, str, int]:
    if frame["type"] != "start":
        raise FrameError(f"the first frame is {frame['type']}, not start")
    task_type = field(frame, "task_type", str)
    if task_type not in (session.MATH, session.CODE):
        raise FrameError(f"task_type must be {session.MATH} or {session.CODE}, got {task_type!r}")
    task = Task(field(frame, "question", str), task_type, field(frame, "delivery_instruction", str))
    return task, field(frame, "script", str).removeprefix("\ufeff"), field(frame, "seed", int)


def _run(script: str, running: Session) -> int:
    """Runs the script, then its workflow if it ran none."""
    linecache.cache[SCRIPT_NAME] = (len(script), None, script.splitlines(keepends=True), SCRIPT_NAME)
    main_module = types.ModuleType("__main__")
    main_module.__dict__.update(__file__=SCRIPT_NAME, __builtins__=builtins, question=running.task.question)
    sys.modules["__main__"] = main_module
    sys.argv = [SCRIPT_NAME]
    try:
        exec(compile(script, SCRIPT_NAME, "exec", dont_inherit=True), main_module.__dict__)
        if running.results == 0:
            _run_last_workflow(main_module, running)
    except SystemExit as exit_:
        return exit_status(exit_)
    # Whatever a script raises ends it with a traceback, KeyboardInterrupt too.
    except BaseException as error:
        _print_error(error)
        return EXIT_OUT_OF_MEMORY if was_refused_memory(error) else EXIT_FAILED
    return EXIT_OK


def _run_last_workflow(main_module: types.ModuleType, running: Session) -> None:
    defined = [value for value in vars(main_module).values() if isinstance(value, Runnable)]
    if defined:
        max(defined, key=lambda runnable: runnable.creation).run(running.task.question)


def _print_error(error: BaseException) -> None:
    """The traceback from the script's first frame on; only the error where the script never began."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename != SCRIPT_NAME:
        trace = trace.tb_next
    traceback.print_exception(type(error), error, trace)
