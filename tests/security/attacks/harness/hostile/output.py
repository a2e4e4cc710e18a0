"""Attacks 12, 13 and 21 to 25: more output, larger files, more files and descriptors than were given."""

from .attack import Form, Verdict
from .resources import resource

WITH_FILES = (Form.TOOL, Form.WORKFLOW)
# What a solution writes goes into a file of limited size; the others write to pipes.
PIPES_FIRST = (Form.TOOL, Form.WORKFLOW, Form.STDIN, Form.CASES)

OUTPUT = (
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
        "rlimit:file",
        forms=PIPES_FIRST,
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
        25,
        "memory in pipes",
        Verdict.RUNTIME_ERROR,
        """
import fcntl
for _ in range(8):
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 1 << 20)
    assert os.write(writer, bytes(1 << 20)) == 1 << 20
succeeded()
""",
        "seccomp:fcntl",
    ),
)
