"""A step on one rank, against the plainest way to write it."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import Gemma2Config, Gemma2ForCausalLM
from troupe.v1 import learner_pb2
from troupe_learner.batch_file import BatchArrays
from troupe_learner.batches import as_arrays
from troupe_learner.optimization import Optimization
from troupe_learner.rank.engine import AdamW, copy_into, snapshot
from troupe_learner.rank.model import load_model
from troupe_learner.rank.scorer import TokenScorer, UnsupportedModel, Wanted
from troupe_learner.rank.scoring import score
from troupe_learner.rank.torch_engine import TorchEngine
from troupe_learner.rank.training import StepRefused, _revealing, train_step

ADAMW = AdamW(0.9, 0.95, 1e-8, 0.0)
ONE_STEP = Optimization(1e-3, 1, 0.2, 0.28, 1.0, 0.0, False, False)
BUDGET = 200

MakeSequences = Callable[..., list[learner_pb2.Sequence]]


def engine_of(folder: Path) -> TorchEngine:
    return TorchEngine(TokenScorer(load_model(str(folder), torch.float32)), ADAMW, torch.float32, 0, 1)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Bit-for-bit comparisons, and no threads that wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def engine(request: pytest.FixtureRequest, tiny_model: Callable[[bool], Path]) -> TorchEngine:
    return engine_of(tiny_model(request.param))


@pytest.fixture
def batch(sequences: MakeSequences) -> BatchArrays:
    return as_arrays(sequences(12))


def on_policy(engine: TorchEngine, batch: BatchArrays) -> BatchArrays:
    """The batch as if the engine itself had sampled it."""
    log_probs, _ = score(engine, batch.lengths, batch.token_ids, BUDGET, lambda done: None)
    first = np.cumsum(batch.lengths) - batch.lengths
    behaviour = np.insert(log_probs, first - np.arange(len(first)), 0)
    return dataclasses.replace(batch, behaviour_log_probs=behaviour.astype(np.float32))


def run(
    engine: TorchEngine, batch: BatchArrays, optimization: Optimization, recompute: bool = False
) -> dict[str, float]:
    return train_step(
        engine,
        batch,
        optimization,
        token_budget=BUDGET,
        recompute_old=recompute,
        progress=lambda done: None,
    )


def one_by_one(model: torch.nn.Module, tokens: np.ndarray) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies of all tokens but the first, from the model's own logits."""
    ids = torch.from_numpy(tokens).unsqueeze(0)
    distribution = torch.log_softmax(model(input_ids=ids).logits[0, :-1], dim=-1)
    return distribution.gather(1, ids[0, 1:].unsqueeze(1)).squeeze(1), -(distribution.exp() * distribution).sum(-1)


def cut(batch: BatchArrays, values: np.ndarray) -> list[np.ndarray]:
    return np.split(values, np.cumsum(batch.lengths)[:-1])


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def same_bits(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """As `same`, where not-a-number equals itself."""
    return all(left[name].numpy().tobytes() == right[name].numpy().tobytes() for name in right)


def test_scores_in_padded_passes_equal_those_of_each_sequence_alone(engine: TorchEngine, batch: BatchArrays) -> None:
    log_probs, entropies = score(engine, batch.lengths, batch.token_ids, BUDGET, lambda done: None)
    with torch.no_grad():
        alone = [one_by_one(engine._scorer.model, tokens) for tokens in cut(batch, batch.token_ids)]
    assert np.allclose(log_probs, torch.cat([each[0] for each in alone]), atol=2e-5)
    assert np.allclose(entropies, torch.cat([each[1] for each in alone]), atol=2e-5)


def test_a_step_equals_one_that_takes_sequences_one_by_one(engine: TorchEngine, batch: BatchArrays) -> None:
    batch = on_policy(engine, batch)
    plain = engine_of(Path(engine._scorer.model.config._name_or_path))
    model = plain._scorer.model
    loss = torch.zeros(())
    columns = (batch.token_ids, batch.weights, batch.advantages, batch.behaviour_log_probs)
    for tokens, weights, advantages, behaviour in zip(*(cut(batch, each) for each in columns), strict=True):
        log_probs, _ = one_by_one(model, tokens)
        ratio = torch.exp(log_probs - torch.from_numpy(behaviour[1:]))
        gain = torch.from_numpy(advantages[1:])
        clipped = torch.minimum(ratio * gain, ratio.clamp(0.8, 1.28) * gain)
        loss = loss - (torch.from_numpy(weights[1:]) * clipped).sum()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    gradients = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}

    metrics = run(engine, batch, ONE_STEP)
    assert metrics["loss"] == pytest.approx(float(loss.detach()), abs=1e-6)
    assert metrics["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
    # After one step of AdamW, the first moment is (1 - beta1) of the clipped gradient.
    names = list(dict(engine._scorer.model.named_parameters()))
    for index, name in enumerate(names):
        moment = engine.moments()[f"moments.{index}.exp_avg"]
        assert torch.allclose(moment, 0.1 * gradients[name], atol=1e-6), name


def test_logits_in_chunks_give_the_same_values_and_gradients(tiny_model: Callable[[bool], Path]) -> None:
    results = []
    for logit_values in (1 << 25, 5 * 400):
        scorer = TokenScorer(load_model(str(tiny_model(True)), torch.float32), logit_values)
        tokens = torch.arange(40).reshape(2, 20)
        wanted = Wanted(tokens, torch.arange(19), tokens[0, 1:])
        log_probs, entropies = scorer(wanted)
        log_probs.sum().backward()
        results.append([log_probs.detach(), entropies, *(each.grad for each in scorer.parameters())])
    assert all(torch.allclose(left, right, atol=1e-5) for left, right in zip(*results, strict=True))


def test_a_model_that_caps_its_logits_is_refused() -> None:
    config = Gemma2Config(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        final_logit_softcapping=0.01,
    )
    with pytest.raises(UnsupportedModel, match="Gemma2ForCausalLM does more to its logits"):
        TokenScorer(Gemma2ForCausalLM(config).eval()).check()


def test_sequences_without_weight_or_advantage_change_nothing_bit_for_bit(
    engine: TorchEngine, batch: BatchArrays, sequences: MakeSequences
) -> None:
    before = snapshot(engine)
    run(engine, batch, dataclasses.replace(ONE_STEP, mini_batches=3))
    alone = snapshot(engine)
    copy_into(engine.live(), before)
    idle = as_arrays(sequences(6, seed=5))
    half = int(idle.lengths[:3].sum())
    weights, advantages = idle.weights.copy(), idle.advantages.copy()
    weights[:half], advantages[half:] = 0, 0
    mixed = BatchArrays(
        batch.ids + idle.ids,
        *(
            np.concatenate(pair)
            for pair in (
                (batch.lengths, idle.lengths),
                (batch.token_ids, idle.token_ids),
                (batch.weights, weights),
                (batch.advantages, advantages),
                (batch.behaviour_log_probs, idle.behaviour_log_probs),
            )
        ),
    )
    metrics = run(engine, mixed, dataclasses.replace(ONE_STEP, mini_batches=3))
    assert same(snapshot(engine), alone)
    assert metrics["sequences"] == 18
    assert metrics["sequences_trained"] == 12


def test_a_batch_without_any_advantage_leaves_weights_and_moments_alone(
    engine: TorchEngine, batch: BatchArrays
) -> None:
    run(engine, batch, ONE_STEP)  # moments that would move the weights by themselves
    before = snapshot(engine)
    still = dataclasses.replace(batch, advantages=np.zeros_like(batch.advantages))
    metrics = run(engine, still, dataclasses.replace(ONE_STEP, reset_optimizer=True))
    assert same(snapshot(engine), before)
    assert metrics["optimizer_steps"] == 0


def test_a_gradient_that_is_not_finite_undoes_the_whole_step_and_is_named(
    engine: TorchEngine, batch: BatchArrays
) -> None:
    run(engine, batch, ONE_STEP)
    before = snapshot(engine)
    poisoned = batch.advantages.copy()
    poisoned[-1] = 3e38
    bad = dataclasses.replace(batch, advantages=poisoned, weights=batch.weights * 100)
    three = dataclasses.replace(ONE_STEP, mini_batches=3, reset_optimizer=True, scale_by_mini_batches=True)
    with pytest.raises(StepRefused, match=r"of sequence conversation-11 is not finite.*mini-batch 3 of 3.*as before"):
        run(engine, bad, three)
    assert same(snapshot(engine), before)
    run(engine, batch, ONE_STEP)  # and nothing of it is left in the gradients
    assert all(math.isfinite(float(each.sum())) for each in snapshot(engine).values())


def test_a_poisoned_weight_undoes_the_step_and_names_the_first_sequence(
    engine: TorchEngine, batch: BatchArrays
) -> None:
    name, parameter = next(iter(engine.replicated().items()))
    assert "embed" in name
    parameter[int(batch.token_ids[batch.lengths[:2].sum()])] = math.nan
    before = snapshot(engine)
    poisoned = [math.isnan(float(parameter[tokens].sum())) for tokens in cut(batch, batch.token_ids)]
    # A tied embedding is the output projection too: every distribution has it in its sum.
    owner = poisoned.index(True) if "lm_head.weight" in engine.replicated() else 0
    text = rf"the log-probability of sequence conversation-{owner} is not finite.*norm is nan"
    with pytest.raises(StepRefused, match=text):
        run(engine, batch, dataclasses.replace(ONE_STEP, mini_batches=1))
    assert same_bits(snapshot(engine), before)


def test_a_ratio_that_overflows_is_named_even_where_the_clip_would_hide_it(
    engine: TorchEngine, batch: BatchArrays
) -> None:
    """A gain of an infinite ratio is clipped to a finite loss, so the loss alone would not tell."""
    before = snapshot(engine)
    behaviour = batch.behaviour_log_probs.copy()
    first = int(batch.lengths[:4].sum())
    behaviour[first : first + batch.lengths[4]] = -1e3
    bad = dataclasses.replace(batch, behaviour_log_probs=behaviour, advantages=np.abs(batch.advantages))
    with pytest.raises(StepRefused, match="the ratio of sequence conversation-4 is not finite"):
        run(engine, bad, ONE_STEP)
    assert same_bits(snapshot(engine), before)


def test_a_loss_that_is_not_finite_has_a_gradient_that_is_not() -> None:
    weight = torch.ones((), requires_grad=True)
    _revealing(weight + torch.inf).backward()
    assert weight.grad is not None
    assert math.isnan(float(weight.grad))
    finite = torch.ones((), requires_grad=True)
    assert _revealing(finite) is finite


def test_a_gradient_that_overflows_on_its_own_names_the_sequences_of_its_mini_batch(
    engine: TorchEngine, batch: BatchArrays
) -> None:
    before = snapshot(engine)
    # Losses of this size are finite, the squares of their gradients are not.
    bad = dataclasses.replace(on_policy(engine, batch), advantages=np.full_like(batch.advantages, 1e25))
    with pytest.raises(
        StepRefused, match=r"the gradient of sequences conversation-0 to conversation-\d+ is not finite"
    ):
        run(engine, bad, ONE_STEP)
    assert same_bits(snapshot(engine), before)


def test_a_reset_makes_the_step_that_of_a_fresh_optimizer(engine: TorchEngine, batch: BatchArrays) -> None:
    before = snapshot(engine)
    fresh_moments = {name: each for name, each in before.items() if name.startswith("moments.")}
    run(engine, batch, ONE_STEP)
    trained = snapshot(engine)
    run(engine, batch, dataclasses.replace(ONE_STEP, reset_optimizer=True))
    with_reset = snapshot(engine)
    copy_into(engine.live(), {**trained, **fresh_moments})
    run(engine, batch, ONE_STEP)
    assert same(snapshot(engine), with_reset)


def test_on_policy_the_engine_and_the_learner_agree_and_the_ratio_starts_at_one(
    engine: TorchEngine, batch: BatchArrays
) -> None:
    metrics = run(engine, on_policy(engine, batch), ONE_STEP)
    assert metrics["mismatch_mean_abs"] < 1e-5
    assert metrics["mismatch_kl"] < 1e-6
    assert metrics["ratio_mean"] == pytest.approx(1, abs=1e-5)
    assert metrics["clip_fraction"] == 0


def test_recomputed_old_log_probs_measure_the_mismatch_but_do_not_clip_for_it(
    engine: TorchEngine, batch: BatchArrays
) -> None:
    """The engine is off by half a nat everywhere: against its own past, the learner has not moved yet."""
    off = on_policy(engine, batch)
    off = dataclasses.replace(
        off, behaviour_log_probs=np.where(off.weights > 0, off.behaviour_log_probs - 0.5, 0).astype(np.float32)
    )
    before = snapshot(engine)
    against_engine = run(engine, off, ONE_STEP)
    copy_into(engine.live(), before)
    against_itself = run(engine, off, ONE_STEP, recompute=True)
    assert against_engine["ratio_mean"] == pytest.approx(math.exp(0.5), rel=1e-4)
    assert against_engine["clip_fraction"] > 0.2
    assert against_itself["ratio_mean"] == pytest.approx(1, abs=1e-6)
    assert against_itself["clip_fraction"] == 0
    for metrics in (against_engine, against_itself):
        assert metrics["mismatch_mean_abs"] == pytest.approx(0.5, abs=1e-4)
        assert metrics["mismatch_ratio_max"] == pytest.approx(math.exp(0.5), rel=1e-3)


def test_old_log_probs_of_later_mini_batches_are_those_from_before_the_first_update(
    engine: TorchEngine, batch: BatchArrays
) -> None:
    """For an engine that equals the learner, both choices of old log-probabilities are the same step."""
    exact = on_policy(engine, batch)
    three = dataclasses.replace(ONE_STEP, mini_batches=3, scale_by_mini_batches=True, learning_rate=1e-2)
    before = snapshot(engine)
    by_engine = run(engine, exact, three)
    copy_into(engine.live(), before)
    by_itself = run(engine, exact, three, recompute=True)
    assert by_engine["ratio_max"] > 1.01
    for name in ("loss", "ratio_mean", "ratio_max", "policy_kl", "grad_norm"):
        assert by_itself[name] == pytest.approx(by_engine[name], rel=1e-3, abs=1e-5), name


def test_an_importance_cap_corrects_for_the_engine_up_to_the_cap(engine: TorchEngine, batch: BatchArrays) -> None:
    off = on_policy(engine, batch)
    off = dataclasses.replace(off, behaviour_log_probs=off.behaviour_log_probs - 3 * (off.weights > 0))
    metrics = run(engine, off, dataclasses.replace(ONE_STEP, importance_cap=2.0))
    assert metrics["importance_mean"] == pytest.approx(2.0)
    assert metrics["ratio_mean"] == pytest.approx(1, abs=1e-6)
