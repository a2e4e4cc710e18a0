"""Which object is looked at when."""

from hypothesis import given
from hypothesis import strategies as st
from troupe_orchestrator.custom_resources.agenda import Agenda


def test_an_object_stands_there_once_at_its_earliest_time() -> None:
    agenda = Agenda()
    agenda.put("a", 5.0)
    agenda.put("a", 2.0)
    agenda.put("a", 9.0)
    assert (agenda.next_time(), agenda.take(1.0), agenda.take(2.0), agenda.take(99.0)) == (2.0, None, "a", None)


def test_equal_times_come_in_the_order_in_which_they_were_put_down() -> None:
    agenda = Agenda()
    for uid in "cab":
        agenda.put(uid, 1.0)
    assert [agenda.take(1.0) for _ in "cab"] == ["c", "a", "b"]


@given(st.lists(st.one_of(st.none(), st.tuples(st.sampled_from("abc"), st.integers(0, 9)))))
def test_it_is_a_map_from_objects_to_their_earliest_times(puts: list[tuple[str, int] | None]) -> None:
    agenda, times = Agenda(), dict[str, int]()
    for put in puts:
        if put is None:
            taken = agenda.take(9.0)
            assert (taken is None) == (not times)
            if taken is not None:
                earliest = min(times.values())
                assert times.pop(taken) == earliest
        else:
            uid, time = put
            agenda.put(uid, time)
            times[uid] = min(time, times.get(uid, 99))
        assert agenda.next_time() == (min(times.values()) if times else None)
