"""Attacks 47 to 55, 61 and 62: parts of the kernel that no program needs.

Where a call is only to be reached, not to do harm, success is any answer of the kernel's own.
"""

from .attack import Attack, Verdict
from .escape import escape


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


KERNEL_PARTS = (
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
