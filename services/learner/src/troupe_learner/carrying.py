"""Files that a command's ranks on another machine read and write, and how they pass: in pieces, whole or not at all.

The front's paths mean nothing there. An agent has one folder for the command under way, with fixed names in it; it is
emptied after each. So no folder has to be shared: batches and sequences go out, each rank's part of a checkpoint goes out
or comes back, and weights and scores are written by rank 0, which is the front's neighbour.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Final

from troupe.v1 import gang_pb2

from troupe_learner.channel import Message
from troupe_learner.checkpoint_layout import MODEL_WEIGHTS, state_file
from troupe_learner.disk import described, is_full

PIECE_BYTES: Final = 1 << 20
_BATCH: Final = "batch"
_SEQUENCES: Final = "sequences"


def read_by(command: Message, ranks: range, replicated: bool) -> Mapping[str, Path]:
    """Name on the agent, and file of the front, of what ranks read in a command.

    Args:
        replicated: whether ranks hold weights whole, so that each reads them all.
    """
    match command["command"]:
        case "train":
            return {_BATCH: Path(command["batch"])}
        case "score":
            return {_SEQUENCES: Path(command["sequences"])}
        case "load":
            names = [*map(state_file, ranks), *([MODEL_WEIGHTS] if replicated else [])]
            return {name: Path(command["folder"]) / name for name in names}
    return {}


def written_by(command: Message, rank: int) -> tuple[str, ...]:
    """Names of what a rank other than 0 writes in a command, in its folder."""
    return (state_file(rank),) if command["command"] == "save" else ()


def at(folder: Path, command: Message) -> Message:
    """The command for ranks whose files lie in `folder`."""
    places = {"batch": folder / _BATCH, "sequences": folder / _SEQUENCES, "folder": folder}
    return {key: str(places[key]) if key in places else value for key, value in command.items()}


def problem_of(path: Path, error: OSError, where: str) -> gang_pb2.FileProblem:
    """A failure as the ranks' own refusals put it."""
    code = "RESOURCE_EXHAUSTED" if is_full(error) else "FAILED_PRECONDITION"
    return gang_pb2.FileProblem(code=code, message=f"{path} on {where} {described(error)}")


async def pieces(name: str, path: Path, where: str, generation: int) -> AsyncGenerator[gang_pb2.FilePiece, None]:
    """A file of this side in pieces, the last one marked; where it cannot be read, that one says so."""
    try:
        file = await asyncio.to_thread(path.open, "rb")
        try:
            data = await asyncio.to_thread(file.read, PIECE_BYTES)
            while following := await asyncio.to_thread(file.read, PIECE_BYTES):
                yield gang_pb2.FilePiece(generation=generation, name=name, data=data)
                data = following
        finally:
            await asyncio.to_thread(file.close)
    except OSError as error:
        problem = problem_of(path, error, where)
        yield gang_pb2.FilePiece(generation=generation, name=name, problem=problem, last=True)
    else:
        yield gang_pb2.FilePiece(generation=generation, name=name, data=data, last=True)


class Arriving:
    """A file that comes in pieces."""

    def __init__(self, path: Path, where: str) -> None:
        self.problem: gang_pb2.FileProblem | None = None
        """Why it is none, if it is none."""
        self._path = path
        self._where = where
        self._file: IO[bytes] | None = None
        self._turn = asyncio.Lock()
        self._closed = False

    async def take(self, piece: gang_pb2.FilePiece) -> bool:
        """Writes a piece, unless there is a problem or nobody wants it any more; whether it was the last one."""
        async with self._turn:
            if piece.HasField("problem"):
                self.problem = piece.problem
            if self.problem is None and not self._closed:
                try:
                    await asyncio.to_thread(self._write, piece)
                except OSError as error:
                    self.problem = problem_of(self._path, error, self._where)
        if piece.last:
            await self.close()
        return piece.last

    async def close(self) -> None:
        """What comes after this is not wanted. Safe to call again."""
        async with self._turn:
            self._closed = True
            if self._file is not None:
                file, self._file = self._file, None
                try:
                    await asyncio.to_thread(file.close)
                except OSError as error:
                    self.problem = problem_of(self._path, error, self._where)

    def _write(self, piece: gang_pb2.FilePiece) -> None:
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("wb", buffering=0)
        rest = memoryview(piece.data)
        while rest:
            rest = rest[self._file.write(rest) :]


def inside(folder: Path, name: str) -> Path:
    """The path of a name that came from elsewhere.

    Raises:
        ValueError: it leads out of the folder.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError(f"{name!r} is no name of a file in {folder}")
    return folder / path
