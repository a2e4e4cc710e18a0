"""The script of every sandboxed interpreter: loads the native module, preloads, serves as a zygote.

`python -I -S inside.py NATIVE_MODULE ROLE WORKFLOW_LIBRARY`, with the supervisor's socket as descriptor 0. The native
`serve_zygote` returns only in a process that was forked for one program and is in its jail; the program's descriptors are
then 0, 1, 2 and from 3 on what its kind needs. Nothing untrusted is read before that.

Roles: `probe` tries the layers and leaves; `describe` prints what the interpreter is; `workflow` and `code` are zygotes.
"""

import ast
import atexit
import gc
import io
import json
import linecache
import os
import sys
import sysconfig
import traceback
import types
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

EXIT_FAILED = 1
EXIT_ASSERTION = 112
EXIT_MEMORY = 113
PAYLOAD = 3
# What most programs import, so that forked processes have it already.
PRELOADED = (
    "bisect", "collections", "copy", "dataclasses", "datetime", "decimal", "enum", "fractions", "functools", "heapq",
    "itertools", "json", "math", "operator", "re", "string", "statistics", "time", "typing",
)  # fmt: skip
PRELOADED_FOR_WORKFLOWS = ("concurrent.futures", "queue", "selectors", "signal", "subprocess", "tempfile", "threading")


def load_native(path: str) -> types.ModuleType:
    """The extension module at `path`; no search path leads to it."""
    loader = ExtensionFileLoader("_native", path)
    spec = spec_from_file_location("_native", path, loader=loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


def describe() -> None:
    """Prints the files that this interpreter reads and its version, for the supervisor."""
    readable = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
    maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    mapped = {line.split(maxsplit=5)[-1].strip() for line in maps if "/" in line}
    readable |= {path for path in mapped if ".so" in path and Path(path).is_file()}
    print(json.dumps({"version": sys.version.split()[0], "readable": sorted(readable)}))


def preload(role: str, library: str) -> None:
    """Imports what programs of this role will want. Starts no thread."""
    for name in PRELOADED:
        __import__(name)
    if role == "workflow":
        for name in PRELOADED_FOR_WORKFLOWS:
            __import__(name)
        import threading

        threading.stack_size(2 << 20)
        sys.path.insert(0, library)
        __import__("workflow.runtime")
    # What is there now never becomes garbage; so the collector leaves its pages shared with the forked programs.
    gc.collect()
    gc.freeze()


def seed(value: int | None) -> None:
    """Random numbers of this process: all forks of a zygote would draw the same ones. `None` draws from the system."""
    import_module("random").seed(value)


def read_payload() -> str:
    """The program's source."""
    with open(PAYLOAD, "rb") as payload:
        return payload.read().decode("utf-8", "surrogateescape")


def new_main(name: str) -> dict[str, object]:
    """A fresh `__main__` for the program; its namespace."""
    module = types.ModuleType("__main__")
    module.__dict__["__file__"] = name
    sys.modules["__main__"] = module
    sys.argv = [name]
    return module.__dict__


def leave(run: Callable[[], None], name: str, source: str) -> None:
    """Runs `run` as a program would run, prints its traceback, and ends the process. Never returns."""
    status = 0
    try:
        run()
    except SystemExit as exit_:
        status = exit_status(exit_)
    # Whatever a program raises ends it; nothing is hidden, the traceback is its output.
    except BaseException as error:
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
            trace = trace.tb_next
        try:
            traceback.print_exception(type(error), error, trace)
        except MemoryError:
            os.write(2, b"MemoryError\n")
        status = EXIT_MEMORY if isinstance(error, MemoryError) else EXIT_FAILED
        if isinstance(error, AssertionError):
            status = EXIT_ASSERTION
    finish(status)


def exit_status(exit_: SystemExit) -> int:
    """The status that Python would end with."""
    if exit_.code is None:
        return 0
    if isinstance(exit_.code, int):
        return exit_.code & 0xFF
    print(exit_.code, file=sys.stderr)
    return EXIT_FAILED


def finish(status: int) -> None:
    """Ends the process as the interpreter would, without taking it apart: threads, exit functions, buffers."""
    threading = sys.modules.get("threading")
    try:
        if threading is not None:
            threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    # The program closed or replaced them, or an exit function raised; its output is what reached the pipes.
    except BaseException as error:
        print(f"while leaving: {error!r}", file=sys.__stderr__, flush=True)
        status = status or EXIT_FAILED
    os._exit(status)


def report_foreign_programs() -> None:
    """Ends the script as a policy violation where it executes anything but the interpreter.

    The kernel refuses that in any case, and to a child of the script it is an error like any other. This is about the
    verdict: a script that counts on another program is told so, and does not go on with a `FileNotFoundError`.
    """
    interpreter = Path(sys.executable).resolve()

    def is_interpreter(path: object, env: Mapping[str, str] | None, folder: object = None) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        name = os.fsdecode(path)
        start = os.fsdecode(folder) if isinstance(folder, str | bytes | os.PathLike) else ""
        folders = [start] if "/" in name else os.get_exec_path(env)
        return any(Path(each, name).resolve() == interpreter for each in folders)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        match event, arguments:
            case "subprocess.Popen", (path, _, folder, env):
                allowed = is_interpreter(path, env, folder)
            case (("os.exec" | "os.posix_spawn"), (path, _, env)):
                allowed = is_interpreter(path, env)
            case "os.system", (path,):
                allowed = False
            case _:
                return
        if not allowed:
            os.write(2, f"cannot execute {path!r}: a script may start the Python interpreter only\n".encode())
            native.execute_nothing()

    sys.addaudithook(watch)


def run_workflow() -> None:
    """A workflow script; the library reads it from its pipe."""
    report_foreign_programs()
    finish(import_module("workflow.runtime").main(PAYLOAD))


def run_stdin() -> None:
    """A solution that reads standard input."""
    seed(0)
    source = read_payload()
    namespace = new_main("solution.py")
    leave(lambda: exec(compile(source, "solution.py", "exec", dont_inherit=True), namespace), "solution.py", source)


def run_assertions() -> None:
    """A solution with one case; the native side runs both, see its module."""
    seed(0)
    new_main("solution.py")
    leave(native.run_assertions, "solution", "")


class CountedOutput(io.FileIO):
    """Standard output that knows whether anything was written."""

    written = 0

    def write(self, content: object) -> int:
        count = super().write(content)  # type: ignore[arg-type]
        self.written += count
        return count


def run_tool() -> None:
    """Code for an agent: what it prints, or like a notebook cell the value of its last expression."""
    seed(None)
    source = read_payload()
    namespace = new_main("<tool>")
    counted = CountedOutput(1, "wb", closefd=False)
    sys.stdout = io.TextIOWrapper(io.BufferedWriter(counted), encoding="utf-8", errors="replace")

    def run() -> None:
        tree = ast.parse(source, "<tool>")
        last = tree.body[-1] if tree.body else None
        if isinstance(last, ast.Expr):
            tree.body.pop()
        exec(compile(tree, "<tool>", "exec", dont_inherit=True), namespace)
        if not isinstance(last, ast.Expr):
            return
        value = eval(compile(ast.Expression(last.value), "<tool>", "eval", dont_inherit=True), namespace)
        sys.stdout.flush()
        if counted.written == 0 and value is not None:
            print(repr(value))

    leave(run, "<tool>", source)


PROGRAMS: dict[str, Callable[[], None]] = {
    "workflow": run_workflow,
    "stdin": run_stdin,
    "assertions": run_assertions,
    "tool": run_tool,
}


if __name__ == "__main__":
    _, native_path, role, library_path = sys.argv
    # Set by the interpreter itself when it starts; programs find PATH and nothing else.
    os.environ.pop("LC_CTYPE", None)
    if role == "describe":
        describe()
        sys.exit(0)
    native = load_native(native_path)
    if role == "probe":
        native.probe_layers()
        sys.exit(0)
    if role == "code":
        # Its programs have no children, so nothing needs to be repaired after a fork; the handlers of `threading` and
        # `random` would cost more than the fork itself. `random` is seeded by each program's own function.
        os.register_at_fork = lambda **_handlers: None
    preload(role, library_path)
    PROGRAMS[native.serve_zygote()]()
