"""Writes the policy as a Hugging Face model folder: config.json of a Qwen3, safetensors, tokenizer.

Invariant: a folder under its final name is complete; a half-written one has another name.
"""

import os
import shutil
from pathlib import Path

from safetensors.torch import save_file
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config

from troupe_starter import tokenizer as tokenizers
from troupe_starter.model import Policy, Shape


def qwen3_config(shape: Shape, end_of_turn: int, padding: int) -> Qwen3Config:
    """The config that makes transformers and vLLM build this model."""
    return Qwen3Config(
        architectures=["Qwen3ForCausalLM"],
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        head_dim=shape.head_size,
        max_position_embeddings=shape.context,
        rms_norm_eps=shape.norm_epsilon,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        tie_word_embeddings=False,
        eos_token_id=end_of_turn,
        pad_token_id=padding,
        dtype="float32",
    )


def write(policy: Policy, tokenizer: PreTrainedTokenizerFast, report: str, folder: Path) -> None:
    """Writes the folder, with `report` as cold_start.json in it.

    Raises FileExistsError when the folder is there already.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists: remove it, or write the cold start to another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    part.mkdir()
    try:
        tensors = {name: tensor.contiguous() for name, tensor in policy.state_dict().items()}
        save_file(tensors, part / "model.safetensors", metadata={"format": "pt"})
        end_of_turn, padding = tokenizer.eos_token_id, tokenizer.pad_token_id
        qwen3_config(policy.shape, end_of_turn, padding).save_pretrained(part)
        generation = GenerationConfig(  # type: ignore[no-untyped-call]
            eos_token_id=end_of_turn, pad_token_id=padding
        )
        generation.save_pretrained(part)
        tokenizers.save(tokenizer, part)
        (part / "cold_start.json").write_text(report)
        part.rename(folder)
    except BaseException:
        shutil.rmtree(part)
        raise
