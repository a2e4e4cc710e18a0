"""A model behind an OpenAI-compatible endpoint, for evaluation and solving only: it gives text, no tokens.

The conversation is sent as text (`transcript.messages`). A tool's result is sent as a user's message, since
such endpoints accept the role `tool` only for calls made in their own format. Rate limits (429) and server
errors are retried with growing delays, or those that the endpoint asks for, and then become
RESOURCE_EXHAUSTED and UNAVAILABLE.
"""

import asyncio
import json
from dataclasses import dataclass
from typing import Any, Final

import httpx
from troupe.v1 import policy_pb2
from troupe_contracts.errors import Exhausted, FailedPrecondition, InvalidArgument, ServiceError, Unavailable

from troupe_inference import wire
from troupe_inference.sampling_checks import check_sampling
from troupe_inference.transcript import Message, Role, StopReason, Transcript, Version
from troupe_inference.turns import Reply, Turn, check_messages

_ROLES: Final = {Role.SYSTEM: "system", Role.USER: "user", Role.ASSISTANT: "assistant", Role.TOOL: "user"}
_FIRST_DELAY_SECONDS: Final = 0.5
_LONGEST_DELAY_SECONDS: Final = 30.0
_RATE_LIMITED: Final = 429
_OVERFLOW_CODE: Final = "context_length_exceeded"


@dataclass(frozen=True, slots=True)
class EndpointSettings:
    """Where a hosted model is, and how to ask it."""

    policy_id: str
    replica_id: str
    # Up to and without /chat/completions, such as "https://host/v1".
    base_url: str
    model: str
    context_length: int
    # None for an endpoint that wants none.
    key: str | None = None
    # Requests that run at once; more wait.
    max_concurrent: int = 32
    max_queued: int = 1024
    turn_seconds: float = 300.0
    # Tries of one turn in all, at least 1.
    attempts: int = 4


class OpenAIPolicy:
    """Implements `turns.Policy`."""

    def __init__(self, settings: EndpointSettings, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._settings = settings
        headers = {} if settings.key is None else {"Authorization": f"Bearer {settings.key}"}
        self._client = httpx.AsyncClient(
            base_url=settings.base_url.rstrip("/") + "/",
            headers=headers,
            timeout=settings.turn_seconds,
            limits=httpx.Limits(max_connections=settings.max_concurrent),
            transport=transport,
        )
        self._slots = asyncio.Semaphore(settings.max_concurrent)
        self._version = Version(f"endpoint/{settings.model}", 0)
        self._in_flight = 0

    async def continue_turn(self, turn: Turn) -> Reply:
        settings = self._settings
        if turn.sampling.training:
            raise InvalidArgument("sampling.training", f"is set, {self._name} gives no tokens to train on")
        if turn.sampling.top_k is not None:
            raise InvalidArgument("sampling.top_k", f"is set, {self._name} has no such setting: leave it unset")
        check_sampling(turn.sampling, settings.context_length)
        check_messages(turn.transcript, turn.messages)
        if turn.version is not None and turn.version != self._version:
            raise FailedPrecondition(
                f"version of policy {settings.policy_id}", f"{turn.version} is asked for, {self._version} is served"
            )
        if self._in_flight >= settings.max_concurrent + settings.max_queued:
            raise Exhausted(f"{self._in_flight} requests to {self._name} run or wait", _FIRST_DELAY_SECONDS)
        self._in_flight += 1
        try:
            async with self._slots:
                response = await self._post(_body(turn, settings.model))
        finally:
            self._in_flight -= 1
        return self._reply(turn, response)

    async def describe(self) -> policy_pb2.PolicyInfo:
        settings = self._settings
        return policy_pb2.PolicyInfo(
            policy_id=settings.policy_id,
            replica_id=settings.replica_id,
            version=wire.version_to_proto(self._version),
            state=policy_pb2.UPDATE_STATE_SERVING,
            model=settings.model,
            context_length=settings.context_length,
            returns_tokens=False,
            accepts_updates=False,
            capacity=settings.max_concurrent,
            in_flight=self._in_flight,
            engine=f"OpenAI-compatible endpoint {settings.base_url}",
        )

    async def close(self) -> None:
        await self._client.aclose()

    @property
    def _name(self) -> str:
        return f"the endpoint {self._settings.base_url}"

    async def _post(self, body: dict[str, Any]) -> httpx.Response:
        delay = _FIRST_DELAY_SECONDS
        for attempt in range(1, self._settings.attempts + 1):
            try:
                response = await self._client.post("chat/completions", json=body)
            except httpx.TransportError as error:
                problem: ServiceError = Unavailable(f"{self._name}: {type(error).__name__}: {error}")
            else:
                if response.status_code != _RATE_LIMITED and response.status_code < 500:
                    return response
                delay = _asked_delay(response) or delay
                problem = self._overload(response, delay)
            if attempt == self._settings.attempts:
                raise problem
            await asyncio.sleep(min(delay, _LONGEST_DELAY_SECONDS))
            delay *= 2
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _overload(self, response: httpx.Response, delay: float) -> ServiceError:
        text = f"{self._name} answers {response.status_code}: {response.text[:500]}"
        return Exhausted(text, delay) if response.status_code == _RATE_LIMITED else Unavailable(text)

    def _reply(self, turn: Turn, response: httpx.Response) -> Reply:
        if response.is_error:
            if _OVERFLOW_CODE in response.text:
                return Reply(Transcript(), "", StopReason.CONTEXT_OVERFLOW, self._version, 0, 0)
            raise FailedPrecondition(
                self._name, f"answers {response.status_code}: {response.text[:500]}; check model, key and request"
            )
        try:
            answer = response.json()
            choice = answer["choices"][0]
            text = choice["message"]["content"] or ""
            usage = answer.get("usage") or {}
            counts = (int(usage.get("prompt_tokens", 0)), int(usage.get("completion_tokens", 0)))
        except (json.JSONDecodeError, KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            raise Unavailable(f"{self._name} answers what is no chat completion: {response.text[:500]}") from error
        stop_reason = StopReason.LENGTH if choice.get("finish_reason") == "length" else StopReason.END_OF_TURN
        appended = Transcript(messages=(*turn.messages, Message(Role.ASSISTANT, text)))
        return Reply(appended, text, stop_reason, self._version, *counts)


def _body(turn: Turn, model: str) -> dict[str, Any]:
    sampling = turn.sampling
    optional = {
        "max_tokens": sampling.max_tokens or None,
        "seed": sampling.seed,
        "top_p": sampling.top_p,
    }
    messages = (*turn.transcript.messages, *turn.messages)
    return {
        "model": model,
        "messages": [{"role": _ROLES[message.role], "content": message.content} for message in messages],
        "temperature": sampling.temperature,
        **{name: value for name, value in optional.items() if value is not None},
    }


def _asked_delay(response: httpx.Response) -> float | None:
    header = response.headers.get("retry-after", "")
    return float(header) if header.replace(".", "", 1).isdigit() else None
