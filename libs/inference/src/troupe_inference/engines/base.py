"""What an engine is: something that holds weights and continues token sequences.

An engine knows nothing of messages, templates or versions. It runs many generations at once; `pause` lets
no new one in and ends those that run, so that weights change only while nothing is being generated.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from troupe_inference.model_folder import TensorShape


class EngineError(Exception):
    """The engine did not do what was asked."""


class EngineStartError(EngineError):
    """The engine could not be started; the text says what to change."""


class EngineStoppedError(EngineError):
    """The engine is not running: it failed, was closed, or ended this generation for a pause."""


class WeightLoadError(EngineError):
    """Loading began and did not end well: what the engine holds now is undefined."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample one generation."""

    # 0 is greedy.
    temperature: float
    # Upper bound on sampled tokens, at least 1.
    max_tokens: int
    seed: int | None = None
    top_p: float | None = None
    top_k: int | None = None


@dataclass(frozen=True, slots=True)
class Generation:
    """What was sampled, as the engine gave it."""

    token_ids: list[int]
    # Of each sampled token under the full distribution at temperature 1, natural.
    log_probs: list[float]
    # True when the last token is a stop token; False when `max_tokens` was reached.
    stopped: bool


@dataclass(frozen=True, slots=True)
class Tensor:
    """Verified bytes of one tensor: little-endian, C-contiguous."""

    spec: TensorShape
    content: bytes | bytearray


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine is, as it was started."""

    # Name, versions, type, threads and core binding, in one line.
    description: str
    # Type that it computes in, such as "float32".
    dtype: str
    # Tokens of prompt and reply together.
    context_length: int
    vocabulary_size: int
    # Generations that run at once.
    capacity: int


class Engine(Protocol):
    """A running engine; for use from one event loop."""

    @property
    def info(self) -> EngineInfo: ...

    async def generate(self, prompt_ids: list[int], sampling: Sampling, stop_token_ids: Sequence[int]) -> Generation:
        """Samples one continuation of a prompt that leaves room for `sampling.max_tokens`.

        Raises:
            EngineStoppedError: the engine stopped before the generation ended.
        """

    async def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """For each sequence the log-probability of each token but the first. Works while paused."""

    async def pause(self, grace_seconds: float) -> None:
        """Lets no generation in; those that run get `grace_seconds`, then end with EngineStoppedError."""

    async def resume(self) -> None:
        """Lets generations in again."""

    async def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Replaces all weights in place and forgets what was cached of the old ones. While paused only.

        Raises:
            WeightLoadError: it failed after it began.
        """

    async def close(self) -> None:
        """Ends the engine; generations that run end with EngineStoppedError."""
