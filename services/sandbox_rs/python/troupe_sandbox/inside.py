"""The script of every sandboxed interpreter: loads the native module, preloads, serves as a zygote.

`python -I -S inside.py NATIVE_MODULE ROLE WORKFLOW_LIBRARY PRELOAD`, with the supervisor's socket as descriptor 0. The
native `serve_zygote` returns only in a process that was forked for one program and is in its jail; the program's
descriptors are then 0, 1, 2 and from 3 on what its kind needs. Nothing untrusted is read before that. PRELOAD is JSON:
further `modules` for `code`, and the `search_path` that they lie on.

Roles: `probe` tries the layers and leaves; `describe` prints what the interpreter is and where the modules lie, and is run
with site packages where there are any; `workflow` and `code` are zygotes.
"""

import _thread
import ast
import atexit
import builtins
import codecs
import gc
import io
import json
import linecache
import os
import sys
import sysconfig
import traceback
import types
from _io import _IOBase
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib import import_module
from importlib.machinery import ExtensionFileLoader, SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, Final

EXIT_FAILED = 1
EXIT_ASSERTION = 112
# What the interpreter ends with where standard output cannot be flushed.
EXIT_UNFLUSHED = 120
PAYLOAD = 3
ANSWERS = 4
# Programs put theirs in its place; held here, so that no forked process takes it apart and touches what is shared.
OWN_MAIN = sys.modules["__main__"]
# What a script may execute. Found before there is one: finding it touches what is shared.
INTERPRETER = Path(sys.executable).resolve()
# What most programs import, so that forked processes have it already.
PRELOADED = (
    "bisect", "collections", "copy", "dataclasses", "datetime", "decimal", "enum", "fractions", "functools", "heapq",
    "itertools", "json", "math", "operator", "re", "string", "statistics", "time", "typing",
)  # fmt: skip
PRELOADED_FOR_CODE = ("array", "cmath", "contextlib", "numbers", "random", "queue", "threading", "types")
BUFFERS = (io.BufferedWriter, io.BufferedRandom)
ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
PRELOADED_FOR_WORKFLOWS = ("concurrent.futures", "queue", "selectors", "signal", "subprocess", "tempfile", "threading")


# What preloaded modules want called when a process forks. Scripts register it; other programs have no children.
fork_handlers: list[dict[str, Callable[[], object]]] = []
register_at_fork = os.register_at_fork


def load(loader: ExtensionFileLoader | SourceFileLoader) -> types.ModuleType:
    """One module from its file; no search path leads to it."""
    spec = spec_from_file_location(loader.name, loader.path, loader=loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


def describe(modules: list[str]) -> None:
    """Prints the files that this interpreter reads, its version, and where the modules lie, for the supervisor."""
    base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
    library = {sysconfig.get_path(name, vars=base) for name in ("stdlib", "platstdlib")}
    before = set(sys.modules)
    missing = {}
    for name in modules:
        try:
            import_module(name)
        # Whatever a module raises when it is imported, it cannot be preloaded.
        except Exception as error:
            missing[name] = f"{type(error).__name__}: {error}"
    tops = {name.partition(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names
    files = {Path(file) for top in tops if (file := getattr(sys.modules[top], "__file__", None))}
    outside = {file.parent if file.name.startswith("__init__.") else file for file in files}
    outside |= {Path(f"{path}.libs") for path in outside if Path(f"{path}.libs").is_dir()}
    maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    mapped = {line.split(maxsplit=5)[-1].strip() for line in maps if "/" in line}
    readable = library | {str(path) for path in outside}
    readable |= {path for path in mapped if ".so" in path and Path(path).is_file()}
    search_path = sorted({str(path.parent) for path in outside})
    version = sys.version.split()[0]
    print(
        json.dumps({"version": version, "readable": sorted(readable), "search_path": search_path, "missing": missing})
    )


def preload(role: str, library: str, asked: dict[str, list[str]]) -> None:
    """Imports what programs of this role will want. Starts no thread."""
    for name in PRELOADED:
        __import__(name)
    if role == "workflow":
        for name in PRELOADED_FOR_WORKFLOWS:
            __import__(name)
        import threading

        threading.stack_size(2 << 20)
        sys.path.insert(0, library)
        PROGRAMS["workflow"] = partial(run_workflow, import_module("workflow.runtime").main, output_of_scripts())
        needed = len(fork_handlers)
        load(SourceFileLoader("_rehearsal", str(Path(__file__).with_name("rehearsal.py")))).rehearse()
        del fork_handlers[needed:]
        sys.modules["__main__"] = OWN_MAIN
    else:
        for name in PRELOADED_FOR_CODE:
            __import__(name)
        sys.path.extend(asked["search_path"])
        # Linear algebra libraries start threads of their own otherwise, and a process with threads is not forked.
        os.environ.update(ONE_THREAD)
        for name in asked["modules"]:
            __import__(name)
        for name in ONE_THREAD:
            os.environ.pop(name, None)
    if role == "code":
        # The import statement looks for it; built-in modules lack it, and the error that they cause is dear.
        for module in sys.modules.values():
            spec = getattr(module, "__spec__", None)
            if spec is not None and not hasattr(spec, "_initializing"):
                spec._initializing = False
        warm_up()
    # What is there now never becomes garbage; so the collector leaves its pages shared with the forked programs.
    gc.collect()
    gc.freeze()


def warm_up() -> None:
    """Runs a program as cases will run theirs, so that what the interpreter adapts and caches is shared with them all."""
    source = """
import sys, collections, heapq, math, re
for line in sys.stdin:
    numbers = list(map(int, line.split()))
counts = collections.defaultdict(list)
heap = []
for number in numbers:
    counts[number % 2].append((number, math.inf))
    heapq.heappush(heap, (-number, str(number)))
while heap:
    heapq.heappop(heap)
print(sum(numbers), sorted(counts), max(numbers), *numbers, f"{numbers[0]:.2f}", re.sub("a", "b", "a"))
"""
    streams = sys.stdin, sys.stdout
    given, taken = os.memfd_create("warm-up"), os.memfd_create("warm-up")
    os.write(given, b"1 2 3 4\n")
    for _ in range(20):
        os.lseek(given, 0, os.SEEK_SET)
        with open(given, closefd=False) as sys.stdin, open(taken, "w", closefd=False) as sys.stdout:
            exec(compile(source, "warm-up", "exec", dont_inherit=True), new_main("warm-up"))
    sys.stdin, sys.stdout = streams
    os.close(given)
    os.close(taken)
    sys.modules["__main__"] = OWN_MAIN


def seed(value: int | None) -> None:
    """Random numbers of this process: all forks of a zygote would draw the same ones. `None` draws from the system."""
    import_module("random").seed(value)


def read_payload() -> str:
    """The program's source. A byte order mark is none of it, as in a file."""
    with open(PAYLOAD, "rb") as payload:
        return payload.read().removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")


def new_main(name: str) -> dict[str, object]:
    """A fresh `__main__` for the program; its namespace."""
    module = types.ModuleType("__main__")
    module.__dict__.update(__file__=name, __builtins__=builtins)
    sys.modules["__main__"] = module
    sys.argv = [name]
    return module.__dict__


def leave(run: Callable[[], None], name: str, source: str, failed_assertion: int = EXIT_FAILED) -> None:
    """Runs `run` as a program would run, prints its traceback, and ends the process. Never returns.

    Args:
        failed_assertion: exit status of an AssertionError.
    """
    # Asked here, which may be before cases are forked: what looks is then theirs already.
    may_open = any(word in source for word in WORDS_OF_FILES)
    status = 0
    try:
        run()
    except SystemExit as exit_:
        status = ending.exit_status(exit_)
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
        status = ending.EXIT_OUT_OF_MEMORY if ending.was_refused_memory(error) else EXIT_FAILED
        if isinstance(error, AssertionError):
            status = failed_assertion
    finish(status, may_open)


# Without one of these in its text a program makes no file of its own over standard output, and is not searched for one.
WORDS_OF_FILES: Final = ("open", "IO", "Buffered")


def is_open(stream: Any) -> bool:
    """Whether the interpreter would flush a standard stream at its end."""
    try:
        return stream is not None and not stream.closed
    # Whatever a program has put there instead; to flush it may fail, which is told.
    except Exception:
        return True


def complain(error: BaseException) -> None:
    """What went wrong at the end, on standard error. It may be closed, and what the program raised may fail to be shown."""
    try:
        os.write(2, f"while leaving: {error!r}\n".encode())
    except BaseException:
        return


def flush_quietly(stream: Any) -> None:
    """The interpreter, too, is silent where one is closed or broken that is not its standard output any more."""
    try:
        stream.flush()
    # Whatever a program has put there.
    except BaseException:
        return


def is_of_output(stream: Any) -> bool:
    """Whether it writes to standard output or standard error. Others have no descriptor, or none that they tell."""
    try:
        return any(os.path.sameopenfile(stream.fileno(), standard) for standard in (1, 2))
    except Exception:
        return False


def flush_opened() -> None:
    """Flushes what the program opened and did not close. Each type and function that it touches is a page to copy."""
    try:
        # The zygote's own are frozen and not among these. Most programs open nothing, which their few types tell soonest.
        alive = gc.get_objects()
        kinds = tuple(kind for kind in set(map(type, alive)) if issubclass(kind, _IOBase))
        if not kinds:
            return
        opened = [each for each in alive if issubclass(type(each), kinds)]
        # A thread that lives on may hold one for ever while it writes where nobody reads.
        if _thread._count():
            opened = [each for each in opened if is_of_output(each)]
        # What writes to a buffer comes before the buffer.
        for stream in sorted(opened, key=lambda each: issubclass(type(each), BUFFERS)):
            flush_quietly(stream)
    # No memory, or a type of the program's that fails to be looked at.
    except BaseException:
        return


def finish(status: int, may_have_opened: bool = True, pipe: Any = None) -> None:
    """Ends the process as the interpreter would, without taking it apart: threads, exit functions, buffers.

    Args:
        pipe: below standard output, where it was made in the zygote, whose objects are not searched.
    """
    try:
        # Waiting for nobody would touch dozens of pages that are shared until then.
        if native.has_more_to_do():
            threading = sys.modules.get("threading")
            if threading is not None:
                threading._shutdown()
            atexit._run_exitfuncs()
    # The interpreter goes on as well.
    except BaseException as error:
        complain(error)
    stream: Any
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name, None)
        try:
            if is_open(stream):
                stream.flush()
        # Its output is what reached the pipes.
        except BaseException as error:
            complain(error)
            status = EXIT_UNFLUSHED
    if may_have_opened:
        flush_opened()
    for name, first in (("stdout", sys.__stdout__), ("stderr", sys.__stderr__)):
        if first is not getattr(sys, name, None):
            flush_quietly(first)
    if pipe is not None:
        flush_quietly(pipe)
    os._exit(status)


def is_interpreter(path: object, env: Mapping[str, str] | None, folder: object = None) -> bool:
    """Whether what a script is about to execute is the interpreter."""
    if not isinstance(path, str | bytes | os.PathLike):
        return False
    name = os.fsdecode(path)
    start = os.fsdecode(folder) if isinstance(folder, str | bytes | os.PathLike) else ""
    folders = [start] if "/" in name else os.get_exec_path(env)
    return any(Path(each, name).resolve() == INTERPRETER for each in folders)


def report_foreign_program(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: ends the script as a policy violation where it executes anything but the interpreter.

    The kernel refuses that in any case, and to a child of the script it is an error like any other. This is about the
    verdict: a script that counts on another program is told so, and does not go on with a `FileNotFoundError`.
    """
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


def output_of_scripts() -> io.TextIOWrapper:
    """Standard output as each script has it, which is a pipe. The zygote's own takes its descriptor for a file."""
    kept, ends = os.dup(1), os.pipe()
    os.dup2(ends[1], 1)
    pipe = io.BufferedWriter(io.FileIO(1, "wb", closefd=False))
    output = io.TextIOWrapper(pipe, encoding=sys.stdout.encoding, errors=sys.stdout.errors)
    os.dup2(kept, 1)
    for descriptor in (kept, *ends):
        os.close(descriptor)
    return output


def run_workflow(main: Callable[[int], int], output: io.TextIOWrapper) -> None:
    """A workflow script; `main` of the library reads it from its pipe. Whatever can be made before the fork was."""
    sys.addaudithook(report_foreign_program)
    # It may fork, and then what was preloaded has to be told.
    os.register_at_fork = register_at_fork
    for handlers in fork_handlers:
        os.register_at_fork(**handlers)
    sys.stdout = sys.__stdout__ = output  # type: ignore[misc]
    # A script may detach it.
    pipe = output.buffer
    finish(main(PAYLOAD), pipe=pipe)


def run_stdin() -> None:
    """A solution that reads standard input: compiled in its own process, run in the process of each case."""
    source = read_payload()
    namespace = new_main("solution.py")
    # Held until the process ends: taking the code apart would touch pages that are shared until then.
    compiled = []

    def run() -> None:
        compiled.append(compile(source, "solution.py", "exec", dont_inherit=True))
        if native.next_case():
            run_batch(compiled[0])
        exec(compiled[0], namespace)

    leave(run, "solution.py", source)


def batch_inputs() -> Iterator[bytes]:
    """The inputs of all cases, each with its length before it."""
    with open(PAYLOAD, "rb") as inputs:
        while prefix := inputs.read(4):
            yield inputs.read(int.from_bytes(prefix, "little"))


class Surroundings:
    """What a case in a batch must leave as it was. Only what is cheap to look at: the supervisor believes an OK alone."""

    def __init__(self) -> None:
        self.builtins = dict(vars(builtins))
        self.modules = dict(sys.modules)
        self.recursion_limit = sys.getrecursionlimit()

    def restored(self) -> bool:
        """Puts back what programs usually set; false if anything else is not as it was."""
        sys.setrecursionlimit(self.recursion_limit)
        sys.modules["__main__"] = self.modules["__main__"]
        if len(sys.modules) != len(self.modules):
            added = sys.modules.keys() - self.modules.keys()
            if not all(name.partition(".")[0] in sys.stdlib_module_names for name in added):
                return False
            self.modules |= {name: sys.modules[name] for name in added}
        return (
            sys.modules == self.modules
            and vars(builtins) == self.builtins
            and _thread._count() == 0
            and atexit._ncallbacks() == 0
        )


def run_batch(code: types.CodeType) -> None:
    """Runs all cases, one after the other, until one does not end plainly. Never returns."""
    surroundings = Surroundings()
    for given in batch_inputs():
        seed(0)
        kept = io.BytesIO()
        sys.stdin = io.TextIOWrapper(io.BytesIO(given), encoding="utf-8", errors="surrogateescape")
        output = sys.stdout = io.TextIOWrapper(kept, encoding="utf-8", errors="surrogateescape")
        try:
            exec(code, new_main("solution.py"))
        except SystemExit as exit_:
            if exit_.code:
                break
        # It is run again by itself, and there its traceback is shown.
        except BaseException:
            break
        try:
            if is_open(sys.stdout):
                sys.stdout.flush()
            output.flush()
        # So again where it was closed: how such a program ends is seen in a process of its own.
        except BaseException:
            break
        if not surroundings.restored():
            break
        written = kept.getvalue()
        os.write(ANSWERS, len(written).to_bytes(4, "little") + written)
    os._exit(0)


def run_assertions() -> None:
    """A solution with its cases; the native side compiles and runs both, see its module."""
    new_main("solution.py")
    leave(native.run_assertions, "solution", "", EXIT_ASSERTION)


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
    # A program that puts another in its place would close it otherwise.
    sys.__stdout__ = sys.stdout  # type: ignore[misc]

    def run() -> None:
        tree = ast.parse(source, "<tool>")
        last = tree.body[-1] if tree.body else None
        if isinstance(last, ast.Expr):
            tree.body.pop()
        exec(compile(tree, "<tool>", "exec", dont_inherit=True), namespace)
        if not isinstance(last, ast.Expr):
            return
        value = eval(compile(ast.Expression(last.value), "<tool>", "eval", dont_inherit=True), namespace)
        if is_open(sys.stdout):
            sys.stdout.flush()
        if counted.written == 0 and value is not None:
            print(repr(value))

    leave(run, "<tool>", source)


# By the name of their kind; the zygote of scripts adds its own.
PROGRAMS: dict[str, Callable[[], None]] = {
    "stdin": run_stdin,
    "assertions": run_assertions,
    "tool": run_tool,
}


if __name__ == "__main__":
    _, native_path, role, library_path, asked_json = sys.argv
    asked = json.loads(asked_json)
    # For the loader, and by the interpreter itself when it starts; programs find PATH and nothing else.
    for variable in ("LD_BIND_NOW", "MALLOC_ARENA_MAX", "LC_CTYPE"):
        os.environ.pop(variable, None)
    if role == "describe":
        describe(asked["modules"])
        sys.exit(0)
    native = load(ExtensionFileLoader("_native", native_path))
    ending = load(SourceFileLoader("_ending", f"{library_path}/workflow/ending.py"))
    if role == "probe":
        native.probe_layers()
        sys.exit(0)
    # A zygote forks with one thread and no lock held, so that nothing needs to be repaired after it; the handlers of
    # `threading` and `random` would cost more than the fork itself. `random` is seeded by each program's own function.
    os.register_at_fork = lambda **handlers: fork_handlers.append(handlers)
    preload(role, library_path, asked)
    # Every case draws the same numbers, so that its verdict is the same each time. Tools seed again, from the system.
    seed(0)
    PROGRAMS[native.serve_zygote()]()
