"""Every setting of the orchestrator is read by code that runs; one that nobody reads fails here.

What each does is tested where it is used. This finds the one that was added, or left, without a reader.
"""

import ast
from pathlib import Path

import pytest
import troupe_contracts
import troupe_orchestrator
from troupe_orchestrator.settings import OrchestratorSettings


def _read_of_settings() -> set[str]:
    """Names that are read as `settings.NAME` or, in the settings' own methods, as `self.NAME`."""
    found = set()
    for package in (troupe_orchestrator, troupe_contracts):
        for file in Path(str(package.__file__)).parent.rglob("*.py"):
            own = file.name == "settings.py"
            for node in ast.walk(ast.parse(file.read_text())):
                if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name):
                    continue
                if node.value.id == "settings" or (own and node.value.id == "self"):
                    found.add(node.attr)
    return found


READ = _read_of_settings()


@pytest.mark.parametrize("name", OrchestratorSettings.model_fields)
def test_every_setting_is_read(name: str) -> None:
    assert name in READ
