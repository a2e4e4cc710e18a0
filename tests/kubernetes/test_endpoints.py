"""Who serves behind a Service, as its EndpointSlices say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standin_api.objects import endpoint, endpoint_slice
from troupe_kubernetes.endpoints import EndpointReader, endpoints, port_names


def test_each_pod_is_one_endpoint_at_the_port_of_that_name() -> None:
    found = endpoints([endpoint_slice("executor", endpoint("10.0.0.1", "a"), endpoint("10.0.0.2", "b"))], "grpc")
    assert {each.target for each in found.values()} == {"10.0.0.1:50051", "10.0.0.2:50051"}
    assert found["uid-a"].pod == "a"


def test_one_that_terminates_is_left_out_though_it_still_serves() -> None:
    one = endpoint("10.0.0.1", "a", ready=True, terminating=True)
    assert not endpoints([endpoint_slice("executor", one)], "grpc")


def test_one_that_is_not_ready_is_there_and_says_so() -> None:
    found = endpoints([endpoint_slice("executor", endpoint("10.0.0.1", "a", ready=False))], "grpc")
    assert [each.ready for each in found.values()] == [False]


def test_serving_counts_where_addresses_are_published_before_readiness() -> None:
    one = endpoint("10.0.0.1", "a")
    one["conditions"] = {"ready": True, "serving": False}
    assert not endpoints([endpoint_slice("executor", one)], "grpc")["uid-a"].ready


@pytest.mark.parametrize("conditions", [None, {}, {"ready": None, "serving": None, "terminating": None}])
def test_conditions_that_are_not_known_are_taken_as_serving(conditions: dict[str, None] | None) -> None:
    one = {**endpoint("10.0.0.1", "a"), "conditions": conditions}
    assert endpoints([endpoint_slice("executor", one)], "grpc")["uid-a"].ready


def test_a_pod_in_two_families_counts_once_by_its_first_version_address() -> None:
    slices = [
        endpoint_slice("executor", endpoint("10.0.0.1", "a"), name="four"),
        endpoint_slice("executor", endpoint("fd00::1", "a"), name="six", family="IPv6"),
    ]
    for order in (slices, slices[::-1]):
        assert [each.target for each in endpoints(order, "grpc").values()] == ["10.0.0.1:50051"]


def test_an_address_of_version_six_is_in_brackets() -> None:
    found = endpoints([endpoint_slice("executor", endpoint("fd00::1", "a"), family="IPv6")], "grpc")
    assert [each.target for each in found.values()] == ["[fd00::1]:50051"]


def test_a_slice_without_the_port_has_no_endpoints_and_its_ports_can_be_named() -> None:
    slices = [endpoint_slice("executor", endpoint("10.0.0.1", "a"), port_name="rpc")]
    assert not endpoints(slices, "grpc")
    assert port_names(slices) == ["http", "rpc"]


@given(st.dictionaries(st.text("abc", min_size=1), st.tuples(st.booleans(), st.booleans()), max_size=6), st.data())
def test_how_endpoints_are_spread_over_slices_makes_no_difference(
    pods: dict[str, tuple[bool, bool]], data: st.DataObject
) -> None:
    all_of_them = [
        endpoint(f"10.0.0.{number}", name, ready, terminating)
        for number, (name, (ready, terminating)) in enumerate(pods.items())
    ]
    whole = endpoints([endpoint_slice("executor", *all_of_them)], "grpc")
    order = data.draw(st.permutations(all_of_them))
    cut = data.draw(st.integers(0, len(order)))
    # A slice that is being rewritten has an endpoint twice.
    parts = [order[:cut], order[cut:], order[:1]]
    split = [endpoint_slice("executor", *part, name=f"part-{number}") for number, part in enumerate(parts)]
    assert endpoints(split, "grpc") == whole
    assert len(whole) == sum(not terminating for _, terminating in pods.values())


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 2), st.text("abc", min_size=1, max_size=1), st.booleans()), max_size=4),
        max_size=6,
    )
)
def test_what_is_read_again_is_what_is_there_whichever_slices_changed(
    changes: list[list[tuple[int, str, bool]]],
) -> None:
    reader = EndpointReader("grpc")
    slices = {number: endpoint_slice("executor", name=f"part-{number}") for number in range(3)}
    for change in changes:
        for number, name, ready in change:
            slices[number] = endpoint_slice("executor", endpoint("10.0.0.1", name, ready), name=f"part-{number}")
        assert reader.read(slices.values()) == endpoints(slices.values(), "grpc")
