"""Attacks 1 to 32: using more than was given. Each is bounded by its own numbers, whatever is switched off."""

from .attack import MEBIBYTE, Attack, Ends, Family, Form, Limits, Verdict

CPU = Limits(cpu_seconds=0.3)
WALL = Limits(wall_seconds=0.6)
WITH_FILES = (Form.TOOL, Form.WORKFLOW)
# What a solution writes goes into a file of limited size; the others write to pipes.
PIPES_FIRST = (Form.TOOL, Form.WORKFLOW, Form.STDIN, Form.CASES)


def resource(number: int, name: str, ends: Ends, program: str, *off: str, **more: object) -> Attack:
    return Attack(number, name, Family.RESOURCES, program, ends, off, **more)  # type: ignore[arg-type]


RESOURCES = (
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
        6,
        "a list beyond the memory limit",
        Verdict.MEMORY_LIMIT,
        "block = bytearray(200 << 20)\nsucceeded()\n",
        "rlimit:data",
    ),
    resource(
        7,
        "private mapping beyond the memory limit",
        Verdict.RUNTIME_ERROR,
        """
import mmap
block = mmap.mmap(-1, 200 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for place in range(0, len(block), 4096):
    block[place] = 1
succeeded()
""",
        "rlimit:data",
    ),
    resource(
        8,
        "shared mapping beyond the memory limit",
        Verdict.RUNTIME_ERROR,
        """
import mmap
block = mmap.mmap(-1, 200 << 20, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
for place in range(0, len(block), 4096):
    block[place] = 1
succeeded()
""",
        "shared_memory",
    ),
    resource(
        8,
        "shared mapping of a device",
        Verdict.RUNTIME_ERROR,
        """
import mmap
block = mmap.mmap(os.open("/dev/zero", os.O_RDWR), 200 << 20)
for place in range(0, len(block), 4096):
    block[place] = 1
succeeded()
""",
        "landlock",
        off_in_full=("private_root",),
    ),
    resource(
        9,
        "file in memory",
        Verdict.POLICY_VIOLATION,
        "os.write(os.memfd_create('hidden'), bytes(1 << 16))\nsucceeded()\n",
        "seccomp:memfd_create",
    ),
    resource(
        10,
        "System V shared memory",
        Verdict.POLICY_VIOLATION,
        "segment = call(29, 0, 1 << 20, 0o1600)\ncall(31, segment, 0, 0)\nsucceeded()\n",
        "seccomp:shmget",
        "seccomp:shmctl",
    ),
    resource(
        10,
        "POSIX message queue",
        Verdict.POLICY_VIOLATION,
        "call(240, outside['mark'].encode(), 0o102, 0o600, None)\ncall(241, outside['mark'].encode())\nsucceeded()\n",
        "seccomp:mq_open",
        "seccomp:mq_unlink",
        "rlimit:queues",
        "landlock",
    ),
    resource(
        11,
        "locked memory",
        Verdict.RUNTIME_ERROR,
        "block = ctypes.create_string_buffer(1 << 16)\ncall(149, block, 1 << 16)\nsucceeded()\n",
        "seccomp:mlock",
        "rlimit:locked",
    ),
    resource(
        12,
        "huge standard output",
        Verdict.OUTPUT_LIMIT,
        "print('x' * (2 << 20), flush=True)\n",
        "supervisor:output",
        forms=PIPES_FIRST,
        success=lambda seen: seen.verdict != Verdict.OUTPUT_LIMIT,
    ),
    resource(
        13,
        "huge standard error",
        Verdict.OUTPUT_LIMIT,
        "import sys\nprint('x' * (2 << 20), file=sys.stderr, flush=True)\nimport time; time.sleep(0.3)\nsucceeded()\n",
        "supervisor:output",
        forms=PIPES_FIRST,
    ),
    resource(
        14,
        "output that drips for ever",
        Verdict.WALL_LIMIT,
        """
import sys, time
for _ in range(150):
    print(".", end="", file=sys.stderr, flush=True)
    time.sleep(0.01)
succeeded()
""",
        "supervisor:wall",
        limits=WALL,
    ),
    resource(
        15,
        "endless loop",
        Verdict.CPU_LIMIT,
        "import time\nwhile time.process_time() < 1: pass\nsucceeded()\n",
        "supervisor:cpu",
        limits=CPU,
    ),
    resource(
        16, "sleep", Verdict.WALL_LIMIT, "import time\ntime.sleep(1.5)\nsucceeded()\n", "supervisor:wall", limits=WALL
    ),
    resource(
        17,
        "signals ignored and masked",
        Verdict.CPU_LIMIT,
        """
import signal, time
for number in (1, 2, 3, 13, 14, 15, 24):
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
while time.process_time() < 1: pass
succeeded()
""",
        "supervisor:cpu",
        limits=CPU,
    ),
    resource(
        18,
        "raising its own limits again",
        Verdict.RUNTIME_ERROR,
        """
import resource
resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
block = bytearray(200 << 20)
succeeded()
""",
        "rlimit:hard",
    ),
    resource(
        18,
        "timers until the clock gives up",
        Verdict.CPU_LIMIT,
        """
import signal, time
signal.signal(signal.SIGALRM, lambda *_: None)
signal.signal(signal.SIGVTALRM, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
signal.setitimer(signal.ITIMER_VIRTUAL, 0.001, 0.001)
while time.process_time() < 1: pass
succeeded()
""",
        "supervisor:cpu",
        limits=CPU,
    ),
    resource(
        19,
        "limits of the service",
        Verdict.RUNTIME_ERROR,
        "import resource\nresource.prlimit(outside['service'], resource.RLIMIT_NOFILE)\nsucceeded()\n",
        "supervisor:prlimit",
        off_in_full=("pid_namespace",),
    ),
    resource(
        20,
        "priority, affinity and scheduler",
        Verdict.RUNTIME_ERROR,
        """
worked = 0
for attempt in (
    lambda: os.nice(1),
    lambda: os.sched_setaffinity(0, {0}),
    lambda: os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0)),
):
    try:
        attempt()
        worked += 1
    except PermissionError as error:
        refused = error
if worked < 3:
    raise refused
succeeded()
""",
        "seccomp:setpriority",
        "seccomp:sched_setaffinity",
        "seccomp:sched_setscheduler",
    ),
    resource(
        20,
        "priority of the service",
        Verdict.RUNTIME_ERROR,
        "os.setpriority(os.PRIO_PROCESS, outside['service'], 19)\nsucceeded()\n",
        "seccomp:setpriority",
        "capabilities",
        off_in_full=("pid_namespace",),
    ),
    resource(
        21,
        "huge file",
        Verdict.RUNTIME_ERROR,
        "with open('big', 'wb') as big:\n    for _ in range(3): big.write(bytes(1 << 20))\nsucceeded()\n",
        "rlimit:file",
        "work_directory",
        forms=WITH_FILES,
    ),
    resource(
        21,
        "many files as large as allowed",
        {"full": Verdict.RUNTIME_ERROR, "pod": Verdict.OUTPUT_LIMIT},
        """
import time
for number in range(8):
    with open(f"big{number}", "wb") as big:
        big.write(bytes(900 << 10))
time.sleep(0.8)
succeeded()
""",
        "work_directory",
        forms=WITH_FILES,
    ),
    resource(
        22,
        "sparse file",
        Verdict.RUNTIME_ERROR,
        "open('sparse', 'wb').close()\nos.truncate('sparse', 1 << 30)\nsucceeded()\n",
        "rlimit:file",
        forms=WITH_FILES,
    ),
    resource(
        22,
        "preallocated file",
        Verdict.RUNTIME_ERROR,
        "os.posix_fallocate(os.open('allocated', os.O_CREAT | os.O_RDWR), 0, 8 << 20)\nsucceeded()\n",
        "rlimit:file",
        "work_directory",
        forms=WITH_FILES,
    ),
    resource(
        23,
        "thousands of files",
        {"full": Verdict.RUNTIME_ERROR, "pod": Verdict.OUTPUT_LIMIT},
        """
import time
for number in range(5000):
    os.close(os.open(f"f{number}", os.O_CREAT | os.O_WRONLY))
time.sleep(0.8)
succeeded()
""",
        "work_directory",
        forms=WITH_FILES,
    ),
    resource(
        24,
        "tree too deep to remove",
        {"full": Verdict.OK, "pod": Verdict.OUTPUT_LIMIT},
        """
import time
for _ in range(2500):
    os.mkdir("d" * 200)
    os.chdir("d" * 200)
time.sleep(0.8)
""",
        "supervisor:removal",
        "work_directory",
        no_control_in_full="the directory is memory, which the kernel frees whole",
        forms=WITH_FILES,
        success=lambda seen: seen.verdict == Verdict.FAULT,
    ),
    resource(
        25,
        "every descriptor there is",
        Verdict.RUNTIME_ERROR,
        "kept = [os.dup(0) for _ in range(300)]\nsucceeded()\n",
        "rlimit:open_files",
    ),
    resource(
        26,
        "decompression bomb",
        Verdict.MEMORY_LIMIT,
        """
import zlib
press = zlib.compressobj(wbits=-15)
chunk = press.compress(bytes(1 << 20)) + press.flush(zlib.Z_FULL_FLUSH)
swollen = zlib.decompress(chunk * 200 + zlib.compressobj(wbits=-15).flush(), wbits=-15)
succeeded()
""",
        "rlimit:data",
    ),
    resource(
        27,
        "one long call in C",
        Verdict.CPU_LIMIT,
        "import re\nre.match(r'(a+)+$', 'a' * 24 + 'b')\nsucceeded()\n",
        "supervisor:cpu",
        limits=CPU,
    ),
    resource(
        27,
        "powers of huge integers",
        Verdict.CPU_LIMIT,
        "import sys\nsys.set_int_max_str_digits(0)\nlen(str(7 ** 300_000))\nsucceeded()\n",
        "supervisor:cpu",
        limits=CPU,
    ),
    resource(
        28,
        "recursion into a segmentation fault",
        Verdict.RUNTIME_ERROR,
        """
import sys, threading
sys.setrecursionlimit(10**9)
nested = []
for _ in range(100_000):
    nested = [nested]
threading.stack_size(1 << 20)
recursion = threading.Thread(target=repr, args=(nested,))
recursion.start()
recursion.join()
succeeded()
""",
        no_control="the stack of a process ends that process; nothing of ours is in between",
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
        forms=(Form.WORKFLOW, Form.STDIN, Form.CASES, Form.TOOL),
        limits=WALL,
    ),
    resource(
        32,
        "source that swells in the compiler",
        Verdict.MEMORY_LIMIT,
        "wide = [" + "a," * 500_000 + "] if len('') else 0\nsucceeded()\n",
        "rlimit:data",
        limits=Limits(cpu_seconds=5),
    ),
    resource(
        32,
        "source nested too deep",
        Verdict.RUNTIME_ERROR,
        "(" * 50_000 + ")" * 50_000 + "\nsucceeded()\n",
        no_control="the parser's own limit stops it",
    ),
    resource(
        32,
        "source with an encoding cookie",
        Verdict.OK,
        "# -*- coding: utf-7 -*-\nprint('plain')\n# +AG-print('SUCCEEDED')\n",
        no_control="source is text before it reaches a compiler; there is nothing that would decode it",
        forms=(Form.TOOL, Form.WORKFLOW),
    ),
)
