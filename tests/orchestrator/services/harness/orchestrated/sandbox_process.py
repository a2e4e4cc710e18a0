"""A real sandbox as a process that a test may kill and start again."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path


class SandboxProcess:
    """A real sandbox of a test's own, on a port that it keeps over restarts."""

    def __init__(self, folder: Path, *options: str) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._options = options or ("--workflow-slots", "4")
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.target = f"127.0.0.1:{probe.getsockname()[1]}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "SandboxProcess":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def running(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        ready = self._folder / "ready.json"
        ready.unlink(missing_ok=True)
        command = [sys.executable, "-m", "troupe_sandbox", "--listen", self.target, "--ready-file", str(ready)]
        command += ["--work-dir", str(self._folder), "--log", "warn", "--die-with-parent", *self._options]
        self._process = subprocess.Popen(command)
        give_up = time.monotonic() + 60
        while not ready.exists():
            assert self._process.poll() is None, "the sandbox did not start"
            assert time.monotonic() < give_up, "the sandbox does not serve"
            time.sleep(0.02)
        assert json.loads(ready.read_text())["target"] == self.target

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(30)
            self._process = None
