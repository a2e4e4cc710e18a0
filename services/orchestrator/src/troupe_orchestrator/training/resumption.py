"""What a run that goes on is held against: the policies and the data that it began with, and what else was so then."""

import asyncio
from collections.abc import Mapping, Sequence

from troupe.v1 import training_pb2
from troupe_contracts.errors import FailedPrecondition, Unavailable

from troupe_orchestrator.engines import Engines
from troupe_orchestrator.rotation import NoReplicasError
from troupe_orchestrator.run_config import RunConfig
from troupe_orchestrator.store.runs import RunRecord
from troupe_orchestrator.training.inputs import load_data
from troupe_orchestrator.training.policies import Policy
from troupe_orchestrator.training.record import TrainingData, changes, origin, origin_of, source_of_process


def check_policies(record: RunRecord, policies: Sequence[Policy]) -> None:
    """Hold a run, or one that is to be forked, against the policies that this orchestrator trains.

    Raises:
        FailedPrecondition: it began with others, or with other roles.
    """
    before = origin_of(record.provenance)
    if before is None:
        return
    began, now = ({each.policy_id: each.roles for each in side} for side in (before.policies, policies))
    if began != now:
        raise FailedPrecondition(
            record.run_id,
            f"trains {_named(began)}, and this orchestrator has {_named(now)}: start it with {_settings(began)}, or "
            "create a new run",
        )


def _named(policies: Mapping[str, Sequence[str]]) -> str:
    """Policies by id, for people."""
    named = [f"{policy_id!r} ({', '.join(roles)})" for policy_id, roles in sorted(policies.items())]
    return f"{'policy' if len(named) == 1 else 'policies'} {', '.join(named)}" if named else "none"


def _settings(policies: Mapping[str, Sequence[str]]) -> str:
    """What has an orchestrator train these policies."""
    learner_of = {role: policy_id for policy_id, roles in policies.items() for role in roles}
    designer, executor = learner_of["designer"], learner_of["executor"]
    own = "without TROUPE_DESIGNER_LEARNER"
    if designer != executor:
        own = f"TROUPE_DESIGNER_LEARNER at the learner of {designer!r}"
    return f"TROUPE_LEARNER at the learner of {executor!r} and {own}"


async def same_data(record: RunRecord, config: RunConfig) -> TrainingData:
    """The tasks that a run began with.

    Raises:
        InvalidArgument: the file cannot be read or used.
        FailedPrecondition: it is another one.
    """
    data = await asyncio.to_thread(load_data, config)
    before = origin_of(record.provenance)
    if before is not None and before.data_digest != data.digest:
        raise FailedPrecondition(
            record.run_id,
            f"began with {config.dataset.train} of SHA-256 {before.data_digest[:12]}, which is now "
            f"{data.digest[:12]}: put the file back, or fork the run to train on this one",
        )
    return data


async def what_changed(
    record: RunRecord, config: RunConfig, data: TrainingData, engines: Engines
) -> training_pb2.Condition | None:
    """What is no longer as it was when a run began, to be told in its events; None where all is."""
    before = origin_of(record.provenance)
    if before is None:
        return None
    try:
        now = await origin(source_of_process(), config, data, engines, before.fork)
    except (Unavailable, NoReplicasError) as error:
        # The run's loop waits for them, and brings back engines that an earlier sync left out of rotation.
        return training_pb2.Condition(
            reason="ProvenanceUnknown",
            message=f"the services cannot be asked what has changed since the run began: {error}",
            remedy="none needed, if they are as they were; else see `troupe runs show`",
        )
    changed = changes(before, now)
    if not changed:
        return None
    return training_pb2.Condition(
        reason="ProvenanceChanged",
        message=f"since the run began: {'; '.join(changed)}",
        remedy="none needed, if that was intended",
    )
