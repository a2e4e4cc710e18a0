"""Refuses a caller that has lost the store's lease.

The orchestrator that holds the lease of a store sends a token with every mutating call; a new holder has a
higher one. A service that has seen the higher token refuses the lower, so an orchestrator that was only
thought dead changes nothing.
"""

from collections.abc import Mapping
from typing import Final

from troupe.v1 import common_pb2

from troupe_contracts.errors import FailedPrecondition, InvalidArgument

_LONGEST_STORE_ID: Final = 128


class FenceGuard:
    """Remembers the highest token of each store. One per service; for use on the event loop only.

    Args:
        highest: the tokens that are known already, by store.
        remedy: for whoever is refused.
    """

    def __init__(self, highest: Mapping[str, int] | None = None, remedy: str = "take it again before calling") -> None:
        self._remedy = remedy
        self._highest = dict(highest or {})

    def check(self, fence: common_pb2.Fence) -> None:
        """Passes a token that is the store's highest so far.

        Raises:
            InvalidArgument: the fence or its store is missing, the store's id is too long to be one, or the token is 0
                (tokens begin at 1).
            FailedPrecondition: a higher token of that store has been seen.
        """
        if not fence.store_id:
            raise InvalidArgument("fence.store_id", "is empty: send the store's id and the token of its lease")
        if len(fence.store_id) > _LONGEST_STORE_ID:
            raise InvalidArgument(
                "fence.store_id",
                f"has {len(fence.store_id)} characters, at most {_LONGEST_STORE_ID} are an id: send that of the store",
            )
        if fence.token == 0:
            raise InvalidArgument("fence.token", "is 0: send the token of the store's lease, which begins at 1")
        highest = self._highest.get(fence.store_id, 0)
        if fence.token < highest:
            raise FailedPrecondition(
                f"fence of store {fence.store_id}",
                f"token {fence.token} is stale, {highest} has been seen: "
                f"another orchestrator took the lease; {self._remedy}",
            )
        self._highest[fence.store_id] = fence.token
