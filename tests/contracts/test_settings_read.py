"""Every setting of a service is read by code that runs; one that nobody reads fails here.

What each does is tested where it is used. This finds the one that was added, or left, without a reader.
"""

import ast
from pathlib import Path
from types import ModuleType

import pytest
import troupe_contracts
import troupe_designer
import troupe_executor
import troupe_inference
import troupe_learner
import troupe_orchestrator
from troupe_contracts.settings import ServiceSettings
from troupe_inference.policy_settings import PolicySettings
from troupe_learner.settings import LearnerSettings
from troupe_orchestrator.settings import OrchestratorSettings

PACKAGES: dict[type[ServiceSettings], tuple[ModuleType, ...]] = {
    OrchestratorSettings: (troupe_orchestrator,),
    LearnerSettings: (troupe_learner,),
    PolicySettings: (troupe_inference, troupe_designer, troupe_executor),
}


def _read_of_settings(packages: tuple[ModuleType, ...]) -> set[str]:
    """Names that are read as `settings.NAME`, or in the settings' own methods as `self.NAME`."""
    found = set()
    for package in packages:
        for file in Path(str(package.__file__)).parent.rglob("*.py"):
            own = file.name.endswith("settings.py")
            for node in ast.walk(ast.parse(file.read_text())):
                if not isinstance(node, ast.Attribute):
                    continue
                holder = node.value
                name = holder.attr if isinstance(holder, ast.Attribute) else getattr(holder, "id", "")
                if name.endswith("settings") or (own and name == "self"):
                    found.add(node.attr)
    return found


@pytest.mark.parametrize("settings", PACKAGES, ids=lambda settings: settings.__name__)
def test_every_setting_is_read(settings: type[ServiceSettings]) -> None:
    unread = settings.model_fields.keys() - _read_of_settings((troupe_contracts, *PACKAGES[settings]))
    assert not unread
