"""Files of a command's ranks on another machine: which ones, and whole or not at all."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from learning.disk import small_disk
from troupe.v1 import gang_pb2
from troupe_learner.carrying import PIECE_BYTES, Arriving, at, inside, pieces, read_by, written_by

RANKS = range(2, 4)


def test_ranks_read_the_batch_the_sequences_or_their_parts_of_a_checkpoint() -> None:
    assert read_by({"command": "train", "batch": "/w/ab.npz"}, RANKS, True) == {"batch": Path("/w/ab.npz")}
    assert read_by({"command": "score", "sequences": "/w/1.npz"}, RANKS, True) == {"sequences": Path("/w/1.npz")}
    load = {"command": "load", "folder": "/c"}
    own = {f"state/rank-{rank}.safetensors": Path(f"/c/state/rank-{rank}.safetensors") for rank in RANKS}
    weights = {"model/model.safetensors": Path("/c/model/model.safetensors")}
    assert read_by(load, RANKS, True) == own | weights
    assert read_by(load, RANKS, False) == own, "a share of the weights is part of a rank's own file"
    for command in ("start", "reset", "export", "save"):
        assert read_by({"command": command, "folder": "/c", "weights": "/w"}, RANKS, True) == {}


def test_a_rank_writes_its_part_of_a_checkpoint_and_nothing_else() -> None:
    assert written_by({"command": "save", "folder": "/c"}, 3) == ("state/rank-3.safetensors",)
    assert [written_by({"command": each}, 3) for each in ("train", "score", "load", "export")] == [()] * 4


def test_a_command_names_files_where_they_are_on_the_agents_machine() -> None:
    here = Path("/agent")
    command = {"command": "train", "batch": "/w/ab.npz", "optimization": {"mini_batches": 2}}
    assert at(here, command) == {**command, "batch": "/agent/batch"}
    assert at(here, {"command": "load", "folder": "/c"}) == {"command": "load", "folder": "/agent"}
    # What is read under a name lies where the command says.
    for sent in (command, {"command": "load", "folder": "/c"}):
        for name in read_by(sent, RANKS, True):
            moved = at(here, sent)
            assert inside(here, name) in (Path(moved.get("batch", "/")), Path(moved.get("folder", "/")) / name)


@pytest.mark.parametrize("name", ["/etc/passwd", "../escape", "state/../../escape", ""])
def test_a_name_never_leads_out_of_the_folder(name: str) -> None:
    with pytest.raises(ValueError, match="no name of a file"):
        inside(Path("/agent"), name)


# The clock says nothing here: the cores are shared.
@settings(deadline=None, max_examples=20)
@given(
    size=st.one_of(st.integers(0, 3), st.sampled_from([PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES]))
)
async def test_a_file_arrives_as_it_was_sent(size: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("carried")
    (folder / "sent").write_bytes((b"0123456789" * (size // 10 + 1))[:size])
    arriving = Arriving(folder / "state" / "received", "the agent")
    over = [await arriving.take(piece) async for piece in pieces("received", folder / "sent", "the front", 3)]
    assert over == [False] * (len(over) - 1) + [True]
    assert arriving.problem is None
    assert (folder / "state" / "received").read_bytes() == (folder / "sent").read_bytes()


async def test_a_file_that_cannot_be_read_is_told_of_in_its_one_piece(tmp_path: Path) -> None:
    (piece,) = [each async for each in pieces("batch", tmp_path / "missing", "the front", 3)]
    assert piece.last
    assert "missing on the front" in piece.problem.message
    arriving = Arriving(tmp_path / "received", "the agent")
    assert await arriving.take(piece)
    assert arriving.problem == piece.problem


async def test_a_full_disk_is_a_problem_of_the_file_that_names_the_machine(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        arriving = Arriving(disk.path / "batch", "the agent")
        for last in (False, True):
            piece = gang_pb2.FilePiece(name="batch", data=bytes(PIECE_BYTES), last=last)
            assert await arriving.take(piece) is last
        assert arriving.problem is not None
        assert arriving.problem.code == "RESOURCE_EXHAUSTED"
        assert "batch on the agent cannot be written (No space left on device)" in arriving.problem.message


async def test_what_nobody_wants_any_more_is_not_written(tmp_path: Path) -> None:
    arriving = Arriving(tmp_path / "batch", "the agent")
    await arriving.take(gang_pb2.FilePiece(name="batch", data=b"one"))
    await arriving.close()
    assert await arriving.take(gang_pb2.FilePiece(name="batch", data=b"two", last=True))
    assert (tmp_path / "batch").read_bytes() == b"one"
