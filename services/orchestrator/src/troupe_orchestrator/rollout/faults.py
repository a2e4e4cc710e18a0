"""Faults that are ours. They are retried, then the whole task is dropped from the step; none ever becomes a reward."""

import grpc
from troupe_contracts.errors import describe, is_infrastructure, retry_delay


class InfrastructureFaultError(Exception):
    """A dead sandbox, an unreachable engine, a full disk, our queue: not the policy's doing.

    Attributes:
        service: which part failed.
        retry_after: seconds that the part asks us to wait, 0 if it said nothing.
    """

    def __init__(self, service: str, message: str, retry_after: float = 0.0) -> None:
        self.service = service
        self.retry_after = retry_after
        super().__init__(f"{service}: {message}")


def fault_of(service: str, error: grpc.RpcError) -> InfrastructureFaultError:
    """The fault behind a failed call.

    A request that we built and a service refuses is a fault of ours too: it must not be blamed on the policy. It is not
    worth a retry, but a retry is bounded and the message says what was refused.
    """
    delay = retry_delay(error) if is_infrastructure(error) else None
    return InfrastructureFaultError(service, describe(error), delay or 0.0)
