"""Rollout trees and batches: ids, arrays, files."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from troupe.v1 import common_pb2, transcript_pb2
from troupe_contracts.batch import digest
from troupe_orchestrator.rollout.conversations import conversation_payload, token_record
from troupe_orchestrator.store.trees import (
    SchemaMismatchError,
    TreesDamagedError,
    read_designs,
    read_trees,
    write_trees,
)
from troupe_orchestrator.training.batch import TrainingSequence, read_batch, write_batch
from troupe_orchestrator.tree import (
    DesignPayload,
    Node,
    NodeKind,
    TaskPayload,
    Tree,
    node_id,
    seed_of,
)


def transcript() -> transcript_pb2.Transcript:
    version = common_pb2.PolicyVersion(lineage="a", number=3)
    return transcript_pb2.Transcript(
        token_ids=[5, 6, 7, 8, 9],
        runs=[
            transcript_pb2.TokenRun(kind=transcript_pb2.TOKEN_RUN_KIND_INSERTED, length=2),
            transcript_pb2.TokenRun(
                kind=transcript_pb2.TOKEN_RUN_KIND_GENERATED,
                length=2,
                version=version,
                log_probs=[-0.5, -0.25],
                stop_reason=transcript_pb2.STOP_REASON_LENGTH,
            ),
            transcript_pb2.TokenRun(kind=transcript_pb2.TOKEN_RUN_KIND_INSERTED, length=1),
        ],
        messages=[
            common_pb2.ChatMessage(role=common_pb2.MESSAGE_ROLE_USER, content="größe?"),
            common_pb2.ChatMessage(role=common_pb2.MESSAGE_ROLE_ASSISTANT, content="3"),
        ],
    )


def tree() -> Tree:
    task = Node("t", "", NodeKind.TASK, 0, TaskPayload("task-1", "calc", "math", "What is 1 + 2?"))
    design = Node("d", "t", NodeKind.DESIGN, 0, DesignPayload("text", "script", (), "single"))
    conversation = Node(
        "c", "d", NodeKind.CONVERSATION, 0, conversation_payload("designer", "designer", "", transcript()),
        tokens=token_record(transcript()),
    )  # fmt: skip
    return Tree((task, design, conversation))


def test_inserted_tokens_have_no_mask_and_no_log_probability() -> None:
    tokens = token_record(transcript())
    assert tokens is not None
    assert tokens.generated_mask().tolist() == [False, False, True, True, False]
    assert tokens.aligned_log_probs().tolist() == [0, 0, -0.5, -0.25, 0]
    assert tokens.run_versions == ("", "a:3", "")


def test_a_transcript_without_tokens_gives_no_token_record() -> None:
    assert token_record(transcript_pb2.Transcript(messages=transcript().messages)) is None


def test_trees_come_back_from_their_file_as_they_were(tmp_path: Path) -> None:
    file = tmp_path / "trees.parquet"
    write_trees(file, [tree(), tree()])
    first, second = read_trees(file)
    assert [node.payload for node in first.nodes] == [node.payload for node in tree().nodes]
    ours, theirs = tree().nodes[2].tokens, second.nodes[2].tokens
    assert ours is not None
    assert theirs is not None
    assert np.array_equal(ours.token_ids, theirs.token_ids)
    assert ours.log_probs.tobytes() == theirs.log_probs.tobytes()
    assert not list(tmp_path.glob(".*"))


def test_a_file_of_another_schema_version_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "trees.parquet"
    write_trees(file, [tree()])
    table = pq.read_table(file)
    pq.write_table(table.replace_schema_metadata({"troupe.schema": "99"}), file)
    with pytest.raises(SchemaMismatchError, match="schema version 99"):
        read_trees(file)


def test_a_file_that_is_not_the_one_that_was_written_is_refused_by_name(tmp_path: Path) -> None:
    file, other = tmp_path / "trees.parquet", tmp_path / "other.parquet"
    digest_of_file = write_trees(file, [tree()])
    write_trees(other, [tree(), tree()])
    assert len(read_trees(file, digest_of_file)) == 1
    assert [design.script for _, design in read_designs(file, digest_of_file)] == ["script"]
    other.rename(file)
    for read in (read_trees, read_designs):
        with pytest.raises(TreesDamagedError, match=f"{file} is not what was written"):
            read(file, digest_of_file)


def test_a_file_from_before_digests_were_kept_is_read_unchecked(tmp_path: Path) -> None:
    file = tmp_path / "trees.parquet"
    write_trees(file, [tree()])
    assert len(read_trees(file, "")) == 1


def test_node_ids_depend_on_every_part_of_the_path() -> None:
    parts = ("run", 1, "task", "design/0", 0)
    others = [
        ("run2", *parts[1:]),
        (*parts[:1], 2, *parts[2:]),
        (*parts[:2], "x", *parts[3:]),
        (*parts[:4], 1),
    ]
    assert len({node_id(*parts), *(node_id(*other) for other in others)}) == 5  # type: ignore[arg-type]


@given(st.integers(), st.text())
def test_seeds_fit_what_an_engine_takes(seed: int, identifier: str) -> None:
    assert 0 <= seed_of(seed, identifier) < 2**31


floats = st.floats(-100, 100, width=32)


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 500), floats, floats, floats), min_size=1, max_size=9),
        min_size=1,
        max_size=4,
    )
)
def test_a_sealed_batch_has_the_same_digest_when_it_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[tuple[int, float, float, float]]]
) -> None:
    sequences = [
        TrainingSequence(
            str(number),
            np.array([row[0] for row in sequence], dtype=np.int32),
            *(np.array([row[column] for row in sequence], dtype=np.float32) for column in (1, 2, 3)),
        )
        for number, sequence in enumerate(rows)
    ]
    file = tmp_path_factory.mktemp("batch") / "batch.parquet"
    write_batch(file, sequences)
    before = digest(sequence.to_message() for sequence in sequences)
    assert digest(sequence.to_message() for sequence in read_batch(file)) == before
