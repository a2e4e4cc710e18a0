"""What lies outside the sandbox and must stay out of reach: listeners, a secret file, a folder, a process."""

import secrets
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

SECRET = "the secret of the service"


@dataclass(frozen=True, slots=True)
class Outside:
    """Where to find it. Programs get this as their variable `outside`."""

    tcp: int
    udp: int
    abstract: str
    socket: str
    file: str
    folder: str
    mark: str
    """Name of every file that a program tries to leave behind."""

    def left_behind(self) -> list[Path]:
        """Files of that name wherever a program may have put one."""
        folders = (Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"), Path("/run"), Path("/"), Path.home())
        found = [folder / self.mark for folder in (*folders, Path(self.folder))]
        return [path for path in found if path.is_symlink() or path.exists()]


@contextmanager
def outside() -> Iterator[Outside]:
    """Listeners that nobody is to reach, and files that nobody is to read or change."""
    mark = f"troupe-attack-{secrets.token_hex(6)}"
    with ExitStack() as held:
        # Not pytest's own folder: it lies behind the work directories of the service, and is to be found by its name.
        folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="troupe-outside-")))
        (folder / "secret").write_text(SECRET)
        tcp = held.enter_context(socket.create_server(("127.0.0.1", 0)))
        udp = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(("127.0.0.1", 0))
        abstract, named = (held.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(2))
        abstract.bind("\0" + mark)
        named.bind(str(folder / "engine.sock"))
        for listener in (abstract, named):
            listener.listen()
        yield Outside(
            tcp.getsockname()[1], udp.getsockname()[1], mark, str(folder / "engine.sock"), str(folder / "secret"),
            str(folder), mark,
        )  # fmt: skip
