"""Attacks 14 to 20 and 27: time, a better share of it, and limits raised again."""

from .attack import Form, Limits, Verdict
from .resources import WALL, resource

CPU = Limits(cpu_seconds=0.3)

CLOCKS = (
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
        15,
        "children that nobody waits for",
        Verdict.RUNTIME_ERROR,
        """
import ctypes, signal, time
call(13, signal.SIGCHLD, (ctypes.c_ulong * 4)(1, 0, 0, 0), None, 8)
for _ in range(20):
    if os.fork() == 0:
        end = time.process_time() + 0.1
        while time.process_time() < end: pass
        os._exit(0)
    time.sleep(0.25)
succeeded()
""",
        "seccomp:rt_sigaction",
        limits=CPU,
        forms=(Form.WORKFLOW,),
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
        "7 ** 2_000_000\nsucceeded()\n",
        "supervisor:cpu",
        limits=CPU,
    ),
)
