"""Attacks 40 to 42: sockets, by name, by path and over the network.

Each is kept: Python asks for the address of one that nobody closes, which is a call that solutions and tools do not have.
"""

from .attack import Verdict
from .escape import PRIVATE_FILES, escape

SOCKETS = (
    escape(
        40,
        "abstract socket",
        Verdict.RUNTIME_ERROR,
        "import socket\nkept = socket.socket(socket.AF_UNIX)\nkept.connect('\\0' + outside['abstract'])\nsucceeded()\n",
        "supervisor:unix_sockets",
        "seccomp:connect",
        "landlock_scopes",
        off_in_full=("network_namespace",),
    ),
    escape(
        41,
        "socket of a container engine",
        Verdict.RUNTIME_ERROR,
        "import socket\nkept = socket.socket(socket.AF_UNIX)\nkept.connect(outside['socket'])\nsucceeded()\n",
        "supervisor:unix_sockets",
        "seccomp:connect",
        **PRIVATE_FILES,
    ),
    escape(
        42,
        "TCP to the service's own host",
        Verdict.POLICY_VIOLATION,
        "import socket\nkept = socket.socket()\nkept.connect(('127.0.0.1', outside['tcp']))\nsucceeded()\n",
        "seccomp:socket",
        "seccomp:connect",
        "landlock_network",
        "landlock_scopes",
        off_in_full=("network_namespace",),
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
    ),
    escape(
        42,
        "sockets of other families",
        Verdict.POLICY_VIOLATION,
        """
import socket
for family, kind in ((16, 3), (10, 2), (40, 1), (38, 5), (17, 3), (2, 3)):
    try:
        kept = socket.socket(family, kind)
        succeeded()
        break
    except OSError as error:
        refused = error
else:
    raise refused
""",
        "seccomp:socket",
    ),
)
