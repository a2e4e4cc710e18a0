"""Serves the executor: `python -m troupe_executor`, told by TROUPE_… variables what to run."""

from troupe_inference.launch import launch

from troupe_executor.service import run
from troupe_executor.settings import ExecutorSettings

if __name__ == "__main__":
    launch("executor", run(ExecutorSettings.load()))
