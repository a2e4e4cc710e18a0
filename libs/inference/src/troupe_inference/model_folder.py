"""What can be known of a model from its folder, without loading it.

The digests are the ones of `PolicyInfo` and `LearnerInfo`; two services of one policy must agree on them:

- tokenizer: SHA-256 of `tokenizer.json` as canonical JSON (sorted keys, no white space);
- chat template: SHA-256 of the template's text;
- architecture: SHA-256 of canonical JSON `{"tensors": {name: shape}, "tied_embeddings": bool}`.
"""

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

# safetensors: an unsigned 64-bit length, then that many bytes of JSON.
_HEADER_LENGTH: Final = struct.Struct("<Q")


class ModelFolderError(ValueError):
    """A model folder that lacks something, or holds something that cannot be read."""


@dataclass(frozen=True, slots=True)
class TensorShape:
    """One tensor of a set of weights: its shape and safetensors' name of its type."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A Hugging Face model folder, described."""

    path: Path
    # What the user named: the folder or a hub id.
    name: str
    config: Mapping[str, Any]
    # Text of the chat template, empty if the folder has none.
    chat_template: str
    tensors: Mapping[str, TensorShape]

    @property
    def tokenizer_file(self) -> Path:
        return self.path / "tokenizer.json"

    @property
    def tied_embeddings(self) -> bool:
        """True when the output projection is the input embedding."""
        return bool(self.config.get("tie_word_embeddings", False))

    @property
    def vocabulary_size(self) -> int:
        return int(self.config["vocab_size"])

    @property
    def max_context_length(self) -> int:
        return int(self.config["max_position_embeddings"])

    @property
    def dtype(self) -> str:
        """The type that the weights were saved in, such as "float32"."""
        return str(self.config.get("dtype") or self.config.get("torch_dtype") or "float32")


def open_model(name: str) -> ModelFolder:
    """Describes a folder, or a hub id (downloaded unless it is in the cache).

    Raises:
        ModelFolderError: there is no such model, or a file is missing or broken.
    """
    path = Path(name) if Path(name).is_dir() else _download(name)
    for required in ("config.json", "tokenizer.json"):
        if not (path / required).is_file():
            raise ModelFolderError(f"{path} has no {required}: a model is a Hugging Face folder with one")
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    tensors: dict[str, TensorShape] = {}
    for file in sorted(path.glob("*.safetensors")):
        tensors |= read_header(file)
    if not tensors:
        raise ModelFolderError(f"{path} has no weights: a model has at least one *.safetensors file")
    return ModelFolder(path, name, config, _chat_template(path), tensors)


def read_header(file: Path) -> dict[str, TensorShape]:
    """Names, shapes and types of the tensors in a safetensors file.

    Raises:
        ModelFolderError: the file has no readable header.
    """
    with file.open("rb") as stream:
        prefix = stream.read(_HEADER_LENGTH.size)
        if len(prefix) < _HEADER_LENGTH.size:
            raise ModelFolderError(f"{file} is cut short: copy it again")
        header = stream.read(_HEADER_LENGTH.unpack(prefix)[0])
    try:
        entries = json.loads(header)
    except ValueError as error:
        raise ModelFolderError(f"{file} has no readable safetensors header: {error}") from error
    return {
        name: TensorShape(tuple(entry["shape"]), entry["dtype"])
        for name, entry in entries.items()
        if name != "__metadata__"
    }


def tokenizer_digest(model: ModelFolder) -> str:
    """SHA-256, hex, of the tokenizer's file whatever its layout."""
    return _sha256(_canonical(json.loads(model.tokenizer_file.read_text(encoding="utf-8"))))


def chat_template_digest(model: ModelFolder) -> str:
    """SHA-256, hex, of the template's text."""
    return _sha256(model.chat_template.encode())


def architecture_digest(tensors: Mapping[str, tuple[int, ...]], tied_embeddings: bool) -> str:
    """SHA-256, hex, of names, shapes and whether the embeddings are tied."""
    shapes = {name: list(shape) for name, shape in tensors.items()}
    return _sha256(_canonical({"tensors": shapes, "tied_embeddings": tied_embeddings}))


def _chat_template(path: Path) -> str:
    own_file = path / "chat_template.jinja"
    if own_file.is_file():
        return own_file.read_text(encoding="utf-8")
    tokenizer_config = path / "tokenizer_config.json"
    if not tokenizer_config.is_file():
        return ""
    template = json.loads(tokenizer_config.read_text(encoding="utf-8")).get("chat_template")
    return template if isinstance(template, str) else ""


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.jinja", "*.safetensors"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise ModelFolderError(f"{name!r} is neither a folder nor a hub id that can be had: {error}") from error


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
