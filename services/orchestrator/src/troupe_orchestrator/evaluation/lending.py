"""Putting stored weights into the engines for a while, and the current ones back.

What is to be given back is in the store before the first engine is touched, and goes from there when every engine has its
own weights again. Whoever uses the engines between two steps has them given back first: so weights that a job left behind,
because the orchestrator was killed or an engine did not answer, are never taken for the current ones. Where they cannot be
given back the engines are out of rotation and say so, until they can, or until a run brings them to its learner's weights.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import grpc
import structlog
from troupe.v1 import policy_pb2
from troupe_contracts.errors import FailedPrecondition, describe

from troupe_orchestrator.engines import Engines
from troupe_orchestrator.evaluation.stored_weights import StoredWeights, StoredWeightsError, read_stored_weights
from troupe_orchestrator.fleet import PolicyFleet, Replica
from troupe_orchestrator.rotation import NoReplicasError, NotReadyError
from troupe_orchestrator.run_config import RunConfig
from troupe_orchestrator.store.database import Database
from troupe_orchestrator.store.loans import Loan, forget_loan, list_loans, record_loans
from troupe_orchestrator.training.learner import LearnerError
from troupe_orchestrator.training.policies import parse_version, version_text
from troupe_orchestrator.training.serving import serves
from troupe_orchestrator.training.weights import WeightSyncError, load_weights

logger = structlog.get_logger()

_ANSWER_SECONDS = 10.0
Ask = Callable[[PolicyFleet], Awaitable[list[policy_pb2.PolicyInfo]]]
_PROBE_BOUND: float = RunConfig.model_fields["probe_bound"].default


class GiveBackError(RuntimeError):
    """Engines hold the weights of an eval job and cannot be given their own."""


@dataclass(frozen=True, slots=True)
class Probed:
    """Weights, and what an engine that has them must reproduce; no probes where nobody can say."""

    weights: StoredWeights
    probes: Sequence[policy_pb2.Probe] = ()


@dataclass(frozen=True, slots=True)
class Holder:
    """The engines that hold the weights of one policy."""

    fleets: tuple[PolicyFleet, ...]
    info: policy_pb2.PolicyInfo


async def weight_holders(engines: Engines, ask: Ask = PolicyFleet.describe) -> dict[str, Holder]:
    """Policy id to the engines into which weights can be loaded.

    Args:
        ask: whether a fleet of which none serves is waited for.

    Raises:
        NoReplicasError: none serves.
        FailedPrecondition: there are none, since the models are hosted.
    """
    holders: dict[str, Holder] = {}
    for fleet in (engines.executor, engines.designer):
        info = (await ask(fleet))[0]
        if info.accepts_updates:
            known = holders.get(info.policy_id)
            holders[info.policy_id] = Holder((*known.fleets, fleet) if known else (fleet,), info)
    if not holders:
        raise FailedPrecondition("engines", "serve hosted models: no weights can be loaded into them")
    return holders


class Lending:
    """Loans of one orchestrator's engines. For whoever holds the boundary."""

    def __init__(self, database: Database, engines: Engines) -> None:
        self._database = database
        self._engines = engines
        self._policies = {policy.policy_id: policy for policy in engines.policies}

    async def lend(self, job_id: str, lent: Mapping[str, Probed]) -> None:
        """Load weights in place of the current ones. Give them back, also when this fails.

        Raises:
            FailedPrecondition: they are of another policy, or there would be no way back.
            WeightSyncError: no replica took them.
            NoReplicasError: none has served for as long as work waits.
        """
        holders = await weight_holders(self._engines, PolicyFleet.described)
        if holders.keys() != lent.keys():
            raise FailedPrecondition("target", f"has weights of {sorted(lent)}, the engines serve {sorted(holders)}")
        loans = [
            Loan(policy_id, job_id, version_text(holder.info.version), holder.info.model)
            for policy_id, holder in holders.items()
        ]
        for loan in loans:
            try:
                await self._own_weights(loan)
            except GiveBackError as error:
                raise FailedPrecondition(
                    "engines", f"could not be given their weights back afterwards: {error}"
                ) from error
        await record_loans(self._database, loans)
        for policy_id, holder in holders.items():
            await self._load(holder.fleets, lent[policy_id])

    async def give_back(self) -> None:
        """Let the engines have their own weights again, where they do not.

        Raises:
            GiveBackError: they cannot; they are out of rotation.
        """
        for loan in await list_loans(self._database):
            fleets = [policy.fleet for policy in self._engines.policies if policy.policy_id == loan.policy_id]
            try:
                if await self._replaced(loan):
                    await forget_loan(self._database, loan.policy_id)
                    continue
                fleets = fleets or await self._holding(loan.policy_id)
                for fleet in fleets:
                    # What is lent is not current from here on: a replica that has it does not serve.
                    fleet.synced(parse_version(loan.version), _left_behind)
                await self._load(fleets, await self._own_weights(loan))
            except (GiveBackError, WeightSyncError, NoReplicasError, grpc.RpcError) as error:
                reason = describe(error) if isinstance(error, grpc.RpcError) else str(error)
                for fleet in fleets or (self._engines.executor, self._engines.designer):
                    for replica in fleet.replicas():
                        fleet.take_out(replica, f"{loan.version} cannot be loaded again: {reason}")
                raise GiveBackError(
                    f"eval job {loan.job_id} left other weights in the engines of policy {loan.policy_id}, and "
                    f"{loan.version} cannot be loaded again: {reason}"
                ) from error
            await forget_loan(self._database, loan.policy_id)
            logger.info("weights given back", policy=loan.policy_id, version=loan.version, job=loan.job_id)

    async def _replaced(self, loan: Loan) -> bool:
        """Whether a run has brought the engines to newer weights since, and forgetting the loan was not recorded."""
        policy = self._policies.get(loan.policy_id)
        if policy is None:
            return False
        try:
            held = version_text((await policy.learner.get()).version)
        except grpc.RpcError as error:
            raise GiveBackError(f"the learner: {describe(error)}") from error
        return held != loan.version and await serves(policy, held)

    async def _holding(self, policy_id: str) -> list[PolicyFleet]:
        """The engines of a policy that nobody trains. Asked one by one, since they may be out of rotation."""
        fleets = []
        for fleet in (self._engines.executor, self._engines.designer):
            info = await _described(fleet)
            if info.accepts_updates and info.policy_id == policy_id:
                fleets.append(fleet)
        return fleets

    async def _load(self, fleets: Sequence[PolicyFleet], probed: Probed) -> None:
        for fleet in fleets:
            report = await load_weights(
                fleet,
                probed.weights.manifest,
                probed.weights.source,
                self._database.fence,
                list(probed.probes),
                _PROBE_BOUND,
            )
            for failure in report.failures:
                logger.warning("a replica is out of rotation until it has the weights", failure=failure)
            # They have the weights; who says that they are ready may not have said so yet.
            await fleet.somebody()

    async def _own_weights(self, loan: Loan) -> Probed:
        """What the engines of a loan served before: the learner's weights, or those that they were started with."""
        policy = self._policies.get(loan.policy_id)
        held = ""
        if policy is not None:
            learner = policy.learner
            try:
                held = version_text((await learner.get()).version)
                if held == loan.version:
                    source = policy_pb2.WeightSource(learner_target=learner.target)
                    weights = StoredWeights(await learner.manifest(), source)
                    return Probed(weights, await learner.probes(policy.fixed_probes, weights.manifest.version))
            except (grpc.RpcError, LearnerError) as error:
                reason = describe(error) if isinstance(error, grpc.RpcError) else str(error)
                raise GiveBackError(f"the learner: {reason}") from error
        version = parse_version(loan.version)
        if version.number:
            where = f"the learner has {held}" if held else "there is no learner"
            raise GiveBackError(f"{where}, and only weights with number 0 are in the engines' model folder")
        try:
            return Probed(await asyncio.to_thread(read_stored_weights, loan.model, loan.policy_id, version))
        except StoredWeightsError as error:
            raise GiveBackError(str(error)) from error


async def _left_behind(replica: Replica) -> None:
    """In place of bringing a replica to its own weights, while nobody can say how."""
    raise NotReadyError(
        f"{replica.target} holds the weights of an eval job: it waits for a job or a run that loads its own"
    )


async def _described(fleet: PolicyFleet) -> policy_pb2.PolicyInfo:
    """What the first replica that answers says of itself, in rotation or not.

    Raises:
        grpc.RpcError: none answers.
        NoMembersError: there is none.
    """
    if not fleet.replicas():
        raise fleet.nobody()
    *others, last = fleet.replicas()
    for replica in others:
        with contextlib.suppress(grpc.RpcError):
            return await replica.stub.GetPolicy(policy_pb2.GetPolicyRequest(), timeout=_ANSWER_SECONDS)
    return await last.stub.GetPolicy(policy_pb2.GetPolicyRequest(), timeout=_ANSWER_SECONDS)
