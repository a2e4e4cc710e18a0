"""Policies: sets of weights, who trains them and who serves them; and their versions as text."""

from dataclasses import dataclass

from troupe.v1 import common_pb2

from troupe_orchestrator.fleet import PolicyFleet
from troupe_orchestrator.training.learner import LearnerClient
from troupe_orchestrator.training.probes import fixed_probes


@dataclass(frozen=True, slots=True)
class Policy:
    """One set of weights: who trains it, who serves it, which roles it plays."""

    policy_id: str
    learner: LearnerClient
    fleet: PolicyFleet
    roles: tuple[str, ...]

    @property
    def fixed_probes(self) -> list[list[int]]:
        """Sequences that the engines must score as the learner does after every load, whatever the batch."""
        identity = self.fleet.identity
        assert identity is not None, "the fleet has been connected to"
        return fixed_probes(identity.vocabulary_size, identity.context_length)


def version_text(version: common_pb2.PolicyVersion) -> str:
    """`lineage:number`."""
    return f"{version.lineage}:{version.number}"


def parse_version(text: str) -> common_pb2.PolicyVersion:
    """The version that `version_text` wrote."""
    lineage, _, number = text.rpartition(":")
    return common_pb2.PolicyVersion(lineage=lineage, number=int(number))
