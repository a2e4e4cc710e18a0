"""Whatever happens to objects of one kind, in whatever order: once all is quiet, objects and calls agree."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import event
from hypothesis import strategies as st
from standin_api.server import standin_api

from requested.place import Place, place, until

NAMES = ("a", "b")
ENDED = ("Succeeded", "Failed", "Cancelled")
Happening = tuple[str, str, float]
"""What, to which object, and seconds after it in which it may be noticed."""
_PAUSES = st.sampled_from([0.0, 0.0, 0.01, 0.1])
_ANY_KIND = ("delete", "restart", "away", "back", "cut")


def happenings(*of_the_kind: str) -> st.SearchStrategy[list[Happening]]:
    """What happens to objects of any kind, and what to those of this one."""
    actions = st.sampled_from([*of_the_kind, *_ANY_KIND])
    return st.lists(st.tuples(actions, st.sampled_from(NAMES), _PAUSES), min_size=12, max_size=24)


@dataclass(frozen=True)
class Agreement:
    """Objects of one kind.

    Args:
        plural: as in their path.
        make: an object of this name.
        happens: what is this kind's own.
        check: raises AssertionError or KeyError where objects and calls disagree.
    """

    plural: str
    make: Callable[[Place, str], object]
    happens: Callable[[Place, str, str], Awaitable[None]]
    check: Callable[[Place], Awaitable[None]]

    def holds_after(self, happenings: Sequence[Happening]) -> None:
        """Has it all happen to a place of its own, and waits for agreement."""
        asyncio.run(self._happen(happenings))

    async def _happen(self, happenings: Sequence[Happening]) -> None:
        with tempfile.TemporaryDirectory() as folder, standin_api() as standin:
            async with place(standin, Path(folder)) as here:
                await here.start()
                for what, name, pause in happenings:
                    if name not in standin.objects.get(self.plural, {}):
                        self.make(here, name)
                        await asyncio.sleep(pause)
                    await self._one(here, what, name)
                    await asyncio.sleep(pause)
                standin.away = False
                disagreement = ""

                async def agreed() -> bool:
                    nonlocal disagreement
                    try:
                        await self.check(here)
                    except (AssertionError, KeyError) as error:
                        disagreement = f"{error!r}: {standin.objects.get(self.plural)}"
                        return False
                    return True

                await until(agreed, lambda: disagreement)
                # And it stays so.
                await asyncio.sleep(0.1)
                await self.check(here)
                for found in standin.objects.get(self.plural, {}).values():
                    event(found["status"]["phase"])

    async def _one(self, here: Place, what: str, name: str) -> None:
        match what:
            case "delete":
                here.standin.delete(self.plural, name)
            case "restart":
                await here.stop()
                await here.start()
            case "away" | "back":
                here.standin.away = what == "away"
                here.standin.cut_watches()
            case "cut":
                here.standin.cut_watches()
            case _:
                await self.happens(here, what, name)


def check_conditions(status: dict[str, Any]) -> None:
    """An object's conditions say what its phase says."""
    holding = {each["type"] for each in status["conditions"] if each["status"] == "True"}
    for condition, phase in (("Complete", "Succeeded"), ("Failed", "Failed"), ("Cancelled", "Cancelled")):
        assert (condition in holding) == (status["phase"] == phase)
