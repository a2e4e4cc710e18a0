"""The digest separates what differs, joins what is equal, and its bytes are pinned."""

import hashlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from troupe.v1.learner_pb2 import Sequence
from troupe_contracts import batch
from troupe_contracts.errors import InvalidArgument

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
tokens = st.lists(st.integers(0, 2**32 - 1), max_size=6)
sequences = st.builds(
    Sequence,
    id=st.text(max_size=5),
    token_ids=tokens,
    weights=st.lists(floats, max_size=6),
    advantages=st.lists(floats, max_size=6),
    behaviour_log_probs=st.lists(floats, max_size=6),
)


def well_formed() -> Sequence:
    return Sequence(
        id="c1",
        token_ids=[5, 6, 7],
        weights=[0, 0.25, 0.25],
        advantages=[0, 1, 1],
        behaviour_log_probs=[0, -0.5, -2],
    )


def test_the_bytes_are_those_of_the_documented_layout() -> None:
    sequence = well_formed()
    layout = b"troupe.batch.v1\n"
    layout += struct.pack("<I", 2) + b"c1"
    layout += struct.pack("<I3I", 3, 5, 6, 7)
    layout += struct.pack("<I3f", 3, 0, 0.25, 0.25)
    layout += struct.pack("<I3f", 3, 0, 1, 1)
    layout += struct.pack("<I3f", 3, 0, -0.5, -2)
    assert batch.digest([sequence]) == hashlib.sha256(layout).digest()


def test_the_digest_of_a_known_batch_never_changes() -> None:
    assert batch.digest([well_formed()]).hex() == ("8d24743ccd4b8a90cfd185688d565dfd3b829181ffb0cc4262d453b8b0ef34f9")


@given(st.lists(sequences, max_size=4))
def test_a_batch_that_crossed_the_wire_has_the_same_digest(sent: list[Sequence]) -> None:
    received = [Sequence.FromString(sequence.SerializeToString()) for sequence in sent]
    assert batch.digest(received) == batch.digest(sent)


@given(st.lists(sequences, max_size=3), st.lists(sequences, max_size=3))
def test_two_batches_have_one_digest_only_if_they_are_equal(one: list[Sequence], other: list[Sequence]) -> None:
    # Bytes, not ==: 0.0 and -0.0 compare equal and are different weights on the wire.
    def content(each: list[Sequence]) -> list[bytes]:
        return [sequence.SerializeToString(deterministic=True) for sequence in each]

    assert (batch.digest(one) == batch.digest(other)) == (content(one) == content(other))


def test_order_matters_to_the_digest() -> None:
    first, second = Sequence(id="a"), Sequence(id="b")
    assert batch.digest([first, second]) != batch.digest([second, first])


def test_a_well_formed_sequence_is_accepted() -> None:
    batch.validate(well_formed())


@pytest.mark.parametrize(
    ("change", "field", "said"),
    [
        ({"id": ""}, "sequences[2].id", "empty"),
        ({"weights": [0, 1]}, "sequences[2].weights", "2 values for 3 tokens in c1"),
        ({"advantages": []}, "sequences[2].advantages", "0 values for 3 tokens"),
        (
            {"behaviour_log_probs": [0, float("nan"), 0]},
            "sequences[2].behaviour_log_probs",
            "nan at position 1",
        ),
        ({"advantages": [0, 0, float("inf")]}, "sequences[2].advantages", "inf at position 2"),
        ({"weights": [1, 1, 1]}, "sequences[2].weights", "position 0"),
    ],
)
def test_a_malformed_sequence_is_refused_by_the_name_of_its_field(
    change: dict[str, object], field: str, said: str
) -> None:
    values = {
        "id": "c1",
        "token_ids": [5, 6, 7],
        "weights": [0, 1, 1],
        "advantages": [0, 1, 1],
        "behaviour_log_probs": [0, -1, -1],
    }
    with pytest.raises(InvalidArgument, match=said) as caught:
        batch.validate(Sequence(**(values | change)), "sequences[2]")  # type: ignore[arg-type]
    assert caught.value.violations[0][0] == field


def test_a_sequence_without_tokens_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="token_ids"):
        batch.validate(Sequence(id="c1"))
