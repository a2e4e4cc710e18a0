"""What `troupe eval --of` understands."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from troupe.v1 import evaluation_pb2
from troupe_client.eval_target import describe_target, parse_target

Checkpoint, Endpoint = evaluation_pb2.CheckpointTarget, evaluation_pb2.EndpointTarget


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("current", evaluation_pb2.EvalTarget(current=evaluation_pb2.CurrentTarget())),
        ("checkpoint:run-1@30", evaluation_pb2.EvalTarget(checkpoint=Checkpoint(run_id="run-1", step=30))),
        ("checkpoint:run-1@best", evaluation_pb2.EvalTarget(checkpoint=Checkpoint(run_id="run-1", best=True))),
        ("checkpoint:run-1@start", evaluation_pb2.EvalTarget(checkpoint=Checkpoint(run_id="run-1", start=True))),
        ("weights:policy=/a/b", evaluation_pb2.EvalTarget(checkpoint=Checkpoint(uris={"policy": "/a/b"}))),
        ("endpoint:10.0.0.1:4100", evaluation_pb2.EvalTarget(endpoint=Endpoint(executor="10.0.0.1:4100"))),
        ("endpoint:designer=a:1", evaluation_pb2.EvalTarget(endpoint=Endpoint(designer="a:1"))),
    ],
)
def test_a_target_is_read_from_its_text(text: str, target: evaluation_pb2.EvalTarget) -> None:
    assert parse_target(text) == target


@pytest.mark.parametrize(
    "text",
    ["", "now", "current:x", "checkpoint:run", "checkpoint:run@first", "checkpoint:@1", "weights:/a", "endpoint:"],
)
def test_anything_else_is_refused_with_the_forms_there_are(text: str) -> None:
    with pytest.raises(ValueError, match="checkpoint:RUN@best"):
        parse_target(text)


names = st.text(st.characters(categories=["Ll", "Nd"], max_codepoint=127), min_size=1)


@given(st.dictionaries(names, names, min_size=1))
def test_what_is_described_is_what_was_read(uris: dict[str, str]) -> None:
    target = evaluation_pb2.EvalTarget(checkpoint=Checkpoint(uris=uris))
    assert parse_target(describe_target(target)) == target
