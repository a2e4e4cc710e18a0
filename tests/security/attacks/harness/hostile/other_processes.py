"""Attacks 33 to 38: looking into other processes, telling them something, taking what they have open."""

from .attack import Form, Verdict
from .escape import PRIVATE_FILES, escape

# Another process can be named only without its own namespace.
PROCESSES = {"off_in_full": ("pid_namespace",)}
# Another zygote has another user namespace, whose processes cannot be looked into from here.
INSPECTION = {"off_in_full": ("pid_namespace", "user_namespace")}

OTHER_PROCESSES = (
    escape(
        37,
        "choosing whom a file signals",
        Verdict.RUNTIME_ERROR,
        """
import fcntl
reader, writer = os.pipe()
fcntl.fcntl(reader, fcntl.F_SETOWN, os.getpid())
succeeded()
""",
        "seccomp:fcntl",
    ),
    escape(
        33,
        "ptrace",
        Verdict.POLICY_VIOLATION,
        """
for process in (outside["victim"], outside["service"]):
    try:
        call(101, 0x4206, process, 0, 0)
        succeeded()
        break
    except OSError as error:
        refused = error
else:
    raise refused
""",
        "seccomp:ptrace",
        "landlock",
        "inspection",
        victim=True,
        **INSPECTION,
    ),
    escape(
        34,
        "reading another process's memory",
        Verdict.POLICY_VIOLATION,
        """
class Part(ctypes.Structure):
    _fields_ = [("start", ctypes.c_void_p), ("length", ctypes.c_size_t)]

page = ctypes.create_string_buffer(64)
here, there = Part(ctypes.addressof(page), 64), Part(outside["victim_address"], 64)
call(310, outside["victim"], ctypes.byref(here), 1, ctypes.byref(there), 1, 0)
succeeded()
""",
        "seccomp:process_vm_readv",
        "landlock",
        "inspection",
        victim=True,
        **INSPECTION,
    ),
    escape(
        34,
        "writing another process's memory",
        Verdict.POLICY_VIOLATION,
        """
class Part(ctypes.Structure):
    _fields_ = [("start", ctypes.c_void_p), ("length", ctypes.c_size_t)]

page = ctypes.create_string_buffer(64)
here, there = Part(ctypes.addressof(page), 8), Part(outside["victim_address"], 8)
call(311, outside["victim"], ctypes.byref(here), 1, ctypes.byref(there), 1, 0)
succeeded()
""",
        "seccomp:process_vm_writev",
        "landlock",
        "inspection",
        victim=True,
        **INSPECTION,
    ),
    escape(
        35,
        "proc of the service",
        Verdict.RUNTIME_ERROR,
        """
for process in (os.getppid(), outside["service"], outside["victim"]):
    for name in ("cmdline", "environ", "maps", "mem", "fd/0", "root/etc/passwd"):
        try:
            with open(f"/proc/{process}/{name}", "rb") as opened:
                opened.read(1)
            succeeded()
            raise SystemExit
        except OSError as error:
            refused = error
raise refused
""",
        "landlock",
        victim=True,
        **PRIVATE_FILES,
    ),
    escape(
        36,
        "taking another process's descriptor",
        Verdict.POLICY_VIOLATION,
        """
process = call(434, outside["victim"], 0)
call(438, process, 0, 0)
succeeded()
""",
        "seccomp:pidfd_open",
        "seccomp:pidfd_getfd",
        "landlock",
        "inspection",
        victim=True,
        forms=(Form.STDIN, Form.CASES, Form.TOOL),
        **INSPECTION,
    ),
    escape(
        37,
        "signals to the service and to a sibling",
        Verdict.RUNTIME_ERROR,
        """
for process in (outside["victim"], outside["service"]):
    try:
        os.kill(process, 0)
        succeeded()
        break
    except OSError as error:
        refused = error
else:
    raise refused
""",
        "landlock_scopes",
        "seccomp:kill",
        victim=True,
        **PROCESSES,
    ),
    escape(
        38,
        "descriptors that were left open",
        Verdict.RUNTIME_ERROR,
        """
found = []
for number in range(3, 1 << 16):
    try:
        os.fstat(number)
        found.append(number)
    except OSError:
        pass
if not found:
    raise FileNotFoundError("no descriptor but standard input and output")
succeeded()
""",
        "descriptors",
        forms=(Form.STDIN, Form.CASES, Form.TOOL),
    ),
)
