"""States in which a good request succeeds: what is done before fuzzed ones, and the good ones that fit.

A fuzzed request may change the state, so it is made again for every round of calls. Fences have the highest token that there
is: a fuzzed one makes none of them stale.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError, Message
from troupe.v1 import (
    common_pb2,
    evaluation_pb2,
    evaluation_pb2_grpc,
    learner_pb2,
    learner_pb2_grpc,
    policy_pb2,
    policy_pb2_grpc,
    training_pb2,
    training_pb2_grpc,
)
from troupe_contracts.batch import digest
from troupe_contracts.wire import CHANNEL_OPTIONS

ROUND: Final = 20
"""Calls that find one state."""
ROUND_OF_MANY: Final = 100
"""The same, where there are thousands."""
FENCE: Final = common_pb2.Fence(store_id="store", token=2**64 - 1)
_POLICY: Final = "p1"
_TOKENS: Final = 8
_SEQUENCE: Final = learner_pb2.Sequence(
    id="conversation",
    token_ids=range(1, _TOKENS + 1),
    weights=[0.0] + [1 / (_TOKENS - 1)] * (_TOKENS - 1),
    advantages=[1.0] * _TOKENS,
    behaviour_log_probs=[0.0] + [-1.0] * (_TOKENS - 1),
)
_DIGEST: Final = digest([_SEQUENCE])
_CHUNK: Final = learner_pb2.SubmitBatchRequest(chunk=learner_pb2.SequenceChunk(sequences=[_SEQUENCE]))
_OPTIMIZATION: Final = learner_pb2.Optimization(
    learning_rate=1e-3, mini_batches=1, clip_low=0.2, clip_high=0.28, max_grad_norm=1.0
)
_SECONDS: Final = 120.0
_JOB: Final = evaluation_pb2.CreateEvalJobRequest(
    dataset_name="held.jsonl",
    dataset=b'{"id": "a", "task_type": "math", "question": "q", "answer": "1"}\n',
    samples=1,
    sampling=common_pb2.Sampling(temperature=1.0, max_tokens=8, seed=1),
)
_DESIGN: Final = (
    'from workflow import AgentNode, Workflow\nw = Workflow()\nw.add_node(AgentNode("A", "Solve."))\nw.run(question)\n'
)
_RUN: Final = """
dataset: {{train: {tasks}}}
steps: 100000
stages: [{{train: both, steps: 1}}]
rollout: {{tasks_per_step: 1, designs: 2, executions: 1}}
sampling: {{designer: {{max_tokens: 8}}, executor: {{max_tokens: 8}}}}
checkpoint: {{every: 100000, keep: 1}}
# The engine samples every token with the same probability.
conditions: {{mismatch_kl_above: null, valid_scripts_below: null, zero_variance_above: null}}
"""
_OF_A_RUN: Final[Mapping[str, Callable[..., Message]]] = {
    "GetRun": training_pb2.GetRunRequest,
    "WatchRun": training_pb2.WatchRunRequest,
    "PauseRun": training_pb2.PauseRunRequest,
    "CancelRun": training_pb2.CancelRunRequest,
}
_STANDING: Final = frozenset({training_pb2.RUN_STATE_RUNNING, training_pb2.RUN_STATE_QUEUED})
_OF_A_JOB: Final[Mapping[str, Callable[..., Message]]] = {
    "GetEvalJob": evaluation_pb2.GetEvalJobRequest,
    "WatchEvalJob": evaluation_pb2.WatchEvalJobRequest,
    "ListEvalItems": evaluation_pb2.ListEvalItemsRequest,
    "CancelEvalJob": evaluation_pb2.CancelEvalJobRequest,
}


@dataclass(frozen=True)
class Found:
    """What the calls of a round begin with."""

    good: Sequence[Message]
    opening: Message | None = None
    """What a stream of requests has to begin with; the good ones then follow it."""


@dataclass
class States:
    """Learner, executor, runs and eval jobs, brought to a state for each round."""

    targets: Callable[[str], str]
    folder: Path
    _channels: dict[str, grpc.Channel] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._makers: Mapping[str, Callable[[int], Found]] = {
            "learner troupe.v1.Learner/SubmitBatch": self._to_submit,
            "learner troupe.v1.Learner/TrainStep": self._to_train,
            "learner troupe.v1.Learner/WatchOperation": self._to_watch,
            "learner troupe.v1.Learner/ExportWeights": self._to_export,
            "learner troupe.v1.Learner/SaveCheckpoint": self._to_save,
            "learner troupe.v1.Learner/RestoreCheckpoint": self._to_restore,
            "learner troupe.v1.Learner/BindRun": self._to_bind,
            "executor troupe.v1.Policy/BeginUpdate": self._to_begin,
            "executor troupe.v1.Policy/StageWeights": self._to_stage,
            "executor troupe.v1.Policy/CommitUpdate": self._to_commit,
            "executor troupe.v1.Policy/AbortUpdate": self._to_abort,
            **{
                f"orchestrator troupe.v1.Evaluation/{name}": partial(self._of_a_job, kind)
                for name, kind in _OF_A_JOB.items()
            },
            **{
                f"orchestrator troupe.v1.Training/{name}": partial(self._of_a_run, kind)
                for name, kind in _OF_A_RUN.items()
            },
            "orchestrator troupe.v1.Training/CreateRun": self._to_create,
            "orchestrator troupe.v1.Training/PlanRun": self._to_plan,
            "orchestrator troupe.v1.Training/ForkRun": self._to_fork,
            "orchestrator troupe.v1.Training/ResumeRun": self._to_resume,
            "orchestrator troupe.v1.Training/ListRuns": self._to_list,
            "orchestrator troupe.v1.Training/GetExecution": self._to_trace,
        }
        self._updates: set[str] = set()

    def close(self) -> None:
        for channel in self._channels.values():
            channel.close()

    def has(self, service: str, method: str) -> bool:
        """Whether good requests of a method need a state."""
        return f"{service} {method}" in self._makers

    def found(self, service: str, method: str, number: int) -> Found:
        """The state of a round, made anew."""
        self.leave(service)
        return self._makers[f"{service} {method}"](number)

    def leave(self, service: str, sent: Sequence[bytes] = ()) -> None:
        """Ends what a round has left: it was carried out, and nothing in the service was lost with it.

        Args:
            sent: the requests of the round, of BeginUpdate.
        """
        if service == "learner":
            self._settled()
        elif service == "executor":
            self._close_updates(sent)
        elif service == "orchestrator":
            self._cancel_runs()

    # --- learner ----------------------------------------------------------------------------------------------------

    @property
    def _learner(self) -> learner_pb2_grpc.LearnerStub:
        return learner_pb2_grpc.LearnerStub(self._channel("learner"))

    def _to_submit(self, number: int) -> Found:
        self._bound("fuzz-submit")
        return Found([_CHUNK, self._header("fuzz-submit")], self._header("fuzz-submit"))

    def _to_train(self, number: int) -> Found:
        return Found([self._step_of(f"fuzz-train-{number}")])

    def _to_watch(self, number: int) -> Found:
        operation = self._learner.TrainStep(self._step_of(f"fuzz-watch-{number}"), timeout=_SECONDS)
        return Found([learner_pb2.WatchOperationRequest(name=operation.name)])

    def _to_export(self, number: int) -> Found:
        version = self._settled().version
        return Found([learner_pb2.ExportWeightsRequest(policy_id=_POLICY, version=version)])

    def _to_save(self, number: int) -> Found:
        self._bound("fuzz-save")
        place = self.folder / "saved"
        shutil.rmtree(place, ignore_errors=True)
        request = learner_pb2.SaveCheckpointRequest(fence=FENCE, policy_id=_POLICY, uri=str(place), run_id="fuzz-save")
        return Found([request])

    def _to_restore(self, number: int) -> Found:
        uri = self._checkpoint()
        return Found([learner_pb2.RestoreCheckpointRequest(fence=FENCE, policy_id=_POLICY, uri=uri)])

    def _to_bind(self, number: int) -> Found:
        uris = ("", self._checkpoint())
        run_id = f"fuzz-bind-{number}"
        return Found(
            [learner_pb2.BindRunRequest(fence=FENCE, policy_id=_POLICY, run_id=run_id, uri=uri) for uri in uris]
        )

    def _bound(self, run_id: str) -> None:
        request = learner_pb2.BindRunRequest(fence=FENCE, policy_id=_POLICY, run_id=run_id)
        self._done(self._learner.BindRun(request, timeout=_SECONDS))

    def _step_of(self, run_id: str) -> learner_pb2.TrainStepRequest:
        """The first step of a run, whose batch the learner has."""
        self._bound(run_id)
        self._learner.SubmitBatch(iter([self._header(run_id), _CHUNK]), timeout=_SECONDS)
        return learner_pb2.TrainStepRequest(
            fence=FENCE, run_id=run_id, policy_id=_POLICY, step=1, digest=_DIGEST, optimization=_OPTIMIZATION
        )

    def _header(self, run_id: str) -> learner_pb2.SubmitBatchRequest:
        header = learner_pb2.BatchHeader(
            fence=FENCE, run_id=run_id, policy_id=_POLICY, step=1, digest=_DIGEST, sequence_count=1
        )
        return learner_pb2.SubmitBatchRequest(header=header)

    def _checkpoint(self) -> str:
        """One of this learner, made when it is first asked for."""
        place = self.folder / "checkpoint"
        if not place.exists():
            self._bound("fuzz-checkpoint")
            request = learner_pb2.SaveCheckpointRequest(
                fence=FENCE, policy_id=_POLICY, uri=str(place), run_id="fuzz-checkpoint"
            )
            self._done(self._learner.SaveCheckpoint(request, timeout=_SECONDS))
        return str(place)

    def _settled(self) -> learner_pb2.LearnerInfo:
        """The learner's state once nothing is under way; its first ranks are still there."""
        while (state := self._learner.GetLearner(learner_pb2.GetLearnerRequest(), timeout=_SECONDS)).operation:
            self._ended(state.operation)
        assert (state.state, state.generation) == (learner_pb2.GANG_STATE_READY, 1), state
        return state

    def _done(self, operation: learner_pb2.Operation) -> None:
        ended = self._ended(operation.name)
        assert not ended.HasField("error"), ended

    def _ended(self, name: str) -> learner_pb2.Operation:
        events = self._learner.WatchOperation(learner_pb2.WatchOperationRequest(name=name), timeout=_SECONDS)
        *_, last = events
        return last.operation

    # --- executor ---------------------------------------------------------------------------------------------------

    @property
    def _policy(self) -> policy_pb2_grpc.PolicyStub:
        return policy_pb2_grpc.PolicyStub(self._channel("executor"))

    def _to_begin(self, number: int) -> Found:
        return Found([self._begin(number)])

    def _to_stage(self, number: int) -> Found:
        request = self._begin(number)
        self._policy.BeginUpdate(request, timeout=_SECONDS)
        return Found([policy_pb2.StageWeightsRequest(fence=FENCE, update_id=request.update_id)])

    def _to_commit(self, number: int) -> Found:
        (stage,) = self._to_stage(number).good
        self._policy.StageWeights(stage, timeout=_SECONDS)
        request = policy_pb2.CommitUpdateRequest(fence=FENCE, update_id=stage.update_id)
        probed = policy_pb2.CommitUpdateRequest(
            probes=[policy_pb2.Probe(token_ids=[1, 2, 3], log_probs=[-5.0, -5.0])], probe_bound=0.05
        )
        probed.MergeFrom(request)
        return Found([request, probed])

    def _to_abort(self, number: int) -> Found:
        request = self._begin(number)
        self._policy.BeginUpdate(request, timeout=_SECONDS)
        return Found([policy_pb2.AbortUpdateRequest(fence=FENCE, update_id=request.update_id)])

    def _begin(self, number: int) -> policy_pb2.BeginUpdateRequest:
        """An update to what the learner has."""
        request = learner_pb2.ExportWeightsRequest(policy_id=_POLICY, manifest_only=True)
        (response,) = self._learner.ExportWeights(request, timeout=_SECONDS)
        update_id = f"update-{number}"
        self._updates.add(update_id)
        return policy_pb2.BeginUpdateRequest(
            fence=FENCE,
            update_id=update_id,
            replica_id="executor-0",
            manifest=response.manifest,
            source=policy_pb2.WeightSource(learner_target=self.targets("learner")),
        )

    def _close_updates(self, sent: Sequence[bytes]) -> None:
        """Aborts every update that may be open, and has the replica serve whole weights again."""
        for update_id in self._updates | set(_update_ids(sent)):
            self._aborted(update_id)
        self._updates.clear()
        info = self._policy.GetPolicy(policy_pb2.GetPolicyRequest(), timeout=_SECONDS)
        if info.state == policy_pb2.UPDATE_STATE_BROKEN:
            request = self._begin(-1)
            self._policy.BeginUpdate(request, timeout=_SECONDS)
            named: dict[str, Any] = {"fence": FENCE, "update_id": request.update_id}
            self._policy.StageWeights(policy_pb2.StageWeightsRequest(**named), timeout=_SECONDS)
            self._policy.CommitUpdate(policy_pb2.CommitUpdateRequest(**named), timeout=_SECONDS)
            info = self._policy.GetPolicy(policy_pb2.GetPolicyRequest(), timeout=_SECONDS)
        assert info.state == policy_pb2.UPDATE_STATE_SERVING, info

    def _aborted(self, update_id: str) -> None:
        try:
            self._policy.AbortUpdate(policy_pb2.AbortUpdateRequest(fence=FENCE, update_id=update_id), timeout=_SECONDS)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise

    # --- orchestrator -----------------------------------------------------------------------------------------------

    @property
    def _training(self) -> training_pb2_grpc.TrainingStub:
        return training_pb2_grpc.TrainingStub(self._channel("orchestrator"))

    def _of_a_run(self, kind: Callable[..., Message], number: int) -> Found:
        return Found([kind(run_id=self._run())])

    def _to_create(self, number: int) -> Found:
        return Found([training_pb2.CreateRunRequest(config=self._config())])

    def _to_plan(self, number: int) -> Found:
        return Found([training_pb2.PlanRunRequest(config=self._config())])

    def _to_fork(self, number: int) -> Found:
        parent = self._run()
        self._cancel_runs()
        return Found([training_pb2.ForkRunRequest(parent_run_id=parent)])

    def _to_resume(self, number: int) -> Found:
        run_id = self._run()
        self._training.PauseRun(training_pb2.PauseRunRequest(run_id=run_id), timeout=_SECONDS)
        return Found([training_pb2.ResumeRunRequest(run_id=run_id)])

    def _to_list(self, number: int) -> Found:
        self._run()
        self._cancel_runs()
        self._run()
        first = self._training.ListRuns(training_pb2.ListRunsRequest(page_size=1), timeout=_SECONDS)
        return Found([training_pb2.ListRunsRequest(page_size=1, page_token=first.next_page_token)])

    def _to_trace(self, number: int) -> Found:
        evaluation = evaluation_pb2_grpc.EvaluationStub(self._channel("orchestrator"))
        request = evaluation_pb2.CreateEvalJobRequest(mode=evaluation_pb2.EVAL_MODE_FIXED_WORKFLOW, script=_DESIGN)
        request.MergeFrom(_JOB)
        job = evaluation.CreateEvalJob(request, timeout=_SECONDS)
        for _ in evaluation.WatchEvalJob(evaluation_pb2.WatchEvalJobRequest(job_id=job.job_id), timeout=_SECONDS):
            pass
        listed = evaluation.ListEvalItems(evaluation_pb2.ListEvalItemsRequest(job_id=job.job_id), timeout=_SECONDS)
        return Found([training_pb2.GetExecutionRequest(execution_id=listed.items[0].execution_id)])

    def _run(self) -> str:
        """A run that is under way, of more steps than anybody waits for."""
        request = training_pb2.CreateRunRequest(config=self._config())
        return self._training.CreateRun(request, timeout=_SECONDS).run_id

    def _config(self) -> str:
        tasks = self.folder / "tasks.jsonl"
        tasks.write_bytes(_JOB.dataset)
        return _RUN.format(tasks=tasks)

    def _cancel_runs(self) -> None:
        """Nothing trains any more, and nothing waits to."""
        token = ""
        while True:
            request = training_pb2.ListRunsRequest(page_size=1000, page_token=token)
            page = self._training.ListRuns(request, timeout=_SECONDS)
            for run in page.runs:
                if run.state in _STANDING:
                    self._training.CancelRun(training_pb2.CancelRunRequest(run_id=run.run_id), timeout=_SECONDS)
            if not (token := page.next_page_token):
                return

    def _of_a_job(self, kind: Callable[..., Message], number: int) -> Found:
        job = evaluation_pb2_grpc.EvaluationStub(self._channel("orchestrator")).CreateEvalJob(_JOB, timeout=_SECONDS)
        return Found([kind(job_id=job.job_id)])

    def _channel(self, service: str) -> grpc.Channel:
        if service not in self._channels:
            self._channels[service] = grpc.insecure_channel(self.targets(service), options=CHANNEL_OPTIONS)
        return self._channels[service]


def _update_ids(sent: Sequence[bytes]) -> Iterator[str]:
    """Names of updates that were, perhaps, begun."""
    for each in sent:
        try:
            yield policy_pb2.BeginUpdateRequest.FromString(each).update_id
        except DecodeError:
            continue
