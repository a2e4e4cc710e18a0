"""Specs as messages, and messages as parts of a status."""

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from troupe.v1 import common_pb2, evaluation_pb2, training_pb2
from troupe_contracts.errors import InvalidArgument
from troupe_orchestrator.custom_resources.messages import enum_words, fields_of, message_of
from troupe_orchestrator.custom_resources.refusals import refusal_of

EvalMode = evaluation_pb2.EvalMode.DESCRIPTOR


def test_words_of_an_enum_are_without_its_name() -> None:
    assert enum_words(EvalMode) == {
        "System": "EVAL_MODE_SYSTEM",
        "SingleAgent": "EVAL_MODE_SINGLE_AGENT",
        "Majority": "EVAL_MODE_MAJORITY",
        "FixedWorkflow": "EVAL_MODE_FIXED_WORKFLOW",
        "StoredDesigns": "EVAL_MODE_STORED_DESIGNS",
    }


def test_a_spec_is_read_by_json_names_and_words() -> None:
    spec = {"mode": "Majority", "votes": 3, "sampling": {"temperature": 0, "maxTokens": 5, "topP": 0.5}}
    request = message_of(spec, evaluation_pb2.CreateEvalJobRequest())
    assert request == evaluation_pb2.CreateEvalJobRequest(
        mode=evaluation_pb2.EVAL_MODE_MAJORITY,
        votes=3,
        sampling=common_pb2.Sampling(temperature=0.0, max_tokens=5, top_p=0.5),
    )


@pytest.mark.parametrize(
    "spec", [{"no": 1}, {"votes": -1}, {"votes": "many"}, {"sampling": 3}, {"mode": 2}, {"sampling": {"seed": 1.5}}]
)
def test_what_no_message_can_hold_is_refused(spec: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument):
        message_of(spec, evaluation_pb2.CreateEvalJobRequest())


def test_a_status_has_numbers_as_numbers_and_times_as_kubernetes_has_them() -> None:
    run = training_pb2.Run(committed_steps=2**40, create_time=Timestamp(seconds=1, nanos=5))
    found = fields_of(run, ("run_id", "committed_steps", "create_time", "end_time", "state"))
    assert found == {"runId": "", "committedSteps": 2**40, "createTime": "1970-01-01T00:00:01Z", "state": ""}


def test_what_is_no_number_is_left_out() -> None:
    assert "success" not in fields_of(evaluation_pb2.EvalSummary(success=float("nan")), ("success", "coverage"))


def test_a_refusal_names_fields_as_the_spec_has_them() -> None:
    error = InvalidArgument.every([("config.rollout.designs", "is 0"), ("target.checkpoint.run_id", "is empty")])
    said = refusal_of(error)
    assert said.reason == "InvalidSpec"
    assert said.message.startswith("spec.config.rollout.designs: is 0; spec.target.checkpoint.runId: is empty; mend it")
