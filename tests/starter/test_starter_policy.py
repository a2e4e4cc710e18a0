"""Tokenizer, model, packing and cold start of the starter policy."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen3ForCausalLM
from troupe_client.profile import load_profile
from troupe_inference.renderers import get_renderer
from troupe_inference.transcript import Message, Role
from troupe_orchestrator.datasets.loading import load as load_dataset
from troupe_orchestrator.run_config import ServingConfig, parse_config, parse_run_config
from troupe_starter import checkpoint, coldstart, preparation, tasks
from troupe_starter import tokenizer as tokenizers
from troupe_starter.demonstrations import Demonstrator
from troupe_starter.guards import Floors, Measured
from troupe_starter.model import Policy, Shape
from troupe_starter.optimizers import orthogonalise
from troupe_starter.sampling import sample
from troupe_starter.sequences import TokenSequence, pack, tokenise
from troupe_starter.training import Recipe, batch_loss

DEMONSTRATOR = Demonstrator("Design.")
CONVERSATION = [
    Message(Role.SYSTEM, "Use python."),
    Message(Role.USER, "What is 47 * 82 + 15"),
    Message(Role.ASSISTANT, "```python\nprint(47 * 82 + 15)\n```"),
    Message(Role.TOOL, "3869"),
    Message(Role.ASSISTANT, "<delivery>\\boxed{3869}</delivery>"),
]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """These matrices are too small to share."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tokenizers.train(coldstart.texts(DEMONSTRATOR))


def test_the_tokenizer_is_the_same_each_time(tokenizer: PreTrainedTokenizerFast) -> None:
    again = tokenizers.train(coldstart.texts(DEMONSTRATOR))
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert len(tokenizer) == tokenizers.VOCABULARY == Shape().vocabulary


def test_digits_and_number_words_are_tokens_of_their_own(tokenizer: PreTrainedTokenizerFast) -> None:
    digits = set("0123456789")
    for token in tokenizer.get_vocab():
        assert len(token) == 1 or not digits & set(token)
    for words in ("What is forty seven times eighty two plus thirty five", "ninety nine minus twenty one"):
        for word in words.split()[2:]:
            if word not in ("times", "plus", "minus"):
                assert len(tokenizer.tokenize(f" {word}")) == 1


@given(st.text())
@settings(deadline=None, max_examples=200)
def test_every_text_round_trips(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    backend = tokenizer.backend_tokenizer
    tokens = backend.encode(text, add_special_tokens=False).ids
    assert backend.decode(tokens, skip_special_tokens=False) == text


def test_the_chat_template_and_the_renderer_give_the_same_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    backend = tokenizer.backend_tokenizer
    chat = [{"role": message.role.value, "content": message.content} for message in CONVERSATION]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False)
    sequence = tokenise(CONVERSATION, get_renderer("qwen3", backend), backend)
    # The template closes the last turn with a newline, which a transcript holds only once another turn opens.
    assert isinstance(rendered, str)
    assert backend.decode(sequence.tokens, skip_special_tokens=False) + "\n" == rendered
    assert backend.encode(rendered.removesuffix("\n"), add_special_tokens=False).ids == list(sequence.tokens)


def test_the_loss_falls_on_the_assistants_words_and_end_of_turn(tokenizer: PreTrainedTokenizerFast) -> None:
    backend = tokenizer.backend_tokenizer
    sequence = tokenise(CONVERSATION, get_renderer("qwen3", backend), backend)
    spoken = [token for token, said in zip(sequence.tokens, sequence.spoken, strict=True) if said]
    assert tokenizer.decode(spoken) == (
        "```python\nprint(47 * 82 + 15)\n```<|im_end|><delivery>\\boxed{3869}</delivery><|im_end|>"
    )


def test_calls_and_designs_are_short(tokenizer: PreTrainedTokenizerFast) -> None:
    backend = tokenizer.backend_tokenizer
    renderer = get_renderer("qwen3", backend)
    random = Random(0)
    turns = [tokenise(DEMONSTRATOR.agent(random), renderer, backend) for _ in range(300)]
    replies = [tokenise(DEMONSTRATOR.design(random), renderer, backend) for _ in range(300)]
    assert sum(sum(turn.spoken) for turn in turns) / 300 < 30
    assert 15 < sum(sum(reply.spoken) for reply in replies) / 300 < 60
    assert max(len(sequence.tokens) for sequence in turns + replies) < Recipe().row_length


@given(st.lists(st.integers(2, 12), min_size=1, max_size=30), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_packing_keeps_every_sequence_whole_and_apart(sizes: list[int], random: Random) -> None:
    sequences = [
        TokenSequence(tuple(random.randrange(1, 99) for _ in range(size)), (False, *[True] * (size - 1)))
        for size in sizes
    ]
    full = TokenSequence(tuple(range(1, 17)), (False,) * 16)
    # Full sequences at the end push out every batch that holds something.
    batches = list(pack([*sequences, *[full] * 4], rows=2, length=16))
    targets = [token for batch in batches for token in batch.targets.tolist()]
    assert sorted(targets) == sorted(token for s in sequences for token in s.tokens[1:])
    for batch in batches:
        flat = batch.tokens.flatten()
        assert torch.equal(flat[batch.predicts + 1], batch.targets)
        length = batch.tokens.shape[1]
        for index in batch.predicts.tolist():
            row, column = divmod(index, length)
            # It sees its own sequence up to here, and nothing else.
            seen = batch.mask[row, 0, column].nonzero().flatten().tolist()
            start = column - int(batch.positions[row, column])
            assert seen == list(range(start, column + 1))


def test_a_sequence_longer_than_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match="use longer rows"):
        list(pack([TokenSequence((1,) * 20, (True,) * 20)], rows=2, length=16))


def test_packing_does_not_change_the_loss(tokenizer: PreTrainedTokenizerFast) -> None:
    policy = small_policy()
    backend = tokenizer.backend_tokenizer
    renderer = get_renderer("qwen3", backend)
    random = Random(1)
    sequences = [tokenise(DEMONSTRATOR.draw(random), renderer, backend) for _ in range(40)]
    batch = next(pack(sequences, rows=2, length=192))
    total, count = 0.0, 0
    for sequence in sequences:
        alone = next(pack([sequence, TokenSequence((1,) * 192, (False,) * 192)] * 2, 1, 192))
        losses = batch_loss(policy, alone).item() * len(alone.targets)
        if count + len(alone.targets) > len(batch.targets):
            break
        total, count = total + losses, count + len(alone.targets)
    assert count == len(batch.targets)
    assert total / count == pytest.approx(batch_loss(policy, batch).item(), abs=1e-5)


def small_policy() -> Policy:
    policy = Policy(Shape(layers=2))
    policy.initialise(3)
    with torch.no_grad():
        for weight in policy.parameters():
            if weight.dim() == 2:
                weight.mul_(4)
    return policy


def test_the_folder_is_a_qwen3_with_the_same_logits(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    policy = small_policy()
    folder = tmp_path / "policy"
    checkpoint.write(policy, tokenizer, "{}", folder)
    theirs = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = torch.tensor([[5, 80, 200, 300, 4, 17, 90, 501]])
    mask = torch.ones(8, 8, dtype=torch.bool).tril()[None, None]
    with torch.no_grad():
        ours = policy.lm_head(policy.hidden(tokens, torch.arange(8)[None], mask))
        assert torch.allclose(ours, theirs(tokens).logits, atol=1e-4)
    assert not theirs.config.tie_word_embeddings
    assert set(load_file(folder / "model.safetensors")) == set(theirs.state_dict())
    loaded = AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": "What is 47 * 82 + 15"}]
    assert loaded.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == (
        tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    )
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


def test_sampling_many_prompts_together_is_sampling_each_alone() -> None:
    policy = small_policy()
    prompts = [[5, 9, 20], [7], [11, 12, 13, 14, 15, 16]]
    with torch.no_grad():
        # All but one token are ruled out by far, so that sampling is greedy.
        policy.lm_head.weight.mul_(1e4)
    together = sample(policy, prompts, stop=0, max_tokens=12, generator=torch.Generator().manual_seed(1))
    for prompt, tokens in zip(prompts, together, strict=True):
        greedy = list(prompt)
        for _ in tokens:
            length = len(greedy)
            mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
            with torch.no_grad():
                hidden = policy.hidden(torch.tensor([greedy]), torch.arange(length)[None], mask)
            greedy.append(int(policy.lm_head(hidden[0, -1]).argmax()))
        assert greedy[len(prompt) :] == tokens
        assert len(tokens) == 12 or tokens[-1] == 0


def test_orthogonalised_matrices_have_singular_values_about_one() -> None:
    for shape in ((3, 128, 128), (2, 64, 128), (2, 384, 128)):
        matrices = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
        values = torch.linalg.svdvals(orthogonalise(matrices))
        assert 0.2 < float(values.median()) < 1.4
        assert float(values.max()) < 1.6


NO_FLOORS = Floors(valid_scripts=0, parseable=0, winning_pattern=0, winning_success=0)
BRIEF = coldstart.Settings(
    shape=Shape(layers=1, hidden=64, feed_forward=64),
    recipe=Recipe(steps=3, rows=1),
    floors=NO_FLOORS,
    rehearsal_tasks=6,
    extra_rounds=1,
    extra_steps=2,
)


def test_a_cold_start_is_reproducible_and_leaves_one_folder(tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    first = coldstart.run(tmp_path / "a", 5, BRIEF, lambda done, total, what: seen.append((done, total, what)))
    coldstart.run(tmp_path / "b", 5, BRIEF, lambda *_: None)
    assert first.steps == 3
    assert [done for done, _, _ in seen] == [0, 1, 2, 3, 0, 1]
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    assert json.loads((tmp_path / "a/cold_start.json").read_text())["seed"] == 5


def test_a_cold_start_that_misses_its_guards_trains_on_and_then_fails_with_the_reason(tmp_path: Path) -> None:
    settings = dataclasses.replace(BRIEF, floors=Floors(parseable=0.9))
    with pytest.raises(coldstart.ColdStartFailed, match=r"after 5 steps .* parseable answers 0% of at least 90%"):
        coldstart.run(tmp_path / "a", 5, settings, lambda *_: None)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_exists_is_never_overwritten(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match="remove it"):
        coldstart.run(tmp_path, 5, BRIEF, lambda *_: None)


def test_each_missed_floor_is_named() -> None:
    good = {"calc": 0.5, "prog": 0.5, "word": 0.5}
    measured = Measured(0.9, 0.9, 0.2, good, {**good, "word": 0.1}, {**good, "prog": 0.05})
    assert measured.shortfalls(Floors()) == [
        "word: winning pattern 10% of at least 15%",
        "prog: success of it 5% of at least 20%",
    ]


def test_a_prepared_folder_is_whole_and_its_configs_are_accepted(tmp_path: Path) -> None:
    (tmp_path / ".starter.part").mkdir()
    folder = tmp_path / "starter"
    preparation.prepare(folder, 5, BRIEF, lambda *_: None)
    assert [path.name for path in tmp_path.iterdir()] == ["starter"]
    run = parse_run_config((folder / "run.yaml").read_text())
    assert run.seed == 5
    assert run.dataset.train == Path("train.jsonl")
    assert run.steps % run.checkpoint.every == 0
    assert sum(stage.steps for stage in run.stages) <= run.steps
    serving = parse_config((folder / "serving.yaml").read_text(), ServingConfig)
    assert (serving.sampling, serving.budgets) == (run.sampling, run.budgets)
    assert serving.delivery_instruction == run.delivery_instruction
    profile = load_profile(folder / "profile.yaml")
    assert profile.executor.model == str(folder / "model")
    assert profile.designer.prompt == str(folder / "prompt")
    assert profile.orchestrator.settings["serving"] == str(folder / "serving.yaml")
    train, held_out = (
        {json.loads(line)["id"] for line in (folder / name).read_text().splitlines()}
        for name in ("train.jsonl", "held_out.jsonl")
    )
    assert len(train) == preparation.TRAINING_TASKS
    assert len(held_out) == preparation.HELD_OUT_TASKS
    assert not train & held_out
    loaded = load_dataset("train.jsonl", (folder / "train.jsonl").read_bytes(), run.dataset.format)
    assert not loaded.errors
    assert {problem.family for problem in loaded.tasks} == set(tasks.FAMILIES)
