"""The probe: an engine that holds the right weights reproduces the learner's log-probabilities.

Errors are mean absolute differences over all probe tokens, in nats. Two rules, both of which must hold after a load:

- **Near**: the error is at most a bound. Until a replica has passed a probe that is `UNCALIBRATED` times the floor of its
  number type; from then on `MULTIPLE` times the error of that first pass, at least the floor. Never more than the caller
  allows. So weights that are a little wrong do not pass where right ones are known to agree to 1e-6.
- **Nearer**: if the weights before were off by more than noise (the floor, or that multiple), the error is at most `NEARER`
  of theirs. So a load that changed nothing, or only a part, does not pass where little was learned since.

Where the weights before were within the noise the probes cannot tell the two sets apart, and the digests of the staged bytes
are what is known.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from troupe.v1 import policy_pb2
from troupe_contracts.errors import InvalidArgument

from troupe_inference.engines.base import EngineInfo

# Times the floor, times the first error, part of the error before; see above.
UNCALIBRATED: Final = 100.0
MULTIPLE: Final = 10.0
NEARER: Final = 0.5
# vLLM against transformers with the same weights: 1e-6 in float32; other types have 8 to 11 bits of mantissa.
_FLOORS: Final = MappingProxyType({"float32": 1e-5})
_FLOOR_OF_OTHERS: Final = 3e-2


class ProbeError(Exception):
    """The engine does not reproduce the learner."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A sequence, and the learner's log-probability of each token but the first."""

    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Agreement:
    """Absolute differences over all probe tokens, in nats; 0 without probes."""

    mean: float
    largest: float


def floor_of(dtype: str) -> float:
    """Errors below this are the number type's own: the same weights in two implementations."""
    return _FLOORS.get(dtype, _FLOOR_OF_OTHERS)


def bound(ceiling: float, floor: float, baseline: float | None) -> float:
    """The largest error that passes.

    Args:
        ceiling: what the caller allows.
        baseline: error of the first probe that this replica passed; None before.
    """
    return min(ceiling, floor * UNCALIBRATED if baseline is None else noise(floor, baseline))


def noise(floor: float, baseline: float | None) -> float:
    """Errors up to this may be those of the right weights."""
    return floor if baseline is None else max(floor, MULTIPLE * baseline)


def read_probes(request: policy_pb2.CommitUpdateRequest, engine: EngineInfo) -> list[Probe]:
    """The probes of a commit, if the engine can score them.

    Raises:
        InvalidArgument: a probe is malformed, or there are probes without a bound.
    """
    if request.probes and not (math.isfinite(request.probe_bound) and request.probe_bound > 0):
        raise InvalidArgument("probe_bound", f"is {request.probe_bound:g}: send a positive bound with probes")
    probes = []
    for index, probe in enumerate(request.probes):
        count = len(probe.token_ids)
        if not 2 <= count < engine.context_length:
            raise InvalidArgument(
                f"probes[{index}].token_ids",
                f"has {count} tokens: send 2 to {engine.context_length - 1}, one less than the context",
            )
        if max(probe.token_ids) >= engine.vocabulary_size:
            raise InvalidArgument(
                f"probes[{index}].token_ids",
                f"holds {max(probe.token_ids)}, the vocabulary has {engine.vocabulary_size} tokens",
            )
        if len(probe.log_probs) != count - 1 or not all(map(math.isfinite, probe.log_probs)):
            raise InvalidArgument(
                f"probes[{index}].log_probs",
                f"has {len(probe.log_probs)} values for {count} tokens: send a finite one for each but the first",
            )
        probes.append(Probe(tuple(probe.token_ids), tuple(probe.log_probs)))
    return probes


def compare(probes: Sequence[Probe], scores: Sequence[Sequence[float]]) -> Agreement:
    """How far an engine's scores of the probes are from the learner's."""
    differences = [
        abs(engine - learner)
        for probe, score in zip(probes, scores, strict=True)
        for engine, learner in zip(score, probe.log_probs, strict=True)
    ]
    if not differences:
        return Agreement(0.0, 0.0)
    return Agreement(sum(differences) / len(differences), max(differences))


def judge(after: Agreement, before: Agreement, largest: float, noise: float) -> None:
    """Whether a load is what it should be; see the module's docstring.

    Args:
        before: of the weights that the load replaced, whatever they were.
        largest: the `bound`.
        noise: the `noise`.

    Raises:
        ProbeError: it is not, or an error is not a number.
    """
    if not after.mean <= largest:
        raise ProbeError(
            f"the probe's log-probabilities differ by {after.mean:.3g} nats on average "
            f"(largest {after.largest:.3g}), the bound is {largest:.3g}"
        )
    if before.mean > noise and not after.mean <= NEARER * before.mean:
        raise ProbeError(
            f"the probe's log-probabilities differ by {after.mean:.3g} nats on average, by {before.mean:.3g} under the "
            "weights before: the load changed nothing, or only a part"
        )
