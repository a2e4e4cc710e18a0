"""Exported weights: an export is whole for whoever has it, whatever becomes of its file's name."""

import gc
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from troupe_learner.exports import PIECE_BYTES, describe, stream
from troupe_learner.ledger import Version


def descriptors() -> int:
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_an_export_that_is_forgotten_before_its_first_piece_is_read_whole(tmp_path: Path) -> None:
    file = tmp_path / "1.safetensors"
    weights = {"a": np.ones((4, 3), np.float32), "b": np.arange(PIECE_BYTES // 2, dtype=np.float32)}
    save_file(weights, file)
    export = describe(Version("start", 1), file)
    pieces = stream(export)
    file.unlink()
    found = {tensor.spec.name: b"" for tensor, _ in export.tensors}
    async for name, offset, piece in pieces:
        assert offset == len(found[name])
        found[name] += piece
    assert found == {name: value.tobytes() for name, value in weights.items()}


async def test_a_file_that_is_forgotten_is_closed_once_nobody_reads_it(tmp_path: Path) -> None:
    save_file({"a": np.ones(4, np.float32)}, tmp_path / "1.safetensors")
    opened = descriptors()
    export = describe(Version("start", 1), tmp_path / "1.safetensors")
    assert [each async for each in stream(export)]
    del export
    assert descriptors() == opened
