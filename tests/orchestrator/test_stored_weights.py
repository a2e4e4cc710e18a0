"""Weights in folders, as the orchestrator names them and as a replica reads and checks them."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file
from troupe.v1 import common_pb2
from troupe_inference.model_folder import open_model
from troupe_inference.weights.manifest import read_manifest
from troupe_inference.weights.sources import open_source
from troupe_orchestrator.evaluation.stored_weights import StoredWeightsError, read_stored_weights

VERSION = common_pb2.PolicyVersion(lineage="start", number=3)


@pytest.fixture
def folder(tiny_model: Callable[..., Path], tmp_path: Path) -> Path:
    """A model's folder of the test's own."""
    return shutil.copytree(tiny_model(tied=False), tmp_path / "model")


@pytest.mark.parametrize("tied", [False, True])
async def test_a_replica_takes_and_verifies_what_the_orchestrator_named(
    tiny_model: Callable[..., Path], tied: bool
) -> None:
    folder = tiny_model(tied=tied)
    stored = read_stored_weights(str(folder), "policy", VERSION)
    model = open_model(str(folder))
    shapes = {name: tensor.shape for name, tensor in model.tensors.items()}
    shapes = {name: shape for name, shape in shapes.items() if not (tied and name == "lm_head.weight")}
    manifest = read_manifest(stored.manifest, policy_id="policy", shapes=shapes, tied_embeddings=model.tied_embeddings)
    wanted = {tensor.name: tensor.sha256 for tensor in manifest.tensors}
    found = {
        name: hashlib.sha256(content).digest()
        async for name, content in open_source(stored.source).tensors("policy", manifest)
    }
    assert found == wanted
    assert wanted.keys() == shapes.keys()
    assert stored.manifest.version == VERSION


def test_a_tied_output_projection_is_not_listed(folder: Path) -> None:
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]}, file)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    stored = read_stored_weights(str(folder), "policy", None)
    assert stored.manifest.tied_embeddings
    assert "lm_head.weight" not in [tensor.name for tensor in stored.manifest.tensors]


def test_a_checkpoint_keeps_its_model_in_a_folder_of_its_own(folder: Path, tmp_path: Path) -> None:
    moved = folder.rename(tmp_path / "step-1").rename(tmp_path / "moved")
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    moved.rename(checkpoint / "model")
    stored = read_stored_weights(str(checkpoint), "policy", None)
    assert stored.source.store_uri == f"{checkpoint}/model"


def test_other_bytes_are_another_version_and_the_same_bytes_the_same(folder: Path) -> None:
    first = read_stored_weights(str(folder), "policy", None).manifest.version
    assert read_stored_weights(str(folder), "policy", None).manifest.version == first
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name] + 1}, file)
    assert read_stored_weights(str(folder), "policy", None).manifest.version != first


NO_SAFETENSORS = {
    "empty": b"",
    "short": b"\x00" * 4,
    "too long a header": b"\xff" * 64,
    "no JSON": (20).to_bytes(8, "little") + b"{" * 20,
}


@pytest.mark.parametrize("content", NO_SAFETENSORS.values(), ids=NO_SAFETENSORS.keys())
def test_a_file_that_is_no_safetensors_is_refused_and_named(folder: Path, content: bytes) -> None:
    (file,) = folder.glob("*.safetensors")
    file.write_bytes(content)
    with pytest.raises(StoredWeightsError, match=str(folder)):
        read_stored_weights(str(folder), "policy", None)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_what_is_no_regular_file_is_not_waited_for(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(StoredWeightsError, match=rf"{name} is no regular file"):
        read_stored_weights(str(folder), "policy", None)


def test_a_config_of_no_model_is_not_read(folder: Path) -> None:
    os.truncate(folder / "config.json", (100 << 20) + 1)
    with pytest.raises(StoredWeightsError, match=r"config\.json has 104857601 bytes, the maximum is 104857600"):
        read_stored_weights(str(folder), "policy", None)


def test_a_file_that_was_cut_is_refused(folder: Path) -> None:
    (file,) = folder.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(StoredWeightsError, match="ends before"):
        read_stored_weights(str(folder), "policy", None)


def test_a_folder_that_is_not_there_or_holds_none_is_refused(tmp_path: Path) -> None:
    for uri in (tmp_path, tmp_path / "nothing", "nosuchscheme://x"):
        with pytest.raises(StoredWeightsError):
            read_stored_weights(str(uri), "policy", None)
