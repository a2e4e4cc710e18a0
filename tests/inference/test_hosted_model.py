"""A hosted model, played by a stub endpoint over real HTTP: text in, text out, overload told."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from troupe_contracts.errors import Exhausted, FailedPrecondition, InvalidArgument, Unavailable
from troupe_inference.engines import openai
from troupe_inference.engines.openai import EndpointSettings, OpenAIPolicy
from troupe_inference.transcript import Message, Role, StopReason, Transcript
from troupe_inference.turns import Turn, TurnSampling

QUESTION = (Message(Role.SYSTEM, "Be terse."), Message(Role.USER, "2 + 2?"))


class StubEndpoint(ThreadingHTTPServer):
    """Answers with what it is told to, in turn; the last answer is repeated."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[tuple[int, object, dict[str, str]]] = []
        self.requests: list[tuple[dict, dict]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.requests.append((dict(self.headers), body))
        answers = self.server.answers
        status, answer, headers = answers.pop(0) if len(answers) > 1 else answers[0]
        content = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {"content-length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        pass


def completion(text, finish_reason="stop") -> dict:
    return {
        "choices": [{"message": {"content": text}, "finish_reason": finish_reason}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 3},
    }


@pytest.fixture
def endpoint():
    server = StubEndpoint()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
async def policy(endpoint, monkeypatch):
    monkeypatch.setattr(openai, "_FIRST_DELAY_SECONDS", 0.01)
    served = OpenAIPolicy(EndpointSettings("p", "r", endpoint.url, "some-model", 4096, key="secret", attempts=3))
    yield served
    await served.close()


def turn(messages=QUESTION, transcript=None, **sampling) -> Turn:
    settings = TurnSampling(**({"temperature": 0.7, "max_tokens": 50} | sampling))
    return Turn("c", transcript or Transcript(), messages, settings)


async def test_a_conversation_goes_as_text_and_comes_back_as_text(endpoint, policy):
    endpoint.answers = [(200, completion("four"), {})]
    first = await policy.continue_turn(turn(seed=4))
    assert first.text == "four"
    assert first.appended.token_ids == ()
    assert (first.prompt_tokens, first.generated_tokens) == (9, 3)
    headers, body = endpoint.requests[0]
    assert headers["Authorization"] == "Bearer secret"
    assert body == {
        "model": "some-model",
        "messages": [{"role": "system", "content": "Be terse."}, {"role": "user", "content": "2 + 2?"}],
        "temperature": 0.7,
        "max_tokens": 50,
        "seed": 4,
    }
    await policy.continue_turn(turn((Message(Role.TOOL, "ok"),), first.appended))
    roles = [message["role"] for message in endpoint.requests[1][1]["messages"]]
    assert roles == ["system", "user", "assistant", "user"]


async def test_a_length_stop_is_told(endpoint, policy):
    endpoint.answers = [(200, completion("fo", "length"), {})]
    assert (await policy.continue_turn(turn())).stop_reason is StopReason.LENGTH


async def test_a_context_that_is_too_small_is_an_overflow(endpoint, policy):
    endpoint.answers = [(400, {"error": {"code": "context_length_exceeded"}}, {})]
    reply = await policy.continue_turn(turn())
    assert reply.stop_reason is StopReason.CONTEXT_OVERFLOW
    assert reply.appended == Transcript()


async def test_overload_is_waited_out(endpoint, policy):
    endpoint.answers = [(429, "slow down", {"retry-after": "0.01"}), (503, "", {}), (200, completion("4"), {})]
    assert (await policy.continue_turn(turn())).text == "4"
    assert len(endpoint.requests) == 3


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ((429, "slow down", {"retry-after": "0.01"}), Exhausted),
        ((500, "oops", {}), Unavailable),
        ((401, "no such key", {}), FailedPrecondition),
        ((200, "<html>", {}), Unavailable),
        ((200, {"choices": []}, {}), Unavailable),
    ],
)
async def test_what_the_endpoint_will_not_do_is_a_typed_error(endpoint, policy, answer, error):
    endpoint.answers = [answer]
    with pytest.raises(error):
        await policy.continue_turn(turn())


async def test_an_endpoint_that_is_down_is_unavailable(monkeypatch):
    monkeypatch.setattr(openai, "_FIRST_DELAY_SECONDS", 0.01)
    policy = OpenAIPolicy(EndpointSettings("p", "r", "http://127.0.0.1:1/v1", "m", 4096, attempts=2))
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1"):
        await policy.continue_turn(turn())
    await policy.close()


async def test_it_refuses_training_and_what_it_cannot_pass_on(policy):
    with pytest.raises(InvalidArgument, match="no tokens"):
        await policy.continue_turn(turn(temperature=1.0, training=True))
    with pytest.raises(InvalidArgument, match="top_k"):
        await policy.continue_turn(turn(top_k=5))


async def test_it_says_that_it_gives_no_tokens(policy):
    info = await policy.describe()
    assert not info.returns_tokens
    assert not info.accepts_updates
    assert info.model == "some-model"
