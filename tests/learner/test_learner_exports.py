"""An export's file while it is streamed: its name may go at any moment."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from troupe_contracts.errors import FailedPrecondition
from troupe_learner.exports import describe, opened, stream
from troupe_learner.ledger import Version


async def test_it_is_read_to_its_end_once_it_is_open_and_is_not_current_where_it_is_gone_before(
    tiny_model: Callable[[bool], Path], tmp_path: Path
) -> None:
    path = tmp_path / "export.safetensors"
    path.write_bytes((tiny_model(False) / "model.safetensors").read_bytes())
    export = describe(Version("first", 3), path)
    found: dict[str, bytes] = {}
    with await opened(export) as file:
        path.unlink()
        async for name, _, piece in stream(export, file):
            found[name] = found.get(name, b"") + piece
    assert [hashlib.sha256(each).digest() for each in found.values()] == [digest for _, digest in export.tensors]
    with pytest.raises(FailedPrecondition, match="version first/3: is no longer current"):
        await opened(export)
