"""Each service's own reader of its settings."""

from collections.abc import Callable, Mapping
from typing import Final

from troupe_designer.settings import DesignerSettings
from troupe_executor.settings import ExecutorSettings
from troupe_learner.settings import LearnerSettings
from troupe_orchestrator.settings import OrchestratorSettings
from troupe_sandbox.__main__ import parse_arguments

READERS: Final[Mapping[str, Callable[[Mapping[str, str]], object]]] = {
    "designer": DesignerSettings.read,
    "executor": ExecutorSettings.read,
    "learner": LearnerSettings.read,
    "orchestrator": OrchestratorSettings.read,
    "sandbox": lambda environ: parse_arguments([], environ),
}
