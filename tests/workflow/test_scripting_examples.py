"""Every example of docs/scripting.md runs to a result."""

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "scripting.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_runs(run_script: Any, example: str) -> None:
    done = run_script(example, agent=lambda call: "<delivery>12</delivery> \\boxed{12}\nVERDICT: CORRECT")
    assert (done.exit_code, done.stderr) == (0, "")
    assert len(done.results) == 1
    assert done.result["result_type"] in ("agent_response", "final_result")
    assert "\\boxed{12}" in done.results[0]
    assert len(done.calls) >= 1


def test_the_page_names_every_class_of_the_library() -> None:
    from troupe_workflow.library import workflow

    page = PAGE.read_text()
    assert [name for name in workflow.__all__ if f"`{name}`" not in page] == []
    assert len(EXAMPLES) == 8
