"""What can be read of the current weights: exports and scores."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
from learning.client import Client, refused
from learning.models import BOTH_MODELS
from safetensors.numpy import load_file
from troupe.v1 import common_pb2, learner_pb2

Sequences = list[learner_pb2.Sequence]
MakeSequences = Callable[..., Sequences]
CODE = grpc.StatusCode

pytestmark = BOTH_MODELS


async def test_an_export_is_the_manifest_and_then_exactly_those_bytes(learner: Client) -> None:
    state = await learner.get()
    manifest, found = await learner.weights()
    assert list(found) == [tensor.name for tensor in manifest.tensors]
    for tensor in manifest.tensors:
        assert hashlib.sha256(found[tensor.name]).digest() == tensor.sha256
        assert len(found[tensor.name]) == tensor.byte_size == 4 * np.prod(tensor.shape)
        assert tensor.dtype == "F32"
    stored = load_file(Path(state.model) / "model.safetensors")
    assert {tensor.name: tuple(tensor.shape) for tensor in manifest.tensors} == {
        name: value.shape for name, value in stored.items()
    }
    assert manifest.version == state.version
    assert manifest.tied_embeddings == state.tied_embeddings == ("lm_head.weight" not in found)
    request = learner_pb2.ExportWeightsRequest(
        policy_id="policy", version=common_pb2.PolicyVersion(lineage="other", number=1)
    )
    with refused(CODE.FAILED_PRECONDITION, "other/1", "is not current"):
        async for _ in learner.stub.ExportWeights(request):
            pass
    only = learner_pb2.ExportWeightsRequest(policy_id="policy", manifest_only=True, version=state.version)
    assert [each.WhichOneof("message") async for each in learner.stub.ExportWeights(only)] == ["manifest"]


async def test_scores_are_those_of_the_exported_weights(learner: Client) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    state = await learner.get()
    rows = [[5, 6, 7, 8, 9], [1], list(range(40))]
    request = learner_pb2.ScoreRequest(
        policy_id="policy", sequences=[learner_pb2.ScoreSequence(token_ids=row) for row in rows]
    )
    response = await learner.stub.Score(request)
    manifest, found = await learner.weights()
    model = AutoModelForCausalLM.from_pretrained(state.model, dtype=torch.float32)
    weights = {
        tensor.name: torch.frombuffer(bytearray(found[tensor.name]), dtype=torch.float32).reshape(tuple(tensor.shape))
        for tensor in manifest.tensors
    }
    model.load_state_dict(weights, strict=False)
    model.tie_weights()
    assert response.version == state.version == manifest.version
    for row, scored in zip(rows, response.scores, strict=True):
        ids = torch.tensor([row])
        with torch.no_grad():
            distribution = torch.log_softmax(model(input_ids=ids).logits[0, :-1], -1)
        expected = distribution.gather(1, ids[0, 1:, None]).squeeze(1)
        assert np.allclose(scored.log_probs, expected, atol=2e-5)
        assert np.allclose(scored.entropies, -(distribution.exp() * distribution).sum(-1), atol=2e-5)
