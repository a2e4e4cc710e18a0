"""A policy with token access: a renderer and an engine in this process.

The reply's tokens are what the engine returned, appended to what was rendered for the new messages. A
conversation never grows beyond `context_length - 1` tokens, so that every one of them can be scored by the
engine that made it (scoring takes one token more).
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from troupe.v1 import policy_pb2
from troupe_contracts.errors import Exhausted, FailedPrecondition, InvalidArgument, Unavailable

from troupe_inference import exported, wire
from troupe_inference.engines.base import Engine, EngineStoppedError, Generation, Sampling
from troupe_inference.renderers import Renderer
from troupe_inference.sampling_checks import check_sampling
from troupe_inference.transcript import Generated, Message, Role, StopReason, Transcript, Version
from troupe_inference.turns import Reply, Turn, TurnSampling, check_messages

# A text longer than this is tokenised off the event loop.
_LONG_TEXT_CHARACTERS: Final = 20_000
_RETRY_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class Identity:
    """What a replica says of itself that does not change."""

    policy_id: str
    replica_id: str
    model: str
    tokenizer_digest: str
    chat_template_digest: str
    architecture_digest: str


@dataclass(frozen=True, slots=True)
class Serving:
    """Whether and what a replica serves now."""

    # None while nothing is known to be loaded.
    version: Version | None
    state: policy_pb2.UpdateState.ValueType
    # Why it does not generate now, empty if it does, and what is to be done.
    obstacle: str = ""


class TokenPolicy:
    """Implements `turns.Policy`.

    Args: serving: tells what is served at this moment; weight updates change it. max_queued: generations
    beyond the engine's capacity that may wait. max_token_characters: length of the vocabulary's longest
    token, which bounds tokens from below by characters.
    """

    def __init__(
        self,
        identity: Identity,
        renderer: Renderer,
        engine: Engine,
        serving: Callable[[], Serving],
        *,
        max_queued: int,
        max_token_characters: int,
    ) -> None:
        self._identity = identity
        self._renderer = renderer
        self._engine = engine
        self._serving = serving
        self._max_in_flight = engine.info.capacity + max_queued
        self._in_flight = 0
        exported.CAPACITY.labels(identity.policy_id).set(engine.info.capacity)
        # Unicode normalisation shortens a text to no less than a third.
        self._max_characters = engine.info.context_length * max_token_characters * 3

    async def continue_turn(self, turn: Turn) -> Reply:
        check_sampling(turn.sampling, self._engine.info.context_length)
        check_messages(turn.transcript, turn.messages)
        self._check_tokens(turn.transcript)
        version = self._check_version(turn.version)
        if self._in_flight >= self._max_in_flight:
            raise Exhausted(
                f"{self._in_flight} generations are running or waiting, the limit is {self._max_in_flight}",
                _RETRY_SECONDS,
            )
        self._note_in_flight(1)
        try:
            return await self._generate(turn, version)
        except EngineStoppedError as error:
            raise Unavailable(str(error)) from error
        finally:
            self._note_in_flight(-1)

    async def describe(self) -> policy_pb2.PolicyInfo:
        identity, info, serving = self._identity, self._engine.info, self._serving()
        return policy_pb2.PolicyInfo(
            policy_id=identity.policy_id,
            replica_id=identity.replica_id,
            version=None if serving.version is None else wire.version_to_proto(serving.version),
            state=serving.state,
            model=identity.model,
            tokenizer_digest=identity.tokenizer_digest,
            chat_template_digest=identity.chat_template_digest,
            architecture_digest=identity.architecture_digest,
            context_length=info.context_length,
            vocabulary_size=info.vocabulary_size,
            returns_tokens=True,
            accepts_updates=True,
            capacity=info.capacity,
            in_flight=self._in_flight,
            engine=info.description,
            renderer=self._renderer.name,
        )

    async def close(self) -> None:
        await self._engine.close()

    def _note_in_flight(self, change: int) -> None:
        self._in_flight += change
        exported.IN_FLIGHT.labels(self._identity.policy_id).set(self._in_flight)

    def _check_tokens(self, transcript: Transcript) -> None:
        token_ids = transcript.token_ids
        if not token_ids:
            if transcript.messages:
                raise InvalidArgument(
                    "transcript.token_ids",
                    "is empty, transcript.messages is not: send the transcript as it was returned",
                )
            return
        if max(token_ids) >= self._engine.info.vocabulary_size:
            raise InvalidArgument(
                "transcript.token_ids",
                f"holds {max(token_ids)}, the vocabulary has {self._engine.info.vocabulary_size} tokens",
            )
        if token_ids[-1] not in self._renderer.stop_token_ids:
            raise InvalidArgument(
                "transcript.token_ids", f"ends in {token_ids[-1]}: a transcript ends in the end of a turn"
            )

    def _check_version(self, wanted: Version | None) -> Version:
        serving = self._serving()
        if serving.version is None:
            raise Unavailable(f"replica {self._identity.replica_id}: {serving.obstacle}")
        if serving.obstacle:
            raise FailedPrecondition(f"replica {self._identity.replica_id}", serving.obstacle)
        if wanted is not None and wanted != serving.version:
            raise FailedPrecondition(
                f"version of policy {self._identity.policy_id}",
                f"{wanted} is asked for, replica {self._identity.replica_id} has loaded {serving.version}: "
                "update the replica, or ask another",
            )
        return serving.version

    async def _generate(self, turn: Turn, version: Version) -> Reply:
        rendered = await self._render(turn)
        before = len(turn.transcript.token_ids)
        # One token for the end-of-turn after a length stop, one that scoring takes.
        room = self._engine.info.context_length - 2 - before - len(rendered or ())
        if rendered is None or room < 1:
            return Reply(Transcript(), "", StopReason.CONTEXT_OVERFLOW, version, before + len(rendered or ()), 0)
        generation = await self._engine.generate(
            [*turn.transcript.token_ids, *rendered],
            _engine_sampling(turn.sampling, room),
            self._renderer.stop_token_ids,
        )
        exported.PROMPTED.labels(self._identity.policy_id).inc(before + len(rendered))
        exported.GENERATED.labels(self._identity.policy_id).inc(len(generation.token_ids))
        text = self._renderer.text(generation.token_ids)
        return Reply(
            self._appended(turn.messages, rendered, generation, version, text),
            text,
            StopReason.END_OF_TURN if generation.stopped else StopReason.LENGTH,
            version,
            prompt_tokens=before + len(rendered),
            generated_tokens=len(generation.token_ids),
        )

    async def _render(self, turn: Turn) -> list[int] | None:
        """Tokens of the new messages, None when they are too long whatever their tokens."""
        characters = sum(len(message.content) for message in turn.messages)
        if characters > self._max_characters:
            return None
        first = not turn.transcript.token_ids
        if characters > _LONG_TEXT_CHARACTERS:
            return await asyncio.to_thread(self._renderer.open_turn, turn.messages, first=first)
        return self._renderer.open_turn(turn.messages, first=first)

    def _appended(
        self, messages: tuple[Message, ...], rendered: list[int], generation: Generation, version: Version, text: str
    ) -> Transcript:
        stop_reason = StopReason.END_OF_TURN if generation.stopped else StopReason.LENGTH
        generated = Generated(version, tuple(generation.log_probs), stop_reason)
        appended = Transcript.inserted(rendered).appended(Transcript.sampled(generation.token_ids, generated))
        if not generation.stopped:
            appended = appended.appended(Transcript.inserted(self._renderer.close_turn()))
        return Transcript(appended.token_ids, appended.runs, (*messages, Message(Role.ASSISTANT, text)))


def _engine_sampling(sampling: TurnSampling, room: int) -> Sampling:
    return Sampling(
        temperature=sampling.temperature,
        max_tokens=min(sampling.max_tokens or room, room),
        seed=sampling.seed,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
    )
