"""The YAML of an overlay, as `kubectl apply -k` would send it: nothing added, nothing hidden."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_SECONDS: Final = 60
_TOOLS: Final[Sequence[tuple[str, ...]]] = (("kubectl", "kustomize"), ("kustomize", "build"))


class RenderError(RuntimeError):
    """An overlay cannot be rendered; the text says why."""


def overlay_folder(overlay: str, checkout: Path) -> Path:
    """The folder of an overlay: one of the checkout's by its name, or a folder of one's own.

    Raises:
        RenderError: there is none.
    """
    shipped = checkout / "k8s" / "overlays"
    for folder in (shipped / overlay, Path(overlay)):
        if (folder / "kustomization.yaml").is_file():
            return folder
    known = sorted(each.parent.name for each in shipped.glob("*/kustomization.yaml"))
    there = f"{shipped} has {', '.join(known)}" if known else f"{shipped} is no folder of overlays"
    raise RenderError(f"there is no overlay {overlay!r}: {there}; or name a folder with a kustomization.yaml")


def render(folder: Path) -> str:
    """What kustomize makes of a folder.

    Raises:
        RenderError: kustomize is not installed, or refuses.
    """
    tool = next((tool for tool in _TOOLS if shutil.which(tool[0])), None)
    if tool is None:
        raise RenderError("neither kubectl nor kustomize is installed: install one of them")
    command = [*tool, str(folder)]
    try:
        made = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise RenderError(f"`{' '.join(command)}` does not end: a remote base that cannot be reached?") from error
    if made.returncode:
        raise RenderError(f"`{' '.join(command)}`: {made.stderr.strip()}")
    return made.stdout
