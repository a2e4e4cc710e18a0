"""Exported weights: one file per version in the work folder, with the manifest that describes it.

Made when first asked for and kept until another version is asked for. A stream that still reads an older file goes on:
the open file outlives its name.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from troupe_contracts.errors import FailedPrecondition

from troupe_learner.ledger import Version
from troupe_learner.weight_file import StoredTensor, sha256_of, stored_tensors

PIECE_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class Export:
    """A version's weights on disk, with the SHA-256 of each tensor in file order."""

    version: Version
    path: Path
    tensors: tuple[tuple[StoredTensor, bytes], ...]


def describe(version: Version, path: Path) -> Export:
    """Hashes what is in the file. Slow: call it off the event loop."""
    return Export(
        version,
        path,
        tuple((each, sha256_of(path, each.start, each.spec.byte_size)) for each in stored_tensors(path)),
    )


async def opened(export: Export) -> BinaryIO:
    """The file, whatever becomes of its name from now on.

    Raises:
        FailedPrecondition: the version is no longer current, and its file is gone.
    """
    try:
        return await asyncio.to_thread(export.path.open, "rb")
    except FileNotFoundError as error:
        raise FailedPrecondition(f"version {export.version}", "is no longer current, export the one that is") from error


async def stream(export: Export, file: BinaryIO) -> AsyncIterator[tuple[str, int, bytes]]:
    """(tensor, offset, bytes) of an open export: tensors in order, pieces in order, at most 1 MiB each."""
    for tensor, _ in export.tensors:
        await asyncio.to_thread(file.seek, tensor.start)
        for offset in range(0, tensor.spec.byte_size, PIECE_BYTES):
            size = min(PIECE_BYTES, tensor.spec.byte_size - offset)
            yield tensor.spec.name, offset, await asyncio.to_thread(file.read, size)
