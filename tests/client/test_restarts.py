"""How often a service is started again."""

from troupe_client import restarts


def delays(seconds_between: float, limit: int) -> list[float]:
    """Of a service that ends again and again, until it is given up."""
    endings, waited = [0.0], []
    while (delay := restarts.delay(endings, limit)) is not None:
        waited.append(delay)
        endings.append(endings[-1] + seconds_between)
    return waited


def test_a_service_that_ends_at_once_comes_back_more_slowly_each_time_until_the_limit() -> None:
    waited = delays(0.0, limit=5)
    assert len(waited) == 5
    assert waited[0] < 0.5
    assert waited == sorted(set(waited))


def test_a_service_that_serves_for_a_while_in_between_comes_back_at_once() -> None:
    assert len(set(delays(60.0, limit=5))) == 1


def test_with_a_limit_of_none_the_first_ending_is_the_last() -> None:
    assert delays(0.0, limit=0) == []


def test_endings_from_before_the_window_no_longer_count() -> None:
    assert restarts.recent([0.0, 500.0], now=restarts.WINDOW_SECONDS + 1) == [500.0]
