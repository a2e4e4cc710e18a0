"""Exported weights: one file per version in the work folder, with the manifest that describes it.

Made when first asked for and kept until another version is asked for, or its generation of ranks is lost. The open file
outlives its name: whoever has an export has its bytes.
"""

import asyncio
import os
import weakref
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from troupe_learner.ledger import Version
from troupe_learner.weight_file import StoredTensor, sha256_of, stored_tensors

PIECE_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class Export:
    """A version's weights on disk, with the SHA-256 of each tensor in file order."""

    version: Version
    path: Path
    tensors: tuple[tuple[StoredTensor, bytes], ...]
    descriptor: int
    """Of the open file; closed when nobody has the export any more."""


def describe(version: Version, path: Path) -> Export:
    """Opens the file and hashes what is in it. Slow: call it off the event loop."""
    tensors = tuple((each, sha256_of(path, each.start, each.spec.byte_size)) for each in stored_tensors(path))
    export = Export(version, path, tensors, os.open(path, os.O_RDONLY))
    weakref.finalize(export, os.close, export.descriptor)
    return export


async def stream(export: Export) -> AsyncIterator[tuple[str, int, bytes]]:
    """(tensor, offset, bytes): tensors in order, pieces in order, at most 1 MiB each."""
    for tensor, _ in export.tensors:
        for offset in range(0, tensor.spec.byte_size, PIECE_BYTES):
            size = min(PIECE_BYTES, tensor.spec.byte_size - offset)
            piece = await asyncio.to_thread(os.pread, export.descriptor, size, tensor.start + offset)
            yield tensor.spec.name, offset, piece
