"""Attacks 6 to 11, 26, 28 and 32: memory of all kinds, also that of the compiler and of the stack."""

from .attack import Form, Limits, Verdict
from .resources import resource

RECURSION = """
import sys, threading
sys.setrecursionlimit(10**9)
nested = []
for _ in range({depth}):
    nested = [nested]
threading.stack_size(1 << 20)
recursion = threading.Thread(target=repr, args=(nested,))
recursion.start()
recursion.join()
succeeded()
"""

MEMORY = (
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
        7,
        "mapping that grows beyond the memory limit",
        Verdict.RUNTIME_ERROR,
        """
import mmap
block = mmap.mmap(-1, 200 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x100)
for place in range(0, len(block), 4096):
    block[place] = 1
succeeded()
""",
        "growing_memory",
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
        28,
        "recursion into a segmentation fault",
        Verdict.RUNTIME_ERROR,
        RECURSION.format(depth=100_000),
        no_control="the stack of a process ends that process; nothing of ours is in between",
        harmless=RECURSION.format(depth=100),
    ),
    resource(
        32,
        "source that swells in the compiler",
        Verdict.MEMORY_LIMIT,
        "wide = [" + "a," * 500_000 + "] if len('') else 0\nsucceeded()\n",
        "rlimit:data",
        "rlimit:address",
        limits=Limits(cpu_seconds=5),
    ),
    resource(
        32,
        "source nested too deep",
        Verdict.RUNTIME_ERROR,
        "(" * 50_000 + ")" * 50_000 + "\nsucceeded()\n",
        no_control="the parser's own limit stops it",
        harmless="(" * 50 + ")" * 50 + "\nsucceeded()\n",
    ),
    resource(
        32,
        "source with an encoding cookie",
        Verdict.OK,
        "# -*- coding: utf-7 -*-\nprint('plain')\n# +AAo-print('SUCCEEDED')\n",
        no_control="source is text before it reaches a compiler; there is nothing that would decode it",
        careless="import sys\nexec(sys.argv[1].encode())\n",
        # The cookie counts in the first two lines only.
        prelude=False,
        forms=(Form.TOOL, Form.WORKFLOW),
    ),
)
