"""Serves the executor: `python -m troupe_executor`, told by TROUPE_… variables what to run."""

import asyncio
import sys

from troupe_inference.engines.base import EngineStartError
from troupe_inference.model_folder import ModelFolderError
from troupe_inference.renderers import RendererError

from troupe_executor.service import run
from troupe_executor.settings import ExecutorSettings


def main() -> None:
    """Runs the service; a start that cannot succeed ends with status 1 and one line on stderr."""
    settings = ExecutorSettings.load()
    try:
        asyncio.run(run(settings))
    except (EngineStartError, ModelFolderError, RendererError) as error:
        print(f"executor: {error}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
