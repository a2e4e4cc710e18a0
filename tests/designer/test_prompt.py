"""The designer's prompt: built in or a folder, filled in literally."""

import re

import pytest
from troupe_designer.prompt import BUILT_IN, Prompt, PromptError, TaskType, load_prompt
from troupe_inference.transcript import Role
from troupe_workflow import LIBRARY


def test_braces_of_question_and_template_stay_as_they_are():
    prompt = Prompt("Answer in \\boxed{x}, {unknown}", "{task_type}: {question}")
    system, user = prompt.messages("What is \\frac{1}{2} of {task_type}? {question}", TaskType.MATH)
    assert system.content == "Answer in \\boxed{x}, {unknown}"
    assert user.content == "math: What is \\frac{1}{2} of {task_type}? {question}"


def test_an_empty_system_template_means_no_system_message():
    (message,) = Prompt("", "{question}").messages("Why?", TaskType.CODE)
    assert (message.role, message.content) == (Role.USER, "Why?")


def test_a_folder_is_read_to_the_last_newline(tmp_path):
    (tmp_path / "system.txt").write_text("Design.\n")
    (tmp_path / "user.txt").write_text("{question}")
    assert load_prompt(str(tmp_path)) == Prompt("Design.\n", "{question}")


def test_a_missing_prompt_names_the_built_in_ones(tmp_path):
    with pytest.raises(PromptError, match="default"):
        load_prompt(str(tmp_path / "nowhere"))


def test_a_user_template_without_the_question_is_refused(tmp_path):
    (tmp_path / "system.txt").write_text("")
    (tmp_path / "user.txt").write_text("Design something.")
    with pytest.raises(PromptError, match="question"):
        load_prompt(str(tmp_path))


def test_the_default_prompt_names_all_that_the_library_offers():
    text = (BUILT_IN / "default" / "system.txt").read_text()
    exported = (LIBRARY / "workflow" / "__init__.py").read_text()
    names = set(re.findall(r'^    "(\w+)",$', exported, re.MULTILINE)) - {"AgentRefused", "ChannelClosed"}
    assert names
    assert not {name for name in names if name not in text}
