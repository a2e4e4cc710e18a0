"""What the front knows of the model without loading it: files, sizes, digests. No torch.

Digests, the same for every service of a policy:

    tokenizer_digest      SHA-256 of tokenizer.json as canonical JSON (sorted keys, no white space)
    chat_template_digest  SHA-256 of the chat template's text: chat_template.jinja, else tokenizer_config.json's, else ""
    architecture_digest   SHA-256 of canonical JSON {"tensors": {name: shape}, "tied_embeddings": bool}, of the tensors that
                          the folder stores

The learner's own:

    weights_digest        SHA-256 of a line "name SHA-256" for config.json and for each *.safetensors, by name. All bytes are
                          read, at 0.4 to 2 GB/s of one core; ranks then find the files in memory
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from troupe_learner.disk import writing
from troupe_learner.weight_file import BadWeightFile, stored_tensors

_OUTPUT_PROJECTION: Final = "lm_head.weight"
_WEIGHT_SUFFIXES: Final = frozenset({".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack"})
_DOWNLOADED: Final = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"]


class BadModel(ValueError):
    """The model cannot be trained as it is; the text says what is missing."""


@dataclass(frozen=True)
class ModelFolder:
    """A model as it lies on disk. `name` is what the settings called it."""

    name: str
    folder: Path
    vocabulary_size: int
    context_length: int
    tied_embeddings: bool
    tokenizer_digest: str
    chat_template_digest: str
    shapes: Mapping[str, tuple[int, ...]]
    architecture_digest: str
    weights_digest: str

    def mismatch(self, shapes: Mapping[str, tuple[int, ...]], tied: bool) -> str | None:
        """How loaded tensors differ from the stored ones, if they do: an export must carry the stored names."""
        if tied != self.tied_embeddings:
            return (
                f"embeddings are {'tied' if tied else 'untied'} when loaded, {self.folder}/config.json says otherwise"
            )
        stored = {name: shape for name, shape in self.shapes.items() if not (tied and name == _OUTPUT_PROJECTION)}
        for name in sorted(stored.keys() | shapes.keys()):
            if stored.get(name) != shapes.get(name):
                return f"{name} is {shapes.get(name)} when loaded and {stored.get(name)} in {self.folder}"
        return None

    def copy_definition(self, target: Path) -> None:
        """Copies all that is not weights (config, tokenizer, template), so that the copy opens by itself.

        Raises:
            Exhausted, FailedPrecondition: a file cannot be written.
        """
        for source in sorted(self.folder.iterdir()):
            is_weights = source.suffix in _WEIGHT_SUFFIXES or source.name.endswith(".index.json")
            if source.is_file() and not is_weights and source.name[0] != ".":
                with writing(target / source.name):
                    shutil.copyfile(source, target / source.name)


def open_model(name: str) -> ModelFolder:
    """The folder `name`, or the snapshot of that hub id. Reads all of its weights: call it off the event loop.

    Raises:
        BadModel: it cannot be had, or its files do not make a model that can be trained.
    """
    folder = Path(name) if Path(name).is_dir() else _downloaded(name)
    config = _config(folder)
    tied = bool(config.get("tie_word_embeddings", False))
    tokenizer = folder / "tokenizer.json"
    if not tokenizer.is_file():
        raise BadModel(f"{folder} has no tokenizer.json: services could not tell that they share a tokenizer")
    shapes = _shapes(folder)
    return ModelFolder(
        name=name,
        folder=folder.resolve(),
        vocabulary_size=int(config["vocab_size"]),
        context_length=int(config["max_position_embeddings"]),
        tied_embeddings=tied,
        tokenizer_digest=_canonical_sha256(json.loads(tokenizer.read_text(encoding="utf-8"))),
        chat_template_digest=hashlib.sha256(_chat_template(folder).encode()).hexdigest(),
        shapes=shapes,
        architecture_digest=architecture_digest(shapes, tied),
        weights_digest=_weights_digest(folder),
    )


def architecture_digest(shapes: Mapping[str, Sequence[int]], tied: bool) -> str:
    """See the module's docstring."""
    listed = {name: list(shape) for name, shape in shapes.items()}
    return _canonical_sha256({"tensors": listed, "tied_embeddings": tied})


def _downloaded(name: str) -> Path:
    # Imported here: a second of start-up that a model folder does not need.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=_DOWNLOADED))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise BadModel(f"{name!r} is neither a folder nor a hub id that can be had: {error}") from error


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise BadModel(f"{folder} has no config.json: name a Hugging Face model folder")
    config: dict[str, Any] = json.loads(path.read_text())
    for key in ("vocab_size", "max_position_embeddings"):
        if not isinstance(config.get(key), int):
            raise BadModel(f"{path} has no {key}: the learner trains causal text models only")
    return config


def _chat_template(folder: Path) -> str:
    own_file, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if own_file.is_file():
        return own_file.read_text(encoding="utf-8")
    template = json.loads(config.read_text(encoding="utf-8")).get("chat_template") if config.is_file() else None
    return template if isinstance(template, str) else ""


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise BadModel(f"{folder} has no *.safetensors: convert its weights with save_pretrained")
    try:
        return _all_shapes(files)
    except BadWeightFile as error:
        raise BadModel(str(error)) from error


def _all_shapes(files: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    return {each.spec.name: each.spec.shape for file in files for each in stored_tensors(file)}


def _weights_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in [folder / "config.json", *sorted(folder.glob("*.safetensors"))]:
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def _canonical_sha256(value: object) -> str:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
