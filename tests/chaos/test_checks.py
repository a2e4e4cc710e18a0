"""The checks after a kill fail where something was lost. Store and learner are stand-ins: tables, and a list."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
from killing import checks
from killing.record import LocalStore, Record
from troupe.v1 import common_pb2, learner_pb2, policy_pb2, transcript_pb2

TABLES = """
create table runs (run_id, state, reason);
create table steps (run_id, step, state, metrics);
create table batches (run_id, step, update_number, digest, file);
create table lease (token);
insert into runs values ('run', 'running', '');
"""
# By step: state, probe's error, token of whoever sealed it (none: it sealed no update).
Steps = Sequence[tuple[str, float | None, int | None]]


class Learner:
    """A stand-in for services: what the learner has applied, look by look; the last one stays."""

    def __init__(self, *looks: int, served: Sequence[int] = (0,)) -> None:
        self.looks = list(looks)
        self.served = list(served)
        """Version of the engine, look by look; the learner's is the last."""
        self.trained = self.served[-1]

    async def learner(self) -> learner_pb2.LearnerInfo:
        count = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        applied = [learner_pb2.AppliedStep(step=number, digest=digest(number)) for number in range(1, count + 1)]
        return learner_pb2.LearnerInfo(applied_steps=applied, version=common_pb2.PolicyVersion(number=self.trained))

    async def engine(self) -> policy_pb2.PolicyInfo:
        number = self.served.pop(0) if len(self.served) > 1 else self.served[0]
        version = common_pb2.PolicyVersion(number=number)
        return policy_pb2.PolicyInfo(state=policy_pb2.UPDATE_STATE_SERVING, version=version)


def digest(number: int) -> bytes:
    return bytes([number] * 32)


def record(folder: Path, steps: Steps, token: int = 1) -> Record:
    """A run with these steps, and whose the store is now."""
    with closing(sqlite3.connect(folder / "troupe.db")) as connection:
        connection.executescript(TABLES)
        connection.execute("insert into lease values (?)", (token,))
        updates = 0
        for number, (state, error, sealer) in enumerate(steps, start=1):
            metrics = json.dumps({} if error is None else {"probe_mean_error": error})
            connection.execute("insert into steps values ('run', ?, ?, ?)", (number, state, metrics))
            if sealer is not None:
                updates += 1
                file = f"/store/steps/{number:06d}/batch-a-policy-{sealer}.parquet"
                row = (number, updates, digest(updates).hex(), file)
                connection.execute("insert into batches values ('run', ?, ?, ?, ?)", row)
        connection.commit()
    return Record(LocalStore(folder), "run", folder / "kept")


THREE: Steps = [("committed", 0.01, 1), ("committed", 0.01, 1), ("sealed", None, 1)]


@pytest.mark.parametrize("applied", [2, 3])
async def test_a_learner_may_be_without_the_update_of_the_step_that_is_under_way(tmp_path: Path, applied: int) -> None:
    await checks.applied_is_sealed(Learner(applied), record(tmp_path, THREE))


async def test_a_learner_that_came_back_is_waited_for(tmp_path: Path) -> None:
    await checks.applied_is_sealed(Learner(0, 1, 2), record(tmp_path, THREE))


@pytest.mark.parametrize("applied", [0, 1])
async def test_a_learner_without_the_updates_of_committed_steps_has_lost_them(
    tmp_path: Path, applied: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "REPLAY_SECONDS", 0.0)
    with pytest.raises(AssertionError, match=f"only {applied} of the 2 updates"):
        await checks.applied_is_sealed(Learner(applied), record(tmp_path, THREE))


async def test_more_than_what_is_sealed_is_no_beginning_of_it(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="sealed"):
        await checks.applied_is_sealed(Learner(4), record(tmp_path, THREE))


@pytest.mark.parametrize(
    ("steps", "token", "unprobed"),
    [
        ([("committed", 0.01, 1), ("committed", 0.01, 1)], 1, []),
        ([("committed", None, 1), ("committed", 0.01, 1)], 1, [1]),
        ([("committed", 0.01, 1), ("committed", None, 1)], 1, [2]),
        ([("committed", None, None), ("committed", 0.01, 1)], 1, []),
        # Somebody else took over between the seal of the first and of the second, and after the second.
        ([("committed", None, 1), ("committed", 0.01, 2)], 2, []),
        ([("committed", 0.01, 1), ("committed", None, 1)], 2, []),
    ],
)
async def test_a_load_of_which_no_probe_is_on_record_is_found(
    tmp_path: Path, steps: Steps, token: int, unprobed: list[int]
) -> None:
    found = record(tmp_path, steps, token)
    assert found.unprobed() == unprobed
    learner = Learner(len(found.sealed()))
    if unprobed:
        with pytest.raises(AssertionError, match="no probe"):
            await checks.engines_are_at_the_learner(learner, found, 0.05)
    else:
        await checks.engines_are_at_the_learner(learner, found, 0.05)


async def test_a_probe_beyond_the_bound_is_found(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"0\.06"):
        await checks.engines_are_at_the_learner(Learner(1), record(tmp_path, [("committed", 0.06, 1)]), 0.05)


async def test_an_engine_that_is_behind_is_waited_for(tmp_path: Path) -> None:
    found = record(tmp_path, THREE)
    learner = Learner(1, 1, 2, served=[1, 1, 1, 2])
    await checks.engine_comes_to_the_learner(learner, found, 0.05)
    assert learner.served == [2]


async def test_an_engine_that_stays_behind_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "REPLAY_SECONDS", 0.3)
    learner = Learner(2, served=[1])
    learner.trained = 2
    with pytest.raises(AssertionError, match="number: 1"):
        await checks.engine_comes_to_the_learner(learner, record(tmp_path, THREE), 0.05)


class Speech:
    """An engine and a learner: each reply is two tokens after a prompt of three, and the learner is so far from what is said
    of them."""

    def __init__(self, off: float) -> None:
        self.off = off

    async def Generate(self, request: policy_pb2.GenerateRequest) -> policy_pb2.GenerateResponse:
        prompt = transcript_pb2.TokenRun(kind=transcript_pb2.TOKEN_RUN_KIND_INSERTED, length=3)
        reply = transcript_pb2.TokenRun(
            kind=transcript_pb2.TOKEN_RUN_KIND_GENERATED, length=2, log_probs=[-1.0, -2.0 - self.off]
        )
        return policy_pb2.GenerateResponse(
            appended=transcript_pb2.Transcript(token_ids=[1, 2, 3, 4, 5], runs=[prompt, reply])
        )

    async def log_probs(
        self, sequences: Sequence[Sequence[int]], version: common_pb2.PolicyVersion
    ) -> list[list[float]]:
        assert sequences == [[1, 2, 3, 4, 5]] * checks.SPOKEN
        return [[-9.0, -9.0, -1.0, -2.0] for _ in sequences]


async def test_an_engine_that_speaks_otherwise_than_the_learner_is_found() -> None:
    await checks.engine_speaks_as_the_learner(Speech(0.08), Speech(0.08), 0.05)
    with pytest.raises(AssertionError, match=r"0\.060 nats"):
        await checks.engine_speaks_as_the_learner(Speech(0.12), Speech(0.12), 0.05)
