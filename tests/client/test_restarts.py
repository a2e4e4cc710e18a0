"""How often a service is started again."""

from troupe_client import restarts


def test_a_service_comes_back_at_once_and_then_more_slowly_until_the_limit() -> None:
    endings: list[float] = []
    delays = []
    while (delay := restarts.delay([*endings, 0.0])) is not None:
        endings.append(0.0)
        delays.append(delay)
    assert len(delays) == restarts.LIMIT
    assert delays == sorted(delays)
    assert delays[0] < 0.5


def test_endings_from_before_the_window_no_longer_count() -> None:
    assert restarts.recent([0.0, 500.0], now=restarts.WINDOW_SECONDS + 1) == [500.0]
