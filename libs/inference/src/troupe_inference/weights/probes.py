"""The probe: an engine that holds the right weights reproduces the learner's log-probabilities."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from troupe.v1 import policy_pb2
from troupe_contracts.errors import InvalidArgument

from troupe_inference.engines.base import EngineInfo


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


def compare(probes: Sequence[Probe], scores: Sequence[Sequence[float]], bound: float) -> Agreement:
    """How far the engine is from the learner.

    Raises:
        ProbeError: the mean difference exceeds the bound, or is not a number.
    """
    differences = [
        abs(engine - learner)
        for probe, score in zip(probes, scores, strict=True)
        for engine, learner in zip(score, probe.log_probs, strict=True)
    ]
    if not differences:
        return Agreement(0.0, 0.0)
    agreement = Agreement(sum(differences) / len(differences), max(differences))
    if not agreement.mean <= bound:
        raise ProbeError(
            f"the probe's log-probabilities differ by {agreement.mean:.3g} nats on average "
            f"(largest {agreement.largest:.3g}), the bound is {bound:.3g}"
        )
    return agreement
