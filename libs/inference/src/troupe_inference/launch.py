"""Runs a policy service as a process: one line on stderr when it cannot start, and a quick end."""

import asyncio
import logging
import os
import sys
from collections.abc import Coroutine
from typing import Final, NoReturn

from troupe_inference.engines.base import EngineStartError
from troupe_inference.model_folder import ModelFolderError
from troupe_inference.renderers import RendererError

START_ERRORS: Final[tuple[type[Exception], ...]] = (EngineStartError, ModelFolderError, RendererError)


def launch(name: str, service: Coroutine[object, object, None], *start_errors: type[Exception]) -> NoReturn:
    """Runs the service to its end and ends the process: status 0, or 1 when it could not start.

    Args:
        start_errors: what the service raises beyond START_ERRORS when it cannot start.
    """
    status = 0
    try:
        asyncio.run(service)
    except (*START_ERRORS, *start_errors) as error:
        print(f"{name}: {error}", file=sys.stderr)
        status = 1
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    # An orderly end of the interpreter takes torch and vLLM 5 to 7 seconds, with nothing left to save.
    os._exit(status)
