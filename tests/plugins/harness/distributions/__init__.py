"""Installs distributions into a folder as an installer would: modules, and `dist-info` with metadata and entry points.

Nothing is built and nothing is fetched; what reads entry points cannot tell the difference.
"""

import shutil
import tomllib
from collections.abc import Mapping
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[4] / "examples" / "plugins"


def install_example(kind: str, folder: Path) -> None:
    """Installs the example of a kind, as its pyproject says."""
    source = EXAMPLES / kind
    project = tomllib.loads((source / "pyproject.toml").read_text())["project"]
    for module in source.glob("*.py"):
        shutil.copy(module, folder)
    _write_metadata(folder, project["name"], project["version"], project["entry-points"])


def install(
    folder: Path,
    name: str,
    entry_points: Mapping[str, Mapping[str, str]],
    modules: Mapping[str, str],
    version: str = "1.0",
) -> None:
    """Installs a distribution of some modules.

    Args:
        entry_points: group to name to target.
        modules: name to source.
    """
    for module, source in modules.items():
        (folder / f"{module}.py").write_text(source)
    _write_metadata(folder, name, version, entry_points)


def _write_metadata(folder: Path, name: str, version: str, entry_points: Mapping[str, Mapping[str, str]]) -> None:
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n")
    lines = [
        line
        for group, targets in entry_points.items()
        for line in (f"[{group}]", *(f"{key} = {target}" for key, target in targets.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
