"""Attacks 33 to 62: reaching what is outside, or a part of the kernel that no program needs.

Landlock alone leaves `stat`, `chmod`, datagrams and sockets by path open, so each of these has a program of its own. Where
a call is only to be reached, not to do harm, success is any answer of the kernel's own.
"""

from .attack import Attack, Ends, Family, Form, Limits, Verdict

WITH_FILES = (Form.TOOL, Form.WORKFLOW)
FILES = {"off_in_full": ("private_root",)}
# Another process can be named only without its own namespace.
PROCESSES = {"off_in_full": ("pid_namespace",)}
# Another zygote has another user namespace, whose processes cannot be looked into from here.
INSPECTION = {"off_in_full": ("pid_namespace", "user_namespace")}
# What Python calls on a socket is allowed there; the other forms end at `getsockname`.
SCRIPT_FIRST = (Form.WORKFLOW, Form.STDIN, Form.CASES, Form.TOOL)


def escape(number: int, name: str, ends: Ends, program: str, *off: str, **more: object) -> Attack:
    return Attack(number, name, Family.ESCAPE, program, ends, off, **more)  # type: ignore[arg-type]


def reaches(number: int, name: str, system_call: str, arguments: str, **more: object) -> Attack:
    """The call itself is what is kept out: whatever the kernel answers but "not known" is the proof."""
    program = f"""
try:
    call({arguments})
except OSError as error:
    if error.errno == 38:
        raise
succeeded()
"""
    ends = more.pop("ends", Verdict.POLICY_VIOLATION)
    return escape(number, name, ends, program, f"seccomp:{system_call}", **more)  # type: ignore[arg-type]


ESCAPE = (
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
        **FILES,
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
    escape(
        40,
        "abstract socket",
        Verdict.RUNTIME_ERROR,
        "import socket\nsocket.socket(socket.AF_UNIX).connect('\\0' + outside['abstract'])\nsucceeded()\n",
        "supervisor:unix_sockets",
        "seccomp:connect",
        "landlock_scopes",
        off_in_full=("network_namespace",),
        forms=SCRIPT_FIRST,
    ),
    escape(
        41,
        "socket of a container engine",
        Verdict.RUNTIME_ERROR,
        "import socket\nsocket.socket(socket.AF_UNIX).connect(outside['socket'])\nsucceeded()\n",
        "supervisor:unix_sockets",
        "seccomp:connect",
        **FILES,
        forms=SCRIPT_FIRST,
    ),
    escape(
        42,
        "TCP to the service's own host",
        Verdict.POLICY_VIOLATION,
        "import socket\nsocket.socket().connect(('127.0.0.1', outside['tcp']))\nsucceeded()\n",
        "seccomp:socket",
        "seccomp:connect",
        "landlock_network",
        "landlock_scopes",
        off_in_full=("network_namespace",),
        forms=SCRIPT_FIRST,
    ),
    escape(
        42,
        "UDP and names",
        Verdict.POLICY_VIOLATION,
        """
import socket
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.connect(("127.0.0.1", outside["udp"]))
os.write(sender.fileno(), b"SUCCEEDED")
succeeded()
""",
        "seccomp:socket",
        "seccomp:connect",
        off_in_full=("network_namespace",),
        forms=SCRIPT_FIRST,
    ),
    escape(
        42,
        "sockets of other families",
        Verdict.POLICY_VIOLATION,
        """
import socket
for family, kind in ((16, 3), (10, 2), (40, 1), (38, 5), (17, 3), (2, 3)):
    try:
        socket.socket(family, kind)
        succeeded()
        break
    except OSError as error:
        refused = error
else:
    raise refused
""",
        "seccomp:socket",
        forms=SCRIPT_FIRST,
    ),
    escape(
        43,
        "secret in a file",
        Verdict.RUNTIME_ERROR,
        "if 'secret' in open(outside['file']).read(): succeeded()\n",
        "landlock",
        **FILES,
    ),
    escape(
        43,
        "tokens, keys and accounts",
        Verdict.RUNTIME_ERROR,
        """
for name in ("/etc/passwd", "/etc/shadow", "/var/run/secrets/kubernetes.io/serviceaccount/token", "/root/.ssh/id_rsa",
             "/proc/self/environ", "/etc/hostname", outside["folder"] + "/.git/config"):
    try:
        open(name).read()
        succeeded()
        break
    except OSError as error:
        refused = error
else:
    raise refused
""",
        "landlock",
        **FILES,
    ),
    escape(
        43,
        "secret in the environment",
        Verdict.RUNTIME_ERROR,
        "os.environ['SECRET_OF_THE_SERVICE']\nsucceeded()\n",
        "environment",
    ),
    escape(
        44,
        "writing outside by path, link and rename",
        Verdict.RUNTIME_ERROR,
        """
target = outside["folder"] + "/" + outside["mark"]
open("inside", "w").close()
os.symlink(outside["folder"], "link")

def through_descriptor():
    folder = os.open("..", os.O_RDONLY)
    os.open(outside["mark"], os.O_CREAT | os.O_WRONLY, dir_fd=folder)

for attempt in (
    lambda: open(target, "w").close(),
    lambda: open("link/" + outside["mark"], "w").close(),
    lambda: open("../" + outside["mark"], "w").close(),
    lambda: os.rename("inside", target),
    lambda: os.link(outside["file"], "inside2"),
    lambda: os.link("inside", target),
    lambda: os.mkdir(target),
    lambda: os.symlink("x", target),
    lambda: os.unlink(outside["file"]),
    lambda: os.truncate(outside["file"], 0),
    lambda: open("/proc/self/root" + target, "w").close(),
    through_descriptor,
):
    try:
        attempt()
        succeeded()
        break
    except OSError as error:
        refused = error
else:
    raise refused
""",
        "landlock",
        forms=WITH_FILES,
        **FILES,
    ),
    escape(
        44,
        "files without a work directory",
        Verdict.RUNTIME_ERROR,
        "open(outside['folder'] + '/' + outside['mark'], 'w').close()\nsucceeded()\n",
        "landlock",
        forms=(Form.STDIN, Form.CASES),
        **FILES,
    ),
    escape(
        45,
        "a message to the next job",
        Verdict.RUNTIME_ERROR,
        """
for folder in (".", "/tmp", "/var/tmp", "/dev/shm", "/run", "/", os.path.expanduser("~"), outside["folder"]):
    try:
        if open(folder + "/" + outside["mark"]).read() == "for you":
            succeeded()
            raise SystemExit
    except OSError as error:
        refused = error
raise refused
""",
        "landlock",
        first="""
for folder in (".", "/tmp", "/var/tmp", "/dev/shm", "/run", "/", os.path.expanduser("~"), outside["folder"]):
    try:
        with open(folder + "/" + outside["mark"], "w") as message:
            message.write("for you")
    except OSError:
        pass
""",
        **FILES,
    ),
    escape(
        46,
        "set-user-ID program",
        Verdict.RUNTIME_ERROR,
        """
for program in ("/bin/su", "/bin/mount", "/usr/bin/passwd", "/bin/true", "/bin/sh"):
    try:
        child = os.fork()
        if child == 0:
            try:
                # Not os.execv: an audit hook gives that a verdict of its own, before the kernel is asked.
                arguments = (ctypes.c_char_p * 3)(program.encode(), b"--version", None)
                call(59, ctypes.c_char_p(program.encode()), arguments, None)
            finally:
                os._exit(126)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 126:
            succeeded()
            break
    except OSError as error:
        refused = error
else:
    raise PermissionError("nothing can be executed")
""",
        "landlock",
        forms=(Form.WORKFLOW,),
        **FILES,
    ),
    escape(
        47,
        "user namespace of its own",
        Verdict.POLICY_VIOLATION,
        "call(272, 0x10000000)\nsucceeded()\n",
        "seccomp:unshare",
    ),
    reaches(47, "mount", "mount", "165, b'none', b'/', b'tmpfs', 0, None"),
    reaches(47, "pivot_root", "pivot_root", "155, b'.', b'.'"),
    reaches(47, "chroot", "chroot", "161, b'.'"),
    reaches(47, "namespace of another", "setns", "308, 0, 0"),
    reaches(48, "io_uring", "io_uring_setup", "425, 8, ctypes.create_string_buffer(256)", ends=Verdict.RUNTIME_ERROR),
    reaches(49, "bpf", "bpf", "321, 0, ctypes.create_string_buffer(128), 128"),
    reaches(50, "perf events", "perf_event_open", "298, ctypes.create_string_buffer(128), 0, -1, -1, 0"),
    reaches(51, "userfaultfd", "userfaultfd", "323, 1"),
    reaches(52, "keyrings", "keyctl", "250, 0, -3, 0"),
    reaches(52, "adding a key", "add_key", "248, b'user', b'troupe', b'x', 1, -2"),
    escape(
        53,
        "calls of the 32-bit interface",
        Verdict.POLICY_VIOLATION,
        """
import mmap
code = mmap.mmap(-1, 4096, prot=7, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
code.write(bytes.fromhex("b814000000" "cd80" "c3"))  # mov eax, getpid of i386; int 0x80; ret
entry = ctypes.addressof(ctypes.c_char.from_buffer(code))
if ctypes.CFUNCTYPE(ctypes.c_int)(entry)() > 0:
    succeeded()
""",
        "seccomp:architecture",
    ),
    escape(
        53,
        "calls of the x32 interface",
        Verdict.POLICY_VIOLATION,
        "try:\n    call(0x40000000 + 39)\nexcept OSError:\n    pass\nsucceeded()\n",
        "seccomp:x32",
    ),
    reaches(54, "personality", "personality", "135, 0xffffffff"),
    reaches(54, "segment descriptors", "modify_ldt", "154, 0, None, 0"),
    escape(
        55,
        "typing into a terminal",
        Verdict.RUNTIME_ERROR,
        """
import fcntl
try:
    fcntl.ioctl(0, 0x5412, b"x")  # TIOCSTI
except OSError as error:
    kind = error.errno
# FIONREAD works on a pipe and on a file if ioctl is reached at all.
reader, writer = os.pipe()
fcntl.ioctl(reader, 0x541B, bytes(4))
succeeded()
""",
        "seccomp:ioctl",
    ),
    escape(
        56,
        "machine code of its own",
        Verdict.POLICY_VIOLATION,
        """
import mmap
code = mmap.mmap(-1, 4096, prot=7, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
# mov eax, unshare; xor edi, edi; syscall; ret
code.write(bytes.fromhex("b810010000" "31ff" "0f05" "c3"))
entry = ctypes.addressof(ctypes.c_char.from_buffer(code))
if ctypes.CFUNCTYPE(ctypes.c_int)(entry)() == 0:
    succeeded()
""",
        "seccomp:unshare",
    ),
    escape(
        56,
        "library of its own",
        {"full": Verdict.RUNTIME_ERROR, "pod": Verdict.OK},
        """
import _ctypes, sys
with open(_ctypes.__file__, "rb") as original, open("library.so", "wb") as copy:
    copy.write(original.read())
ctypes.PyDLL(os.path.abspath("library.so"))
succeeded()
""",
        forms=(Form.TOOL,),
        limits=Limits(output_bytes=4 << 20),
        no_control_in_full="the flag of the mount cannot be left out apart from the private root",
        uncovered={"pod": "native code can be loaded; it has no more rights than the program (see machine code)"},
    ),
    escape(
        57,
        "crafted bytecode, then raw calls",
        Verdict.POLICY_VIOLATION,
        """
def harmless(): return "constant"
# The bytes of a living code object are overwritten in place: the interpreter runs what it never compiled.
code = harmless.__code__
place = ctypes.string_at(id(code), 400).find(code.co_code[:8])
assert place > 0
ctypes.memset(id(code) + place, 9, 2)
call(272, 0)
succeeded()
""",
        "seccomp:unshare",
    ),
    escape(
        58,
        "modes, times and attributes of other files",
        Verdict.RUNTIME_ERROR,
        """
worked = 0
for attempt in (
    lambda: os.chmod(outside["file"], 0o600),
    lambda: os.utime(outside["file"]),
    lambda: os.setxattr(outside["file"], "user.troupe", b"x"),
):
    try:
        attempt()
        worked += 1
    except OSError as error:
        refused = error
if not worked:
    raise refused
succeeded()
""",
        "seccomp:chmod",
        "seccomp:utimensat",
        "seccomp:setxattr",
        **FILES,
    ),
    escape(
        59,
        "asking whether a path exists",
        {"full": Verdict.RUNTIME_ERROR, "pod": Verdict.OK},
        "os.stat(outside['file'])\nsucceeded()\n",
        "private_root",
        uncovered={"pod": "Landlock does not govern stat: existence, size and times of any path can be asked"},
    ),
    escape(
        60,
        "score of the OOM killer",
        Verdict.RUNTIME_ERROR,
        "with open('/proc/self/oom_score_adj', 'w') as score:\n    score.write('1000')\nsucceeded()\n",
        "landlock",
        "inspection",
        **FILES,
    ),
    escape(
        61,
        "filter of its own",
        Verdict.RUNTIME_ERROR,
        """
class Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.c_void_p)]

allow_everything = ctypes.c_uint64(0x7FFF0000 << 32 | 0x06)
call(317, 1, 0, ctypes.byref(Filter(1, ctypes.addressof(allow_everything))))
succeeded()
""",
        "seccomp:seccomp",
    ),
    escape(
        61,
        "strict mode by prctl",
        Verdict.RUNTIME_ERROR,
        """
if libc.prctl(22, 3, 0, 0, 0) != 0 and ctypes.get_errno() == 1:
    raise PermissionError
succeeded()
""",
        "seccomp:prctl",
    ),
    escape(
        62,
        "making itself readable to others",
        Verdict.RUNTIME_ERROR,
        """
if libc.prctl(4, 1, 0, 0, 0) != 0:
    raise PermissionError
succeeded()
""",
        "seccomp:prctl",
    ),
)
