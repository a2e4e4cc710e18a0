"""Rendering: equal to the model's template for ordinary text, and deaf to control tokens in content."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from troupe_inference.renderers import Renderer, RendererError, get_renderer
from troupe_inference.transcript import Message, Role

CONTROLS = [
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
]
ordinary = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<"), max_size=60)
hostile = st.lists(st.sampled_from([*CONTROLS, "<|im_start|>system\n", "é", "日本", " ", "\n", "a", "<", "|>"])).map(
    "".join
)
shared = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)


@pytest.fixture(scope="module")
def tokenizer(tiny_model) -> Tokenizer:
    return Tokenizer.from_file(str(tiny_model(False) / "tokenizer.json"))


@pytest.fixture(scope="module")
def template(tiny_model) -> PreTrainedTokenizerBase:
    folder: Path = tiny_model(False)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def renderer(tokenizer) -> Renderer:
    return get_renderer("qwen3", tokenizer)


def conversation(system: str | None, contents: list[tuple[Role, str]]) -> list[Message]:
    messages = [Message(Role.SYSTEM, system)] if system is not None else []
    return messages + [Message(role, content) for role, content in contents]


@shared
@given(
    system=st.none() | ordinary,
    contents=st.lists(st.tuples(st.sampled_from([Role.USER, Role.TOOL]), ordinary), min_size=1, max_size=4),
)
def test_ordinary_text_renders_as_the_models_own_template_does(renderer, template, system, contents):
    messages = conversation(system, contents)
    expected = template.apply_chat_template(
        [{"role": message.role.value, "content": message.content} for message in messages],
        add_generation_prompt=True,
        enable_thinking=False,
        return_dict=False,
    )
    assert renderer.open_turn(messages, first=True) == list(expected)


@shared
@given(contents=st.lists(st.tuples(st.sampled_from([Role.USER, Role.TOOL]), hostile), min_size=1, max_size=3))
def test_no_control_token_comes_out_of_content(renderer, contents):
    messages = conversation(None, contents)
    empty = [Message(role, "") for role, _ in contents]
    controls = [token for token in renderer.open_turn(messages, first=True) if token in renderer.control_token_ids]
    template_controls = [
        token for token in renderer.open_turn(empty, first=True) if token in renderer.control_token_ids
    ]
    assert controls == template_controls


@shared
@given(content=hostile)
def test_content_that_looks_like_control_tokens_keeps_its_text(renderer, tokenizer, content):
    rendered = renderer.open_turn([Message(Role.USER, content)], first=True)
    text = tokenizer.decode(rendered, skip_special_tokens=False)
    assert text.startswith(f"<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n")


def test_a_later_turn_begins_with_the_newline_after_the_closed_turn(renderer, tokenizer):
    message = [Message(Role.TOOL, "42")]
    later = tokenizer.decode(renderer.open_turn(message, first=False), skip_special_tokens=False)
    first = tokenizer.decode(renderer.open_turn(message, first=True), skip_special_tokens=False)
    assert later == "\n" + first


def test_the_end_of_turn_is_a_stop_token(renderer, tokenizer):
    assert renderer.close_turn() == [tokenizer.token_to_id("<|im_end|>")]
    assert renderer.close_turn()[0] in renderer.stop_token_ids


def test_reply_text_leaves_out_special_tokens_only(renderer, tokenizer):
    ids = tokenizer.encode("a <tool_call>{}</tool_call><|im_end|>").ids
    assert renderer.text(ids) == "a <tool_call>{}</tool_call>"


def test_an_unknown_renderer_names_the_known_ones(tokenizer):
    with pytest.raises(RendererError, match=r"no renderer 'llama9'; known: qwen3"):
        get_renderer("llama9", tokenizer)


def test_a_tokenizer_without_the_control_tokens_is_refused():
    from tokenizers import models

    with pytest.raises(RendererError, match=r"<\|im_start\|> and no <\|im_end\|>"):
        get_renderer("qwen3", Tokenizer(models.BPE(vocab={"a": 0}, merges=[])))
