"""Mini-batches, micro-batches and their share among ranks."""

from hypothesis import given
from hypothesis import strategies as st
from troupe_learner.packing import deal, microbatches, split_in_order

LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=40)


@given(LENGTHS, st.integers(1, 12))
def test_a_split_keeps_order_loses_nothing_and_has_no_empty_part(lengths: list[int], parts: int) -> None:
    split = split_in_order(lengths, parts)
    assert [index for part in split for index in part] == list(range(len(lengths)))
    assert all(len(part) for part in split)
    assert len(split) == min(parts, len(lengths))


@given(st.lists(st.integers(10, 50), min_size=30, max_size=60), st.integers(1, 4))
def test_parts_have_about_equally_many_tokens(lengths: list[int], parts: int) -> None:
    sizes = [sum(lengths[index] for index in part) for part in split_in_order(lengths, parts)]
    assert max(sizes) - min(sizes) <= 2 * max(lengths)


def test_nothing_splits_into_nothing() -> None:
    assert split_in_order([], 3) == []


@given(LENGTHS, st.integers(1, 200))
def test_forward_passes_hold_each_sequence_once_within_the_budget(lengths: list[int], budget: int) -> None:
    passes = microbatches(lengths, range(len(lengths)), budget)
    assert sorted(index for each in passes for index in each.sequences) == list(range(len(lengths)))
    for each in passes:
        longest = max(lengths[index] for index in each.sequences)
        assert longest * len(each.sequences) <= budget or len(each.sequences) == 1


@given(LENGTHS, st.integers(1, 200), st.integers(1, 5))
def test_every_rank_runs_equally_many_passes_and_each_counts_once(lengths: list[int], budget: int, ranks: int) -> None:
    passes = microbatches(lengths, range(len(lengths)), budget)
    shares = [deal(passes, rank, ranks) for rank in range(ranks)]
    assert len({len(share) for share in shares}) == 1
    counted = [each.sequences for share in shares for each in share if each.counts]
    assert sorted(counted) == sorted(each.sequences for each in passes)


def cost(lengths: list[int], cut: list[list[int]], overhead: int) -> int:
    return sum(max(lengths[index] for index in part) * len(part) + overhead for part in cut)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=9), st.integers(5, 30), st.integers(0, 6))
def test_no_other_cut_of_the_sorted_sequences_costs_less(lengths: list[int], budget: int, overhead: int) -> None:
    found = microbatches(lengths, range(len(lengths)), budget, overhead)
    ordered = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    best = None
    for borders in range(2 ** (len(ordered) - 1)):
        cut = [[ordered[0]]]
        for position, index in enumerate(ordered[1:]):
            if borders >> position & 1:
                cut.append([index])
            else:
                cut[-1].append(index)
        if all(len(part) == 1 or lengths[part[0]] * len(part) <= budget for part in cut):
            price = cost(lengths, cut, overhead)
            best = price if best is None else min(best, price)
    assert cost(lengths, [list(each.sequences) for each in found], overhead) == best
