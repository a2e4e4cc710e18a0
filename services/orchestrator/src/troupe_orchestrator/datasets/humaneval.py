"""HumanEval: `prompt` (a function's head with its docstring), `test` with a function `check`, `entry_point`.

What the prompt defines before the function (imports, other functions) stands before the solution when it is tested, so a
solution may repeat it or not.
"""

import ast

from troupe_orchestrator.datasets.rows import Row, RowError, RowPlace, text_field
from troupe_orchestrator.datasets.task import AssertionTests, Task


def matches(row: Row) -> bool:
    return {"prompt", "test", "entry_point"} <= row.keys()


def read(row: Row, place: RowPlace) -> Task:
    prompt, entry_point = text_field(row, "prompt"), text_field(row, "entry_point")
    case = f"{text_field(row, 'test').strip()}\n\ncheck({entry_point})\n"
    question = (
        "Complete this Python function. Deliver the whole function, with all that it needs.\n\n"
        f"```python\n{prompt.rstrip()}\n```"
    )
    tests = AssertionTests(_before(prompt, entry_point), (case,), entry_point)
    task_id = row.get("task_id")
    return Task(
        task_id if isinstance(task_id, str) and task_id else place.task_id, "humaneval", "code", question, tests
    )


def _before(prompt: str, entry_point: str) -> str:
    """The part of a prompt above the function that is asked for."""
    try:
        module = ast.parse(prompt)
    except SyntaxError as error:
        raise RowError(f"`prompt` must be the head of a Python function: {error}") from error
    for statement in module.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == entry_point:
            return "".join(prompt.splitlines(keepends=True)[: statement.lineno - 1]).strip()
    raise RowError(f"`prompt` must define `entry_point` {entry_point!r:.80}")
