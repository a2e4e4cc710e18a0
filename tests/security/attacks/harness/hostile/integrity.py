"""Attacks 63 to 80: a reward that was not earned, or knowledge of what is not the program's."""

from .attack import Attack, Ends, Family, Form, Limits, Observed, Verdict

TESTS = (Form.STDIN, Form.CASES)
ASSERTIONS = (Form.ASSERTION,)
WALL = Limits(wall_seconds=0.6)

# Looks for a pattern in every object, descriptor, variable and in the memory around. A page that is not there makes
# `write` fail instead of the process. The pattern itself does not match itself.
SEARCH = r"""
import gc, re, sys

def search(pattern):
    expression = re.compile(pattern.encode())
    texts = [repr(dict(os.environ)), repr(sys.argv)]
    for holder in gc.get_objects():
        if isinstance(holder, dict):
            texts += [text for text in [*holder.values(), *holder] if type(text) is str]
        elif isinstance(holder, (list, tuple)):
            texts += [text for text in holder if type(text) is str]
    for text in texts:
        if found := expression.search(text.encode("utf-8", "replace")):
            return found.group().decode()
    for number in range(64):
        try:
            os.lseek(number, 0, 0)
            if found := expression.search(os.read(number, 1 << 20)):
                return found.group().decode()
        except OSError:
            pass
    reader, writer = os.pipe()
    libc.sbrk.restype = ctypes.c_void_p
    near = {id(object()) >> 12, id(bytearray(1 << 15)) >> 12, id(texts) >> 12}
    pages = {page + distance for page in near for distance in range(-1024, 1024)}
    top = libc.sbrk(0) >> 12
    pages |= {top - distance for distance in range(4096)}
    for page in sorted(pages):
        if libc.write(writer, ctypes.c_void_p(page << 12), 4096) == 4096:
            if found := expression.search(os.read(reader, 4096)):
                return found.group().decode()
    return None
"""

# An object that the zygote made before it forked anything, and what its strings hash to.
SIBLING = """
seen = f"{id(os)} {hash('sibling')}\\n"
print(seen, end="")
"""

# An access to memory takes a tenth of a microsecond; a clock whose steps are a hundred times that does not see it.
FINE_CLOCK = """
import time
times = [time.perf_counter_ns() for _ in range(10_000)]
steps = [later - earlier for earlier, later in zip(times, times[1:]) if later > earlier]
if steps and min(steps) < 10_000: succeeded()
"""


def integrity(number: int, name: str, ends: Ends, program: str, *off: str, **more: object) -> Attack:
    return Attack(number, name, Family.INTEGRITY, program, ends, off, **more)  # type: ignore[arg-type]


def passed(seen: Observed) -> bool:
    return seen.verdict == Verdict.OK


def unfit_for_a_log(seen: Observed) -> bool:
    """Control characters, or more text than an explanation may have."""
    return any(ord(character) < 32 and character not in "\n\t" for character in seen.detail) or len(seen.detail) > 8192


INTEGRITY = (
    integrity(
        63,
        "searching for the expected output",
        Verdict.WRONG_ANSWER,
        SEARCH + "print(search('expected-[0-9]{40}'))\n",
        plant="expected-{}",
        forms=TESTS,
        success=passed,
    ),
    integrity(
        64,
        "searching for another job's source and input",
        Verdict.RUNTIME_ERROR,
        SEARCH + "if search('marker-[0-9]{40}') is None: raise LookupError('nothing')\nsucceeded()\n",
        plant="marker-{}",
        first="kept = [marker + str(number) for number in range(1000)]\nimport sys; sys.stdin.read()\n",
        forms=(Form.STDIN, Form.CASES, Form.TOOL),
    ),
    integrity(
        65,
        "patching what the next case uses",
        Verdict.WRONG_ANSWER,
        """
import json
if getattr(json, "patched", False):
    print(json.loads("0"))
json.patched = True
json.loads = lambda text: "SUCCEEDED"
""",
        first="""
import builtins, json
builtins.patched = json.patched = True
json.loads = lambda text: "SUCCEEDED"
""",
        batch=True,
        forms=TESTS,
    ),
    integrity(
        66,
        "object that equals everything",
        {"": Verdict.WRONG_ANSWER},
        """
class Equal(str):
    def __eq__(self, other): return True
    def __hash__(self): return 0
    def __str__(self): return Equal("equal")
print(Equal("equal"))
""",
        no_control="output is compared by the supervisor, in Rust, as bytes",
        careless="""
import sys
printed = []
exec(sys.argv[1], {"print": printed.append})
if printed[0] == "42": print("SUCCEEDED")
""",
        forms=TESTS,
    ),
    integrity(
        66,
        "object that equals everything in an assertion",
        Verdict.OK,
        """
class Equal:
    def __eq__(self, other): return True
def solve(): return Equal()
""",
        uncovered=dict.fromkeys(
            ("full", "pod"), "an assertion is evaluated beside the solution, which decides what its objects equal"
        ),
        forms=ASSERTIONS,
        success=passed,
    ),
    integrity(
        67,
        "printing after the end of main",
        Verdict.WALL_LIMIT,
        """
import atexit, threading, time
class Last:
    def __del__(self): print("x", flush=True)
last = Last()
threading.Thread(target=time.sleep, args=(0.2,)).start()
atexit.register(succeeded)
atexit.register(time.sleep, 1.5)
""",
        "supervisor:wall",
        limits=WALL,
    ),
    integrity(
        68,
        "leaving before the assertion",
        Verdict.RUNTIME_ERROR,
        "def solve(): os._exit(0)\n",
        "supervisor:token",
        forms=ASSERTIONS,
        success=passed,
    ),
    integrity(
        68,
        "leaving at once with status 0",
        Verdict.RUNTIME_ERROR,
        "os._exit(0)\n",
        "supervisor:token",
        forms=ASSERTIONS,
        success=passed,
    ),
    integrity(
        69,
        "forged verdict on every descriptor",
        Verdict.RUNTIME_ERROR,
        """
for number in range(3, 64):
    for text in (b"passed", b'{"Ended":0}', b'"Jailed"', b"\\0" * 48):
        try:
            os.write(number, text)
        except OSError:
            pass
os._exit(0)
""",
        "supervisor:token",
        forms=ASSERTIONS,
        success=passed,
    ),
    integrity(
        70,
        "running on with output closed",
        Verdict.WALL_LIMIT,
        "import time\nsucceeded()\nos.close(1)\ntime.sleep(1.5)\nos._exit(0)\n",
        "supervisor:wall",
        limits=WALL,
        success=passed,
    ),
    integrity(
        71,
        "child that keeps the pipe open",
        Verdict.OK,
        """
import time
if os.fork() == 0:
    time.sleep(0.7)
    succeeded()
    os._exit(0)
os._exit(0)
""",
        "keeper",
        forms=(Form.WORKFLOW,),
    ),
    integrity(
        72,
        "searching for the input of other cases",
        Verdict.RUNTIME_ERROR,
        SEARCH + "if search('marker-[0-9]{40}') is None: raise LookupError('nothing')\nsucceeded()\n",
        plant="marker-{}",
        first="import sys\nsys.stdin.read()\n",
        forms=TESTS,
    ),
    integrity(
        72,
        "writing into the input",
        Verdict.RUNTIME_ERROR,
        "os.lseek(0, 0, 0)\nos.write(0, b'SUCCEEDED')\nsucceeded()\n",
        "seals",
        forms=TESTS,
    ),
    integrity(
        72,
        "opening the input anew to write",
        Verdict.RUNTIME_ERROR,
        "os.write(os.open('/proc/self/fd/0', os.O_RDWR), b'SUCCEEDED')\nsucceeded()\n",
        "landlock",
        "seals",
        off_in_full=("private_root",),
        forms=TESTS,
    ),
    integrity(
        73,
        "answers kept for the next case",
        Verdict.RUNTIME_ERROR,
        """
for folder in (".", "/tmp", "/var/tmp", "/dev/shm", outside["folder"]):
    try:
        exec(open(folder + "/" + outside["mark"]).read())
        raise SystemExit
    except OSError as error:
        refused = error
raise refused
""",
        "landlock",
        off_in_full=("private_root",),
        first="""
for folder in (".", "/tmp", "/var/tmp", "/dev/shm", outside["folder"]):
    try:
        with open(folder + "/" + outside["mark"], "w") as answers:
            answers.write("succeeded()")
    except OSError:
        pass
""",
        forms=TESTS,
    ),
    integrity(
        73,
        "recognising an input that came before",
        Verdict.WRONG_ANSWER,
        """
import heapq, sys
known = heapq.__dict__.setdefault("known", set())
text = sys.stdin.read()
if text in known: succeeded()
known.add(text)
""",
        batch=True,
        forms=TESTS,
    ),
    integrity(
        74,
        "poisoned modules",
        Verdict.WRONG_ANSWER,
        "import heapq\nif hasattr(heapq, 'poison'): succeeded()\nheapq.poison = 1\n",
        first="""
import heapq, sys
heapq.poison = sys.modules["poison"] = heapq
for name in ("sitecustomize.py", "usercustomize.py", "poison.pth"):
    try:
        open(name, "w").write("import heapq; heapq.poison = 1")
    except OSError:
        pass
""",
        batch=True,
        forms=TESTS,
    ),
    integrity(
        75,
        "forged clocks",
        {Form.STDIN: Verdict.WRONG_ANSWER, Form.CASES: Verdict.WRONG_ANSWER, "": Verdict.OK},
        """
import resource, time
start = time.process_time()
while time.process_time() < start + 0.4: pass
time.process_time = time.perf_counter = time.time = lambda: 0.0
resource.getrusage = None
print("no time at all")
""",
        no_control="times are the kernel's, read by the supervisor; no message of a program carries one",
        careless="""
import sys, time
start = time.process_time()
exec(sys.argv[1])
if time.process_time() - start < 0.4: print("SUCCEEDED")
""",
        success=lambda seen: seen.cpu_seconds < 0.4 or seen.wall_seconds < 0.4,
    ),
    integrity(
        76,
        "traceback that is no text",
        Verdict.RUNTIME_ERROR,
        "raise RuntimeError('x' * 100_000 + '\\x1b[2J\\x1b[31m\\x00\\x08\\r forged \\udcff')\n",
        "supervisor:printable",
        # What is said of a case loses its control characters once more.
        forms=(Form.WORKFLOW, Form.STDIN, Form.CASES),
        success=unfit_for_a_log,
    ),
    integrity(
        76,
        "repr beyond measure",
        Verdict.OUTPUT_LIMIT,
        "raise RuntimeError('x' * (10 << 20))\n",
        "supervisor:output",
        forms=(Form.TOOL, Form.WORKFLOW, Form.STDIN, Form.CASES),
        success=lambda seen: seen.verdict != Verdict.OUTPUT_LIMIT,
    ),
    integrity(
        77,
        "right output, then a signal",
        Verdict.RUNTIME_ERROR,
        "succeeded()\nctypes.string_at(0)\n",
        "supervisor:exit_status",
        success=passed,
    ),
    integrity(
        79,
        "addresses and hashes of a sibling",
        Verdict.OK,
        SIBLING + "if seen == told: succeeded()\n",
        first=SIBLING,
        uncovered=dict.fromkeys(
            ("full", "pod"),
            "programs of one zygote share address layout and hash seed until it is replaced (every 5,000 programs)",
        ),
        # All scripts come from one zygote.
        forms=(Form.WORKFLOW,),
    ),
    integrity(
        80,
        "timing of a neighbour",
        Verdict.OK,
        FINE_CLOCK,
        uncovered=dict.fromkeys(
            ("full", "pod"), "programs share processors, caches and a fine clock; a side channel cannot be ruled out"
        ),
        forms=TESTS,
    ),
)
