"""Faults that are ours. They are retried, then the whole task is dropped from the step; none ever becomes a reward."""

import grpc
from troupe_contracts.errors import describe, is_infrastructure, retry_delay


class InfrastructureFaultError(Exception):
    """A dead sandbox, an unreachable engine, a full disk, our queue: not the policy's doing.

    Attributes:
        service: which part failed.
        retry_after: seconds that the part asks us to wait, 0 if it said nothing.
        retriable: false where the same request would be refused again.
        error: the call that failed, where it was one.
    """

    def __init__(
        self,
        service: str,
        message: str,
        retry_after: float = 0.0,
        retriable: bool = True,
        error: grpc.RpcError | None = None,
    ) -> None:
        self.service = service
        self.retry_after = retry_after
        self.retriable = retriable
        self.error = error
        super().__init__(f"{service}: {message}")


def fault_of(service: str, error: grpc.RpcError) -> InfrastructureFaultError:
    """The fault behind a failed call.

    A request that we built and a service refuses is a fault of ours too: it must not be blamed on the policy. It is not
    tried again, since it would be refused again.
    """
    return InfrastructureFaultError(
        service,
        describe(error),
        retry_after=retry_delay(error) or 0.0,
        retriable=is_infrastructure(error),
        error=error,
    )
