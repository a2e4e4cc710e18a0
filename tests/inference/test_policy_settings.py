"""Settings and model folders: what is missing, unused or too much stops the start, by name."""

import pytest
from troupe_contracts.settings import SettingsError
from troupe_inference.engines.base import EngineStartError
from troupe_inference.model_folder import (
    ModelFolderError,
    architecture_digest,
    open_model,
    tokenizer_digest,
)
from troupe_inference.policy_settings import PolicySettings
from troupe_inference.policy_start import choose_renderer, start_policy
from troupe_inference.renderers import RendererError

VLLM = {"TROUPE_MODEL": "m", "TROUPE_LINEAGE": "a", "TROUPE_REPLICA_ID": "r"}


@pytest.mark.parametrize(
    ("environ", "text"),
    [
        ({}, "needs TROUPE_MODEL and TROUPE_LINEAGE and TROUPE_REPLICA_ID"),
        (VLLM | {"TROUPE_REMOTE_TARGET": "h:1"}, "does not read TROUPE_REMOTE_TARGET"),
        ({"TROUPE_ENGINE": "remote"}, "needs TROUPE_REMOTE_TARGET"),
        ({"TROUPE_ENGINE": "openai", "TROUPE_OPENAI_MODEL": "m"}, "needs TROUPE_OPENAI_BASE_URL"),
        ({"TROUPE_ENGINE": "llama"}, "TROUPE_ENGINE"),
        (VLLM | {"TROUPE_CONTEXT_LENGTH": "many"}, "TROUPE_CONTEXT_LENGTH"),
    ],
)
def test_bad_settings_are_named(environ, text):
    with pytest.raises(SettingsError, match=text):
        PolicySettings.read(environ)


def test_settings_of_the_chosen_engine_are_enough():
    assert PolicySettings.read(VLLM).model == "m"


async def test_a_context_longer_than_the_models_is_refused(tiny_model):
    settings = PolicySettings.read(VLLM | {"TROUPE_MODEL": str(tiny_model(False)), "TROUPE_CONTEXT_LENGTH": "4096"})
    with pytest.raises(EngineStartError, match="4096 is more than the 1024"):
        await start_policy(settings, None)


def test_the_renderer_is_told_from_the_models_type():
    assert choose_renderer(None, {"model_type": "qwen3"}) == "qwen3"
    assert choose_renderer("named", {"model_type": "qwen3"}) == "named"
    with pytest.raises(RendererError, match="TROUPE_RENDERER to one of qwen3"):
        choose_renderer(None, {"model_type": "gpt2"})


def test_tied_and_untied_models_differ_in_architecture_only(tiny_model):
    untied, tied = open_model(str(tiny_model(False))), open_model(str(tiny_model(True)))
    assert tied.tied_embeddings
    assert "lm_head.weight" in untied.tensors
    assert "lm_head.weight" not in tied.tensors
    assert tokenizer_digest(untied) == tokenizer_digest(tied)
    digests = {
        architecture_digest({name: tensor.shape for name, tensor in model.tensors.items()}, model.tied_embeddings)
        for model in (untied, tied)
    }
    assert len(digests) == 2


def test_a_folder_without_a_model_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ModelFolderError, match=r"no config\.json"):
        open_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelFolderError, match="no weights"):
        open_model(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(ModelFolderError, match="cut short"):
        open_model(str(tmp_path))
