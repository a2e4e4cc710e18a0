"""What calls may not do with a run or a job that an object asked for: the object says whether it goes on, and it alone. Nor
may they take its id, which is the object's uid.

Cancelling is not among it: who may call may always end a run, and the object's status says so.
"""

import re
from typing import Final, Protocol

from troupe_contracts.errors import FailedPrecondition, InvalidArgument

from troupe_orchestrator.custom_resources.resources import KINDS, TRAINING_RUN
from troupe_orchestrator.store.database import Database
from troupe_orchestrator.store.object_requests import ObjectRequest, get_request

_UID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""Of an object: the API server makes it, a UUID."""


class Steering(Protocol):
    """Who may steer."""

    def check_new(self, field: str, chosen: str) -> None:
        """Whether a call may choose the id of a new run or job.

        Args:
            field: of the request, that has the id.
            chosen: the id; empty where the server is to choose.

        Raises:
            InvalidArgument: an object has it, or may come to have it.
        """

    async def check(self, uid: str, does: str) -> None:
        """Whether a call may do something with a run or job.

        Args:
            does: what it would: pause, resume.

        Raises:
            FailedPrecondition: an object steers it.
        """


class CallsSteer:
    """Where no objects are looked at: calls may do everything."""

    def check_new(self, field: str, chosen: str) -> None:
        """Nothing is refused."""

    async def check(self, uid: str, does: str) -> None:
        """Nothing is refused."""


class ObjectsSteer:
    """Where objects are looked at."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def check_new(self, field: str, chosen: str) -> None:
        if _UID.fullmatch(chosen):
            kinds = " and ".join(f"{kind}s" for kind in KINDS)
            raise InvalidArgument(
                field, f"{chosen!r} has the form of an object's uid, which {kinds} have as id; choose another"
            )

    async def check(self, uid: str, does: str) -> None:
        request = await get_request(self._database, uid)
        if request is not None:
            raise FailedPrecondition(_name(request), f"asked for {uid}, and calls do not {does} it: {_remedy(request)}")


def _name(request: ObjectRequest) -> str:
    return f"{request.kind} {request.namespace}/{request.name}"


def _remedy(request: ObjectRequest) -> str:
    if request.kind != TRAINING_RUN.name:
        return "create a job of your own, or apply another EvalJob"
    return (
        "set spec.desiredState there, `kubectl "
        f"-n {request.namespace} patch {KINDS[request.kind].plural} {request.name} --type merge "
        '-p \'{"spec":{"desiredState":"Paused"}}\'`, or Running'
    )
