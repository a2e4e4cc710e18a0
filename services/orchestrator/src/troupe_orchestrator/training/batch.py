"""From credited trees to what a learner gets: token sequences with per-token advantages and weights.

Pure. Only generated tokens of the roles in training get a weight; a role that is not trained sends nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from troupe.v1 import learner_pb2

from troupe_orchestrator.store.files import write_table

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("weights", pa.list_(pa.float32())),
        ("advantages", pa.list_(pa.float32())),
        ("behaviour_log_probs", pa.list_(pa.float32())),
    ],
    metadata={"troupe.schema": "1"},
)


@dataclass(frozen=True, slots=True)
class TrainingSequence:
    """One conversation to train on. All arrays have the shape [tokens]."""

    id: str
    token_ids: NDArray[np.int32]
    weights: NDArray[np.float32]
    advantages: NDArray[np.float32]
    behaviour_log_probs: NDArray[np.float32]

    def to_message(self) -> learner_pb2.Sequence:
        return learner_pb2.Sequence(
            id=self.id,
            token_ids=self.token_ids.tolist(),
            weights=self.weights.tolist(),
            advantages=self.advantages.tolist(),
            behaviour_log_probs=self.behaviour_log_probs.tolist(),
        )


def write_batch(path: Path, sequences: Sequence[TrainingSequence]) -> None:
    """Write a sealed batch, durably."""
    columns = [
        pa.array([sequence.id for sequence in sequences], type=pa.string()),
        *(
            pa.array([getattr(sequence, field.name) for sequence in sequences], type=field.type)
            for field in list(SCHEMA)[1:]
        ),
    ]
    write_table(path, pa.Table.from_arrays(columns, schema=SCHEMA))


def read_batch(path: Path) -> list[TrainingSequence]:
    """Read a sealed batch back, bit for bit."""
    table = pq.ParquetFile(path).read()
    columns = {name: table.column(name) for name in table.schema.names}
    return [
        TrainingSequence(
            id=columns["id"][row].as_py(),
            token_ids=_array(columns["token_ids"][row], np.int32),
            weights=_array(columns["weights"][row], np.float32),
            advantages=_array(columns["advantages"][row], np.float32),
            behaviour_log_probs=_array(columns["behaviour_log_probs"][row], np.float32),
        )
        for row in range(table.num_rows)
    ]


def _array(scalar: pa.ListScalar, dtype: type) -> NDArray:  # type: ignore[type-arg]
    return np.asarray(scalar.values.to_numpy(zero_copy_only=False), dtype=dtype)


def policies_of(roles: Iterable[str], policy_of_role: Mapping[str, str]) -> dict[str, list[str]]:
    """Policy id to the trained roles that it plays."""
    policies: dict[str, list[str]] = {}
    for role in roles:
        policies.setdefault(policy_of_role[role], []).append(role)
    return policies
