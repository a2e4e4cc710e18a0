"""An executor with the engine of a plug-in: a process, told by TROUPE_ENGINE."""

import math
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from troupe.v1 import common_pb2, policy_pb2, policy_pb2_grpc


def settings(model: Path) -> dict[str, str]:
    return {
        "TROUPE_ENGINE": "uniform",
        "TROUPE_MODEL": str(model),
        "TROUPE_LINEAGE": "start",
        "TROUPE_REPLICA_ID": "executor-0",
        "TROUPE_CONTEXT_LENGTH": "128",
    }


def test_an_executor_serves_the_engine_that_its_setting_names(examples: Path, tiny_model, start_service) -> None:
    service = start_service("executor", ["-m", "troupe_executor"], settings(tiny_model(True)))()
    with grpc.insecure_channel(service.target) as channel:
        stub = policy_pb2_grpc.PolicyStub(channel)
        described = stub.GetPolicy(policy_pb2.GetPolicyRequest())
        request = policy_pb2.GenerateRequest(
            conversation_id="c",
            messages=[common_pb2.ChatMessage(role=common_pb2.MESSAGE_ROLE_USER, content="Hi")],
            sampling=common_pb2.Sampling(temperature=1.0, max_tokens=8, seed=3),
        )
        response = stub.Generate(request)
    assert described.engine == "uniform"
    generated = next(run for run in response.appended.runs if run.log_probs)
    assert list(generated.log_probs) == pytest.approx([-math.log(described.vocabulary_size)] * len(generated.log_probs))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"TROUPE_ENGINE": "other"}, "no engine is named 'other'; known: openai, remote, vllm, uniform (of troupe-ex"),
        ({"TROUPE_REMOTE_TARGET": "h:1"}, "TROUPE_ENGINE=uniform does not read TROUPE_REMOTE_TARGET"),
        ({"TROUPE_LINEAGE": ""}, "TROUPE_ENGINE=uniform needs TROUPE_LINEAGE"),
    ],
)
def test_settings_that_do_not_fit_the_engine_end_the_start(
    examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, str], message: str
) -> None:
    for name, value in (settings(tmp_path) | change).items():
        monkeypatch.setenv(name, value)
    ended = subprocess.run([sys.executable, "-m", "troupe_executor"], capture_output=True, text=True, timeout=60)
    assert ended.returncode != 0
    assert message in " ".join(ended.stderr.split())
