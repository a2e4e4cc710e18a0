"""A caller with an older lease is refused, one with none too."""

import pytest
from troupe.v1.common_pb2 import Fence
from troupe_contracts.errors import FailedPrecondition, InvalidArgument
from troupe_contracts.fence import FenceGuard


def test_equal_and_higher_tokens_pass() -> None:
    guard = FenceGuard()
    for token in (1, 1, 3):
        guard.check(Fence(store_id="s", token=token))


def test_a_token_lower_than_the_highest_seen_is_refused_naming_both() -> None:
    guard = FenceGuard()
    guard.check(Fence(store_id="s", token=5))
    with pytest.raises(FailedPrecondition, match="token 4 is stale, 5 has been seen"):
        guard.check(Fence(store_id="s", token=4))
    guard.check(Fence(store_id="s", token=5))


def test_stores_are_fenced_apart() -> None:
    guard = FenceGuard()
    guard.check(Fence(store_id="s", token=5))
    guard.check(Fence(store_id="other", token=1))


def test_what_was_known_before_is_held_against_a_caller_with_the_remedy() -> None:
    guard = FenceGuard({"s": 5}, "remove the file")
    with pytest.raises(FailedPrecondition, match=r"token 4 is stale, 5 has been seen.*remove the file"):
        guard.check(Fence(store_id="s", token=4))


@pytest.mark.parametrize("fence", [Fence(), Fence(token=3), Fence(store_id="s"), Fence(store_id="s" * 129, token=1)])
def test_a_fence_without_store_or_token_is_an_invalid_argument(fence: Fence) -> None:
    with pytest.raises(InvalidArgument, match="fence"):
        FenceGuard().check(fence)
