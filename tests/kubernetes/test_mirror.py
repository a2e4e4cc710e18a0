"""Lists that are kept current, against a stand-in API server that fails as real ones do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from standin_api.objects import PODS, pod
from standin_api.server import StandInApi
from troupe_kubernetes import mirror as mirrors
from troupe_kubernetes.api import Api, ApiError
from troupe_kubernetes.mirror import Mirror, Snapshot

Follow = Callable[..., "Told"]


class Told:
    """What a mirror has said, newest last."""

    def __init__(self) -> None:
        self.snapshots: list[Snapshot] = []
        self._came = threading.Condition()

    def __call__(self, snapshot: Snapshot) -> None:
        with self._came:
            self.snapshots.append(snapshot)
            self._came.notify_all()

    def until(self, holds: Callable[[Snapshot], bool]) -> Snapshot:
        with self._came:
            assert self._came.wait_for(lambda: any(map(holds, self.snapshots[-1:])), 20), self.snapshots[-1:]
            return self.snapshots[-1]


def names(snapshot: Snapshot) -> set[str]:
    return {each["metadata"]["name"] for each in snapshot.objects}


@pytest.fixture
def follow(api: Api, monkeypatch: pytest.MonkeyPatch) -> Iterator[Follow]:
    monkeypatch.setattr(mirrors, "_FIRST_PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(mirrors, "_LONGEST_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(mirrors, "_SHORT_WATCH_SECONDS", 0.02)
    started: list[Mirror] = []

    def begin(watch_seconds: int = 60, silent_seconds: float = 60.0, selector: str = "") -> Told:
        told = Told()
        query = {"labelSelector": selector} if selector else {}
        started.append(Mirror(api, PODS, query, told, watch_seconds, silent_seconds))
        started[-1].start()
        return told

    yield begin
    for each in started:
        each.stop()


def test_objects_that_come_change_and_go_are_told(standin: StandInApi, follow: Follow) -> None:
    standin.put(PODS, pod("executor-0", "executor"))
    told = follow()
    told.until(lambda now: names(now) == {"executor-0"})
    standin.wait_until_watched(PODS)
    standin.put(PODS, pod("executor-1", "executor"))
    told.until(lambda now: names(now) == {"executor-0", "executor-1"})
    standin.put(PODS, pod("executor-1", "executor", {"phase": "Failed"}))
    told.until(lambda now: "Failed" in [each["status"]["phase"] for each in now.objects])
    standin.delete(PODS, "executor-0")
    told.until(lambda now: names(now) == {"executor-1"})
    assert standin.asked("GET", PODS) == 1


def test_nothing_is_asked_while_nothing_changes(standin: StandInApi, follow: Follow) -> None:
    standin.put(PODS, pod("executor-0", "executor"))
    told = follow()
    told.until(lambda now: names(now) == {"executor-0"})
    standin.wait_until_watched(PODS)
    standin.put("/api/v1/namespaces/troupe/configmaps", {"metadata": {"name": "other"}})
    standin.put(PODS, pod("executor-1", "executor"))
    told.until(lambda now: len(now.objects) == 2)
    assert (standin.asked("GET", PODS), standin.asked("GET", PODS, watch=True)) == (1, 1)
    assert len(told.snapshots) == 2


def test_a_watch_that_is_cut_is_followed_by_a_whole_list(standin: StandInApi, follow: Follow) -> None:
    standin.put(PODS, pod("executor-0", "executor"))
    told = follow()
    told.until(lambda now: names(now) == {"executor-0"})
    standin.wait_until_watched(PODS)
    standin.silent = True
    standin.delete(PODS, "executor-0")
    standin.put(PODS, pod("executor-1", "executor"))
    standin.silent = False
    # What was missed is not in the history either: only the list has it.
    standin.history.clear()
    standin.cut_watches()
    told.until(lambda now: names(now) == {"executor-1"})


def test_a_watch_that_falls_silent_is_given_up(standin: StandInApi, follow: Follow) -> None:
    standin.put(PODS, pod("executor-0", "executor"))
    told = follow(silent_seconds=0.3)
    told.until(lambda now: names(now) == {"executor-0"})
    standin.wait_until_watched(PODS)
    standin.silent = True
    standin.delete(PODS, "executor-0")
    told.until(lambda now: names(now) == set())


def test_a_watch_ends_by_itself_and_the_list_is_asked_for_again(standin: StandInApi, follow: Follow) -> None:
    standin.put(PODS, pod("executor-0", "executor"))
    told = follow(watch_seconds=1)
    told.until(lambda now: names(now) == {"executor-0"})
    standin.wait_until_watched(PODS)
    standin.silent = True
    standin.put(PODS, pod("executor-1", "executor"))
    told.until(lambda now: len(now.objects) == 2)
    assert standin.asked("GET", PODS) > 1


def test_a_version_that_is_gone_is_followed_by_a_whole_list(standin: StandInApi, follow: Follow) -> None:
    standin.put(PODS, pod("executor-0", "executor"))
    # Already when the list is told it is too old to be watched from.
    standin.forgotten = standin.version + 1
    told = follow()
    told.until(lambda now: names(now) == {"executor-0"})
    standin.wait_until_watched(PODS)
    standin.put(PODS, pod("executor-1", "executor"))
    told.until(lambda now: len(now.objects) == 2)


def test_what_is_known_stays_while_the_api_server_is_away_and_says_so(standin: StandInApi, follow: Follow) -> None:
    standin.put(PODS, pod("executor-0", "executor"))
    told = follow()
    told.until(lambda now: names(now) == {"executor-0"})
    standin.wait_until_watched(PODS)
    standin.away = True
    standin.cut_watches()
    away = told.until(lambda now: bool(now.away))
    assert names(away) == {"executor-0"}
    assert "the stand-in is away" in away.away
    assert away.away_since > 0
    standin.delete(PODS, "executor-0")
    standin.away = False
    back = told.until(lambda now: not now.away)
    assert names(back) == set()


def test_only_what_is_selected_is_told(standin: StandInApi, follow: Follow) -> None:
    standin.put(PODS, pod("executor-0", "executor"))
    standin.put(PODS, pod("designer-0", "designer"))
    told = follow(selector="app.kubernetes.io/component=designer")
    told.until(lambda now: names(now) == {"designer-0"})


def test_what_the_api_server_says_is_in_the_error(standin: StandInApi, api: Api) -> None:
    standin.away = True
    with pytest.raises(ApiError, match="ServiceUnavailable: the stand-in is away") as caught:
        api.get(PODS)
    assert caught.value.status == 503
