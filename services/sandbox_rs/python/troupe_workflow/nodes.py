"""Workflow nodes of plug-ins (group `troupe.nodes`), put where scripts import them from.

An entry point `longest = "module:Longest"` names a subclass of `WorkflowNode` in a module of one file. `library` makes a
copy of the scripting library that has that file as `workflow/plugins/longest.py`, and scripts write
`from workflow.plugins.longest import Longest`. A node must be what the library itself is: pure standard library, importing
nothing else but `workflow`. That is checked in its source; then the interpreter of the scripts imports it once, so that a
node that cannot work ends the start and not the scripts.
"""

from __future__ import annotations

import ast
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

from troupe_workflow import LIBRARY

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP: Final = "troupe.nodes"
# As the sandbox's own folders: what a killed one has left, unlocked, the next that starts beside it removes.
_PREFIX: Final = "troupe-sandbox-library-"
_ALLOWED: Final = frozenset({"workflow", "__future__"})
_CHECK: Final = """
import sys
sys.path.insert(0, sys.argv[1])
from importlib import import_module
from workflow import WorkflowNode
for name, attribute in zip(sys.argv[2::2], sys.argv[3::2]):
    node = getattr(import_module(f"workflow.plugins.{name}"), attribute)
    if not (isinstance(node, type) and issubclass(node, WorkflowNode)):
        sys.exit(f"{attribute} of workflow.plugins.{name} is no subclass of WorkflowNode")
    if getattr(node, "__abstractmethods__", None):
        sys.exit(f"{attribute} of workflow.plugins.{name} does not define {', '.join(node.__abstractmethods__)}")
"""


class NodePluginError(ValueError):
    """A node that cannot be had; says whose it is and what to do."""


@dataclass(frozen=True, slots=True)
class NodePlugin:
    """A node as its distribution names it."""

    name: str
    attribute: str
    source: Path
    label: str

    @property
    def import_line(self) -> str:
        """What a script writes."""
        return f"from workflow.plugins.{self.name} import {self.attribute}"


@contextmanager
def library(names: Sequence[str], parent: Path, python: Path) -> Iterator[Path]:
    """The scripting library with these nodes of plug-ins, for as long as the block runs.

    Args:
        parent: where the copy is made, if there are any nodes.
        python: the interpreter of the scripts.

    Raises:
        NodePluginError: a name is unknown or taken twice, or the node cannot work.
    """
    if not names:
        yield LIBRARY
        return
    nodes = [find(name) for name in dict.fromkeys(names)]
    folder, owner = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent)).resolve(), os.getpid()
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield _copy(nodes, folder / "library", python)
    finally:
        os.close(lock)
        # A forked copy of this block leaves its parent's folder alone.
        if os.getpid() == owner:
            shutil.rmtree(folder)


def find(name: str) -> NodePlugin:
    """The node of that name, with its source checked.

    Raises:
        NodePluginError: there is none, or two, or its source is not what a node's may be.
    """
    # A third of what a sandbox without nodes of plug-ins would import when it starts.
    from importlib.metadata import entry_points

    found = list(entry_points(group=GROUP))
    owners = {_label(entry_point): entry_point for entry_point in found if entry_point.name == name}
    if not owners:
        known = ", ".join(sorted({f"{each.name} (of {_owner(each)})" for each in found})) or "none is installed"
        raise NodePluginError(f"no workflow node is named {name!r}; known: {known}")
    if len(owners) > 1:
        raise NodePluginError(
            f"the workflow node {name!r} is named by {' and by '.join(sorted(owners))}: rename the entry point of group "
            f"{GROUP} in one, or uninstall it"
        )
    ((label, entry_point),) = owners.items()
    if not name.isidentifier() or not entry_point.attr:
        raise NodePluginError(
            f"{label}: the name must be a Python name and its value module:Class; mend the entry point"
        )
    source = _source(entry_point.module)
    if source is None:
        raise NodePluginError(
            f"{label}: the module {entry_point.module} has no source file; install it as a plain folder"
        )
    node = NodePlugin(name, entry_point.attr, source, label)
    problems = source_problems(source.read_text(encoding="utf-8"))
    if problems:
        raise NodePluginError(f"{label}: {source}: {'; '.join(problems)}")
    return node


def source_problems(source: str) -> list[str]:
    """Why scripts may not import such a module: imports of anything but the standard library and `workflow`. Pure."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        return [f"is no Python: {error}"]
    problems = []
    for node in ast.walk(tree):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = ["." * node.level + (node.module or "")]
        for module in modules:
            top = module.split(".")[0]
            if top not in _ALLOWED and top not in sys.stdlib_module_names:
                line = getattr(node, "lineno", 0)
                problems.append(
                    f"line {line} imports {module!r}: a node has the standard library and `workflow`, and nothing else"
                )
    return problems


def _copy(nodes: Sequence[NodePlugin], folder: Path, python: Path) -> Path:
    shutil.copytree(LIBRARY, folder, ignore=shutil.ignore_patterns("__pycache__"))
    plugins = folder / "workflow" / "plugins"
    plugins.mkdir()
    (plugins / "__init__.py").write_text('"""Nodes that plug-ins add, one module each."""\n', encoding="utf-8")
    for node in nodes:
        shutil.copyfile(node.source, plugins / f"{node.name}.py")
    arguments = [part for node in nodes for part in (node.name, node.attribute)]
    # -S, as in the sandbox: nothing but the standard library can be imported.
    checked = subprocess.run(
        [python, "-I", "-S", "-B", "-c", _CHECK, folder, *arguments], capture_output=True, text=True, timeout=60, env={}
    )
    if checked.returncode:
        labels = " or ".join(node.label for node in nodes)
        end = " | ".join(checked.stderr.strip().splitlines()[-3:])
        raise NodePluginError(
            f"{labels} cannot be imported by scripts: mend or leave it out; the end of the error: {end}"
        )
    return folder


def _source(module: str) -> Path | None:
    """The file of a module, found without running anything of it."""
    top, *rest = module.split(".")
    spec = find_spec(top)
    if spec is None:
        return None
    if rest:
        folders = [Path(folder).joinpath(*rest) for folder in spec.submodule_search_locations or ()]
        candidates = [path for folder in folders for path in (folder.with_suffix(".py"), folder / "__init__.py")]
    else:
        candidates = [Path(spec.origin)] if spec.origin else []
    return next((path for path in candidates if path.suffix == ".py" and path.is_file()), None)


def _owner(entry_point: EntryPoint) -> str:
    return "an unknown distribution" if entry_point.dist is None else entry_point.dist.name


def _label(entry_point: EntryPoint) -> str:
    return f"the workflow node {entry_point.name!r} of {_owner(entry_point)} (group {GROUP}, {entry_point.value})"
