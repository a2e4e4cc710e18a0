"""What the sandbox raises when it fails itself."""


class SandboxError(RuntimeError):
    """The sandbox itself failed, or the checker program did; this says nothing about the program that was to run.

    Attributes:
        reason: name for machines, as the gRPC service has it: INTERNAL, MEMORY, DISK, DESCRIPTORS, PROCESSES, NAMESPACES,
            KILLED, CHECKER, DRAINING; and CLOSED for a Sandbox that is closed, or another process's.
        retriable: the same may be asked for again, of this Sandbox, and may well succeed.
    """

    def __init__(self, text: str, reason: str = "INTERNAL", retriable: bool = False) -> None:
        super().__init__(text)
        self.reason = reason
        self.retriable = retriable
