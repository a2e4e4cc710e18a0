"""How often Python's collector of reference cycles looks."""

import gc

ALLOCATIONS = 50_000
"""More containers made than freed before it looks; Python's own figure is 700."""


def look_seldom() -> None:
    """Lets the collector look at what is new seldom, and never again at what is there already.

    Ten thousand executions in flight are millions of objects that live on, and looking through them again and again took
    a sixth of the orchestrator's CPU time. What is freed by its reference count alone, which is nearly all, waits for
    nothing; of cycles a few megabytes more may wait.
    """
    gc.freeze()
    gc.set_threshold(ALLOCATIONS)
