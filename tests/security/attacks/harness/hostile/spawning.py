"""Attacks 1 to 5 and 29 to 31: processes and threads beyond those that were given, and ends that leave some behind."""

from .attack import MEBIBYTE, Form, Limits, Verdict
from .resources import WALL, resource

SPAWNING = (
    resource(
        1,
        "fork bomb",
        Verdict.PROCESS_LIMIT,
        """
import time
for _ in range(8):
    if os.fork() == 0:
        time.sleep(0.3)
        os._exit(0)
succeeded()
""",
        "supervisor:processes",
    ),
    resource(
        2,
        "daemon in a session of its own",
        Verdict.RUNTIME_ERROR,
        """
import time
reader, writer = os.pipe()
if os.fork() == 0:
    try:
        os.setsid()
    except PermissionError:
        os.write(writer, b"no")
        os._exit(1)
    if os.fork() == 0:
        os.write(writer, b"up")
        time.sleep(1)
        succeeded()
    os._exit(0)
if os.read(reader, 2) != b"up":
    raise PermissionError("setsid")
""",
        "seccomp:setsid",
        forms=(Form.WORKFLOW,),
    ),
    resource(
        3,
        "thread bomb",
        Verdict.RUNTIME_ERROR,
        """
import threading, time
threading.stack_size(64 << 10)
for _ in range(200):
    threading.Thread(target=time.sleep, args=(30,), daemon=True).start()
succeeded()
""",
        "supervisor:threads",
        limits=Limits(memory_bytes=1024 * MEBIBYTE),
    ),
    resource(
        4,
        "raw clone",
        {"": Verdict.PROCESS_LIMIT, Form.WORKFLOW: Verdict.PROCESS_LIMIT},
        """
for _ in range(8):
    if call(56, 17, 0, 0, 0, 0) == 0:
        libc.usleep(300_000)
        os._exit(0)
succeeded()
""",
        "supervisor:processes",
    ),
    resource(
        5,
        "posix_spawn of the interpreter",
        Verdict.PROCESS_LIMIT,
        """
import sys
reader, writer = os.pipe()
os.posix_spawn(
    sys.executable,
    [sys.executable, "-I", "-S", "-c", "print('SUCCEEDED')"],
    {},
    file_actions=[(os.POSIX_SPAWN_DUP2, writer, 1)],
)
os.close(writer)
print(os.read(reader, 100).decode(), flush=True)
""",
        "supervisor:processes",
        "seccomp:execve",
        "landlock",
        forms=(Form.STDIN, Form.CASES, Form.TOOL),
    ),
    resource(
        29,
        "core dump",
        Verdict.RUNTIME_ERROR,
        """
child = os.fork()
if child == 0:
    os.abort()
status = os.waitpid(child, 0)[1]
if not os.WCOREDUMP(status):
    raise RuntimeError("no core")
succeeded()
""",
        "rlimit:core",
        "inspection",
        forms=(Form.WORKFLOW,),
        limits=Limits(output_bytes=60 * MEBIBYTE),
    ),
    resource(
        30,
        "stopping itself",
        Verdict.WALL_LIMIT,
        """
import signal, time
program = os.getpid()
if os.fork() == 0:
    time.sleep(1.5)
    os.kill(program, signal.SIGCONT)
    os._exit(0)
os.kill(program, signal.SIGSTOP)
succeeded()
""",
        "supervisor:wall",
        forms=(Form.WORKFLOW,),
        limits=WALL,
    ),
    resource(
        31,
        "parent that cannot be interrupted",
        {"": Verdict.PROCESS_LIMIT, Form.WORKFLOW: Verdict.WALL_LIMIT},
        """
if call(56, 0x4000 | 17, 0, 0, 0, 0) == 0:
    libc.usleep(1_500_000)
    os._exit(0)
succeeded()
""",
        "supervisor:wall",
        "supervisor:processes",
        forms=(Form.WORKFLOW, Form.STDIN, Form.CASES, Form.TOOL),
        limits=WALL,
    ),
)
