"""An engine's own calls, to the learner that it pulls weights from and to the engine that it forwards to."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from guarded.servers import idle
from troupe_contracts.errors import Relayed
from troupe_contracts.identity import NOBODY, Identity, assume
from troupe_inference.engines.remote import RemotePolicy
from troupe_inference.transcript import Version
from troupe_inference.weights.manifest import Manifest
from troupe_inference.weights.sources import LearnerSource

NOTHING = Manifest(version=Version("lineage", 1), tensors=())


@pytest.fixture(autouse=True)
def _nobody_afterwards() -> Iterator[None]:
    yield
    assume(NOBODY)


async def test_weights_are_pulled_with_the_engines_token_and_not_without(
    with_tokens: tuple[Path, dict[str, Identity]],
) -> None:
    known, holders = with_tokens
    async with idle("learner", {"tokens": known}) as learner:
        for holder, code in (
            ("nobody", grpc.StatusCode.UNAUTHENTICATED),
            ("client", grpc.StatusCode.PERMISSION_DENIED),
        ):
            assume(holders[holder])
            with pytest.raises(Relayed) as caught:
                [each async for each in LearnerSource(learner.target).tensors("policy", NOTHING)]
            assert caught.value.code is code
        assert learner.reached == []
        assume(holders["engine"])
        assert [each async for each in LearnerSource(learner.target).tensors("policy", NOTHING)] == []
        assert learner.reached == ["troupe.v1.Learner/ExportWeights"]


async def test_a_forwarder_shows_its_token_to_the_engine_behind_it(
    with_tokens: tuple[Path, dict[str, Identity]],
) -> None:
    known, holders = with_tokens
    async with idle("executor", {"tokens": known}) as executor:
        for holder in ("nobody", "engine"):
            assume(holders[holder])
            forwarder = RemotePolicy(executor.target, "designer-0", turn_seconds=10)
            if holder == "nobody":
                with pytest.raises(Relayed) as caught:
                    await forwarder.describe()
                assert caught.value.code is grpc.StatusCode.UNAUTHENTICATED
            else:
                assert (await forwarder.describe()).owner == executor.target
            await forwarder.close()
