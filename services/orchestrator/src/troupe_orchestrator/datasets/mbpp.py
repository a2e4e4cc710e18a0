"""MBPP: `text`, `test_list`, `test_setup_code`.

The tests stay hidden. What a solution must define is read off them and said by name, since the text says it nowhere.
`test_setup_code` uses what the solution defines, so it is a part of each case and not of the setup.
"""

import ast
import builtins
import sys

from troupe_orchestrator.datasets.rows import Row, RowError, RowPlace, optional_text, text_field, text_list
from troupe_orchestrator.datasets.task import AssertionTests, Task


def matches(row: Row) -> bool:
    return {"text", "test_list"} <= row.keys()


def read(row: Row, place: RowPlace) -> Task:
    assertions = text_list(row, "test_list")
    begin = optional_text(row, "test_setup_code", "").replace("\r\n", "\n").strip()
    cases = tuple(f"{begin}\n{assertion.strip()}" if begin else assertion.strip() for assertion in assertions)
    needed = _needed_names("\n".join(cases))
    modules = [name for name in needed if name in sys.stdlib_module_names]
    names = [name for name in needed if name not in sys.stdlib_module_names]
    if not names:
        raise RowError("`test_list` must call a function that is to be written")
    entry_point, *others = names
    question = f"{text_field(row, 'text').strip()}\n\nWrite it in Python. Your function is named `{entry_point}`."
    if others:
        question += f" Also define {', '.join(f'`{name}`' for name in others)}."
    task_id = row.get("task_id")
    return Task(
        task_id=f"mbpp/{task_id}" if isinstance(task_id, int) else place.task_id,
        family="mbpp",
        task_type="code",
        question=question,
        reference=AssertionTests("\n".join(f"import {name}" for name in modules), cases, entry_point),
    )


def _needed_names(code: str) -> list[str]:
    """Names that code uses and does not define: first the one called last, which is the function under test."""
    try:
        module = ast.parse(code)
    except SyntaxError as error:
        raise RowError(f"`test_list` must hold Python: {error}") from error
    defined = {node.id for node in ast.walk(module) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    used = [node.id for node in ast.walk(module) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)]
    free = [name for name in dict.fromkeys(used) if name not in defined and not hasattr(builtins, name)]
    called = [
        node.func.id
        for node in ast.walk(module.body[-1])
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    if not set(free) & set(called) - sys.stdlib_module_names:
        # A function that is to be named like a built-in one.
        free = [*free, *called[:1]]
    return sorted(free, key=lambda name: (name not in called, free.index(name)))
