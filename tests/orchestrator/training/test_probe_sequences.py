"""Sequences on which an engine must reproduce the learner."""

from hypothesis import given
from hypothesis import strategies as st
from troupe_orchestrator.training.probes import FIXED_LENGTHS, batch_probes, fixed_probes


@given(st.integers(1, 200_000), st.integers(3, 40_000))
def test_fixed_probes_can_be_scored_by_any_engine(vocabulary_size: int, context_length: int) -> None:
    probes = fixed_probes(vocabulary_size, context_length)
    assert probes
    assert all(2 <= len(probe) < context_length for probe in probes)
    assert all(0 <= token < vocabulary_size for probe in probes for token in probe)
    assert probes == fixed_probes(vocabulary_size, context_length)


def test_fixed_probes_have_several_lengths_and_are_spread_over_the_vocabulary() -> None:
    probes = fixed_probes(151_936, 4096)
    assert tuple(map(len, probes)) == FIXED_LENGTHS
    tenths = [token * 10 // 151_936 for probe in probes for token in probe]
    assert all(tenths.count(tenth) >= 8 for tenth in range(10))
    assert probes[0] != probes[1][: len(probes[0])]


def test_probes_of_a_batch_are_its_shortest_sequences_of_at_least_two_tokens() -> None:
    assert batch_probes([[1], [1, 2, 3], [4, 5], [6, 7, 8, 9]], 2) == [[4, 5], [1, 2, 3]]
    assert batch_probes([[1]], 2) == []
