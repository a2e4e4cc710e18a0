"""Stand-ins for the designer and the executor: scripted, without a model.

They keep the contracts of `Designer` and `Policy`, versions and token transcripts among them. Token ids are the bytes of
the text, every log-probability is -0.5.
"""

import inspect
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from troupe.v1 import (
    common_pb2,
    designer_pb2,
    designer_pb2_grpc,
    policy_pb2,
    policy_pb2_grpc,
    transcript_pb2,
)
from troupe_contracts.calls import Context
from troupe_contracts.errors import FailedPrecondition, InvalidArgument

# Plays every agent; may raise a ServiceError, or wait.
Reply = Callable[[policy_pb2.GenerateRequest], str | Awaitable[str]]
# What a designer writes; a function of the request where that has a say in it.
Script = str | designer_pb2.Design | Callable[[designer_pb2.ProposeDesignsRequest], str]

SINGLE = """
from workflow import AgentNode, Workflow
flow = Workflow()
flow.add_node(AgentNode("Solver", "Solve it."))
flow.run(question)
"""
GUESS = SINGLE.replace("Solve it.", "Guess.")
RIGHT = r"<delivery>\boxed{42}</delivery>"
WRONG = r"<delivery>\boxed{41}</delivery>"
POLICY_ID = "scripted"


def right_unless_guessed(request: policy_pb2.GenerateRequest) -> str:
    """Right for SINGLE and wrong for GUESS, so that a group of both differs and there is something to learn."""
    guessed = any("Guess." in m.content for m in request.messages if m.role == common_pb2.MESSAGE_ROLE_SYSTEM)
    return WRONG if guessed else RIGHT


@dataclass
class Weights:
    """Which version the stand-ins serve, and the update under way."""

    version: common_pb2.PolicyVersion = field(
        default_factory=lambda: common_pb2.PolicyVersion(lineage="start", number=0)
    )
    tokenizer_digest: str = "t" * 64
    chat_template_digest: str = ""
    architecture_digest: str = "a" * 64
    begun: policy_pb2.WeightManifest | None = None
    begins: list[policy_pb2.BeginUpdateRequest] = field(default_factory=list)
    committed: list[int] = field(default_factory=list)


class StandInPolicy(policy_pb2_grpc.PolicyServicer):
    """Continues conversations by rule."""

    def __init__(self, weights: Weights, policy_id: str = POLICY_ID) -> None:
        self.weights = weights
        self.policy_id = policy_id
        self.reply: Reply = right_unless_guessed
        self.requests: list[policy_pb2.GenerateRequest] = []
        self.probe_bounds: list[float] = []
        """Of every CommitUpdate."""

    async def Generate(self, request: policy_pb2.GenerateRequest, context: Context) -> policy_pb2.GenerateResponse:
        if request.HasField("version") and request.version != self.weights.version:
            raise FailedPrecondition("version", f"{self.weights.version} is loaded, not {request.version}")
        self.requests.append(request)
        answer = self.reply(request)
        text = await answer if inspect.isawaitable(answer) else answer
        appended = transcript(list(request.messages), text, self.weights.version)
        return policy_pb2.GenerateResponse(
            appended=appended,
            text=text,
            stop_reason=transcript_pb2.STOP_REASON_END_OF_TURN,
            version=self.weights.version,
            generated_tokens=appended.runs[-1].length,
        )

    async def GetPolicy(self, request: policy_pb2.GetPolicyRequest, context: Context) -> policy_pb2.PolicyInfo:
        return policy_pb2.PolicyInfo(
            policy_id=self.policy_id,
            replica_id="stand-in",
            version=self.weights.version,
            state=policy_pb2.UPDATE_STATE_SERVING,
            model="no model",
            tokenizer_digest=self.weights.tokenizer_digest,
            chat_template_digest=self.weights.chat_template_digest,
            architecture_digest=self.weights.architecture_digest,
            returns_tokens=True,
            vocabulary_size=256,
            context_length=1 << 20,
            accepts_updates=True,
        )

    async def BeginUpdate(
        self, request: policy_pb2.BeginUpdateRequest, context: Context
    ) -> policy_pb2.BeginUpdateResponse:
        self.weights.begun = request.manifest
        self.weights.begins.append(request)
        return policy_pb2.BeginUpdateResponse()

    async def StageWeights(
        self, request: policy_pb2.StageWeightsRequest, context: Context
    ) -> policy_pb2.StageWeightsResponse:
        return policy_pb2.StageWeightsResponse()

    async def CommitUpdate(
        self, request: policy_pb2.CommitUpdateRequest, context: Context
    ) -> policy_pb2.CommitUpdateResponse:
        assert self.weights.begun is not None
        self.probe_bounds.append(request.probe_bound)
        self.weights.version = self.weights.begun.version
        self.weights.committed.append(self.weights.version.number)
        return policy_pb2.CommitUpdateResponse(version=self.weights.version)

    async def AbortUpdate(
        self, request: policy_pb2.AbortUpdateRequest, context: Context
    ) -> policy_pb2.AbortUpdateResponse:
        return policy_pb2.AbortUpdateResponse()


class StandInDesigner(designer_pb2_grpc.DesignerServicer):
    """Gives the scripts that a test wrote down for a question, design by design and call by call, from the first again at
    the end; for an empty list none.
    """

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.scripts: dict[str, list[Script]] = {}
        self.otherwise: list[Script] = [SINGLE, GUESS]
        self.requests: list[designer_pb2.ProposeDesignsRequest] = []
        self.before_next: Callable[[], Awaitable[object]] | None = None
        """Awaited before every design of a task but the first."""
        self._given: Counter[str] = Counter()

    def begin_again(self) -> None:
        """Forget what was asked and given."""
        self.requests.clear()
        self._given.clear()

    async def ProposeDesigns(
        self, request: designer_pb2.ProposeDesignsRequest, context: Context
    ) -> AsyncIterator[designer_pb2.ProposeDesignsResponse]:
        if request.HasField("version") and request.version != self.weights.version:
            raise FailedPrecondition("version", f"{self.weights.version} is loaded, not {request.version}")
        if not request.design_ids:
            raise InvalidArgument("design_ids", "is empty")
        self.requests.append(request)
        scripts = self.scripts.get(request.question, self.otherwise)
        if not scripts:
            return
        for number, design_id in enumerate(request.design_ids):
            if number and self.before_next is not None:
                await self.before_next()
            chosen = scripts[self._given[request.question] % len(scripts)]
            self._given[request.question] += 1
            if callable(chosen):
                chosen = chosen(request)
            design = designer_pb2.Design()
            if isinstance(chosen, designer_pb2.Design):
                design.CopyFrom(chosen)
            else:
                design.script = design.text = chosen
            design.design_id = design_id
            asked = common_pb2.ChatMessage(role=common_pb2.MESSAGE_ROLE_USER, content=request.question)
            design.transcript.CopyFrom(transcript([asked], design.text[:1000] or "-", self.weights.version))
            yield designer_pb2.ProposeDesignsResponse(design=design)


def transcript(
    messages: list[common_pb2.ChatMessage], reply: str, version: common_pb2.PolicyVersion
) -> transcript_pb2.Transcript:
    """What one generation appends: the messages as inserted bytes, the reply as generated ones."""
    inserted = "".join(message.content for message in messages).encode() or b" "
    generated = reply.encode() or b" "
    return transcript_pb2.Transcript(
        token_ids=[*inserted, *generated],
        runs=[
            transcript_pb2.TokenRun(kind=transcript_pb2.TOKEN_RUN_KIND_INSERTED, length=len(inserted)),
            transcript_pb2.TokenRun(
                kind=transcript_pb2.TOKEN_RUN_KIND_GENERATED,
                length=len(generated),
                version=version,
                log_probs=[-0.5] * len(generated),
                stop_reason=transcript_pb2.STOP_REASON_END_OF_TURN,
            ),
        ],
        messages=[*messages, common_pb2.ChatMessage(role=common_pb2.MESSAGE_ROLE_ASSISTANT, content=reply)],
    )


def question_of(request: policy_pb2.GenerateRequest) -> str:
    """What the agent's user messages say."""
    return "\n".join(m.content for m in request.messages if m.role == common_pb2.MESSAGE_ROLE_USER)
