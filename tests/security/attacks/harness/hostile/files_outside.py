"""Attacks 43 to 46 and 58 to 60: secrets, other folders, programs and attributes of files that are not the program's."""

from .attack import Form, Verdict
from .escape import PRIVATE_FILES, escape

WITH_FILES = (Form.TOOL, Form.WORKFLOW)

FILES_OUTSIDE = (
    escape(
        43,
        "secret in a file",
        Verdict.RUNTIME_ERROR,
        "if 'secret' in open(outside['file']).read(): succeeded()\n",
        "landlock",
        **PRIVATE_FILES,
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
        **PRIVATE_FILES,
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
        **PRIVATE_FILES,
    ),
    escape(
        44,
        "link that changes while it is followed",
        Verdict.RUNTIME_ERROR,
        """
import threading, time
os.mkdir("here")
end = time.monotonic() + 0.5

def swap():
    while time.monotonic() < end:
        for target in ("here", outside["folder"]):
            os.symlink(target, "next")
            os.rename("next", "link")

swapping = threading.Thread(target=swap)
swapping.start()
while time.monotonic() < end:
    try:
        open("link/" + outside["mark"], "w").close()
    except OSError:
        pass
swapping.join()
os.stat(outside["folder"] + "/" + outside["mark"])
succeeded()
""",
        "landlock",
        forms=(Form.WORKFLOW,),
        **PRIVATE_FILES,
    ),
    escape(
        44,
        "files without a work directory",
        Verdict.RUNTIME_ERROR,
        "open(outside['folder'] + '/' + outside['mark'], 'w').close()\nsucceeded()\n",
        "landlock",
        forms=(Form.STDIN, Form.CASES),
        **PRIVATE_FILES,
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
        **PRIVATE_FILES,
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
        **PRIVATE_FILES,
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
        **PRIVATE_FILES,
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
        **PRIVATE_FILES,
    ),
)
