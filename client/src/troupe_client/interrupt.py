"""Runs a command's coroutine so that Ctrl-C, SIGTERM and a closed terminal end it in order, and within seconds.

The first signal cancels the command, whose `finally` blocks stop what it started; the second calls
`on_hurry`, and is never raised into that clean-up.
"""

import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


class InterruptedCommandError(Exception):
    """A signal ended the command; `exit_status` is the shell's convention for it."""

    def __init__(self, signum: signal.Signals) -> None:
        super().__init__(signum.name)
        self.exit_status = 128 + signum


class Interrupts:
    """What a second signal does; whoever has something to hurry adds it."""

    def __init__(self) -> None:
        self._hurries: list[Callable[[], None]] = []
        self.first: signal.Signals | None = None

    def on_hurry(self, callback: Callable[[], None]) -> None:
        """Calls `callback` at the second signal."""
        self._hurries.append(callback)

    def hurry(self) -> None:
        for callback in self._hurries:
            callback()


def run(command: Callable[[Interrupts], Coroutine[Any, Any, Result]]) -> Result:
    """The command's result.

    Raises:
        InterruptedCommandError: SIGINT, SIGTERM or SIGHUP came first.
    """
    interrupts = Interrupts()

    async def main() -> Result:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def on_signal(signum: signal.Signals) -> None:
            if interrupts.first is None:
                interrupts.first = signum
                task.cancel()
            else:
                interrupts.hurry()

        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(signum, on_signal, signum)
        return await command(interrupts)

    try:
        return asyncio.run(main())
    except asyncio.CancelledError:
        if interrupts.first is None:
            raise
        raise InterruptedCommandError(interrupts.first) from None
