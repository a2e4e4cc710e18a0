"""What a run that goes on is held against: the data that it began with, and what else was so at its begin."""

import asyncio

from troupe.v1 import training_pb2
from troupe_contracts.errors import FailedPrecondition, Unavailable

from troupe_orchestrator.engines import Engines
from troupe_orchestrator.rotation import NoReplicasError
from troupe_orchestrator.run_config import RunConfig
from troupe_orchestrator.store.runs import RunRecord
from troupe_orchestrator.training.inputs import load_data
from troupe_orchestrator.training.record import TrainingData, changes, origin, origin_of, source_of_process


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
