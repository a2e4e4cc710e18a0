"""The weights that a run starts from where it starts from no checkpoint: those of its learner's model folder.

Their digest is on record since the run was created. A learner that comes back with others must not be given the run's
batches: what they train would be another policy, under the same names.
"""

from troupe_orchestrator.store.database import Database
from troupe_orchestrator.store.runs import get_run
from troupe_orchestrator.training.learner import BaseGoneError, OtherWeightsError
from troupe_orchestrator.training.policies import Policy
from troupe_orchestrator.training.record import origin_of


async def check_initial_weights(database: Database, run_id: str, policy: Policy) -> None:
    """Make sure that a learner, which is to go to its initial weights, has those that a run began with.

    Where the run's record or the learner tells none, nothing is compared.

    Raises:
        OtherWeightsError: it has others.
        BaseGoneError: the run is a fork, which began with a checkpoint, and none of the policy is on record any more.
    """
    record = await get_run(database, run_id)
    began = None if record is None else origin_of(record.provenance)
    if began is None:
        return
    if began.fork is not None:
        raise BaseGoneError(
            f"no checkpoint of policy {policy.policy_id} is on record for run {run_id}, which is a fork"
        )
    before = next((each.weights_digest for each in began.policies if each.policy_id == policy.policy_id), "")
    learner = await policy.learner.get()
    if before and learner.weights_digest and before != learner.weights_digest:
        raise OtherWeightsError(
            f"run {run_id} began with initial weights of SHA-256 {before[:12]} for policy {policy.policy_id}, its learner "
            f"has {learner.weights_digest[:12]} in {learner.model}"
        )
