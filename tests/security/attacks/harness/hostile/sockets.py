"""Attacks 40 to 42: sockets, by name, by path and over the network."""

from .attack import Form, Verdict
from .escape import PRIVATE_FILES, escape

# What Python calls on a socket is allowed there; the other forms end at `getsockname`.
SCRIPT_FIRST = (Form.WORKFLOW, Form.STDIN, Form.CASES, Form.TOOL)

SOCKETS = (
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
        **PRIVATE_FILES,
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
)
