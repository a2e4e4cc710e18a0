"""Problem files: bytes in, tasks and the errors of single lines out."""

from troupe_orchestrator.datasets.loading import DatasetError, LineError, LoadedDataset, load
from troupe_orchestrator.datasets.task import AssertionTests, MathReference, Reference, StdinTests, Task

__all__ = [
    "AssertionTests",
    "DatasetError",
    "LineError",
    "LoadedDataset",
    "MathReference",
    "Reference",
    "StdinTests",
    "Task",
    "load",
]
