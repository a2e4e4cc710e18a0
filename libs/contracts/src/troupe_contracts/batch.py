"""The digest of a batch of sequences, and what makes a sequence well formed.

Sender and learner both compute the digest; a step is applied once per digest, so the bytes below never change
without a new header. All integers and floats are little-endian.

    header          16 bytes: b"troupe.batch.v1\\n"
    per sequence, in order:
      id            u32 number of UTF-8 bytes, then the bytes
      token_ids     u32 count, then count x u32
      weights       u32 count, then count x f32 (IEEE 754)
      advantages    u32 count, then count x f32
      behaviour_log_probs
                    u32 count, then count x f32

Every part carries its own length, so two different lists of sequences never give the same bytes.
"""

import hashlib
import math
import struct
import sys
from array import array
from collections.abc import Iterable, Sequence
from typing import Final

from troupe.v1 import learner_pb2

from troupe_contracts.errors import InvalidArgument

HEADER: Final = b"troupe.batch.v1\n"
_LENGTH: Final = struct.Struct("<I")


def digest(sequences: Iterable[learner_pb2.Sequence]) -> bytes:
    """SHA-256 (32 bytes) over the sequences in order, in the layout of this module's docstring."""
    hasher = hashlib.sha256(HEADER)
    for sequence in sequences:
        identity = sequence.id.encode()
        hasher.update(_LENGTH.pack(len(identity)) + identity)
        hasher.update(_packed("I", sequence.token_ids))
        for values in (sequence.weights, sequence.advantages, sequence.behaviour_log_probs):
            hasher.update(_packed("f", values))
    return hasher.digest()


def validate(sequence: learner_pb2.Sequence, field: str = "sequence") -> None:
    """Checks one sequence; `field` is what an error calls it, such as "sequences[3]".

    Raises:
        InvalidArgument: empty id or tokens, arrays of unequal length, a weight at position 0 (nothing
            predicts the first token), or a value that is not finite.
    """
    if not sequence.id:
        raise InvalidArgument(f"{field}.id", "is empty: send the conversation's tree id")
    count = len(sequence.token_ids)
    if count == 0:
        raise InvalidArgument(f"{field}.token_ids", f"is empty in {sequence.id}: leave such a sequence out")
    named: tuple[tuple[str, Sequence[float]], ...] = (
        ("weights", sequence.weights),
        ("advantages", sequence.advantages),
        ("behaviour_log_probs", sequence.behaviour_log_probs),
    )
    for name, values in named:
        if len(values) != count:
            raise InvalidArgument(
                f"{field}.{name}",
                f"has {len(values)} values for {count} tokens in {sequence.id}: send one per token",
            )
        bad = next((index for index, value in enumerate(values) if not math.isfinite(value)), None)
        if bad is not None:
            raise InvalidArgument(
                f"{field}.{name}", f"is {values[bad]} at position {bad} of {sequence.id}: send finite values"
            )
    if sequence.weights[0] != 0:
        raise InvalidArgument(
            f"{field}.weights",
            f"is {sequence.weights[0]:g} at position 0 of {sequence.id}: nothing predicts the first token, send 0",
        )


def _packed(code: str, values: Sequence[float]) -> bytes:
    packed = array(code, values)
    if packed.itemsize != _LENGTH.size:
        raise TypeError(f"array type {code!r} has {packed.itemsize} bytes on this platform, the layout needs 4")
    if sys.byteorder == "big":
        packed.byteswap()
    return _LENGTH.pack(len(packed)) + packed.tobytes()
