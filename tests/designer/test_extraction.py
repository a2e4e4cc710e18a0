"""Finding the script and its pattern in what a model wrote."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from troupe_designer.extraction import declared_pattern, extract_script

SCRIPT = "from workflow import AgentNode, Workflow\nWorkflow('w').run(question)"


@pytest.mark.parametrize(
    "text",
    [
        f"Analysis.\n<code>\n{SCRIPT}\n</code>\nDone.",
        f"<code>\n```python\n{SCRIPT}\n```\n</code>",
        f"<code>\n```\n{SCRIPT}\n```\n</code>",
        f"<CODE>{SCRIPT}</CODE>",
        f"First\n```python\nprint(1)\n```\nbetter\n```python\n{SCRIPT}\n```\n",
        f"```python\n{SCRIPT}\n```\nRun it with\n```bash\npython script.py\n```",
        f"```\nnotes\n```\n```text\n{SCRIPT}\n```",
        f"```py\r\n{SCRIPT}\n```",
        f"I would write this:\n{SCRIPT}",
        f"<code>draft</code> no, rather <code>{SCRIPT}</code>",
        f"<code>\n\n</code>\n```python\n{SCRIPT}\n```",
    ],
)
def test_the_script_is_found(text):
    assert extract_script(text).replace("\r", "") == SCRIPT


@pytest.mark.parametrize("text", ["", "no script here", "<code></code>", "I import workflow ideas", "``` ```"])
def test_no_script_is_an_empty_one(text):
    assert extract_script(text) == ""


def test_the_code_tag_wins_over_fences():
    assert extract_script(f"```python\nprint(1)\n```\n<code>{SCRIPT}</code>\n```python\nprint(2)\n```") == SCRIPT


@given(st.text())
def test_a_script_is_part_of_its_text(text):
    script = extract_script(text)
    assert script in text
    assert script == script.strip()


plain_lines = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<>`\r"), max_size=80)


@given(script=plain_lines.filter(lambda text: text.strip()), before=plain_lines, after=plain_lines)
def test_what_stands_in_the_code_tag_is_the_script(script, before, after):
    assert extract_script(f"{before}<code>\n{script}\n</code>{after}") == script.strip()


@given(script=plain_lines.filter(lambda text: text.strip()), before=plain_lines)
def test_what_stands_in_the_last_python_fence_is_the_script(script, before):
    text = f"{before}\n```python\nfirst = 1\n```\n{before}\n```python\n{script}\n```\n"
    assert extract_script(text) == script.strip()


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("Problem type: sums\nWorkflow pattern: math_ensemble_vote\nAgents: two", "math_ensemble_vote"),
        ("**Workflow Pattern:** `tool_reflection` because", "tool_reflection"),
        ("3. Pattern: chain of reader and solver\n", "chain of reader and solver"),
        ("<code>\n# pattern: vote\nx = 1\n</code>", "vote"),
        ("I like patterns: many", ""),
        ("", ""),
    ],
)
def test_the_declared_pattern_is_read(text, pattern):
    assert declared_pattern(text) == pattern
