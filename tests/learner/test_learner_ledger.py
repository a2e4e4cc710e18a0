"""Which step may be applied, and under which version the weights go on."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from troupe_contracts.errors import Aborted, FailedPrecondition, InvalidArgument
from troupe_learner.ledger import Ledger, Version
from troupe_learner.lineages import Lineages


def digest(number: int) -> bytes:
    return bytes([number]) * 32


def ledger_of(steps: int) -> Ledger:
    ledger = Ledger("run", "first")
    for number in range(1, steps + 1):
        ledger = ledger.with_step(digest(number), {"loss": float(number)})
    return ledger


@given(st.integers(0, 6), st.integers(0, 9), st.booleans())
def test_every_request_for_a_step_has_exactly_one_answer(applied: int, step: int, same: bool) -> None:
    ledger = ledger_of(applied)
    asked = digest(step) if same else digest(200)
    if step == 0:
        with pytest.raises(InvalidArgument):
            ledger.stored_result(step, asked)
    elif step > applied + 1:
        with pytest.raises(FailedPrecondition, match=f"replay from {applied + 1}"):
            ledger.stored_result(step, asked)
    elif step == applied + 1:
        assert ledger.stored_result(step, asked) is None
    elif same:
        stored = ledger.stored_result(step, asked)
        assert stored is not None
        assert (stored.step, stored.digest, stored.version) == (step, asked, Version("first", step))
        assert stored.metrics == {"loss": float(step)}
    else:
        with pytest.raises(Aborted):
            ledger.stored_result(step, asked)


def test_a_learner_belongs_to_one_run() -> None:
    ledger = Ledger("run", "first")
    ledger.check_run("run")
    with pytest.raises(FailedPrecondition, match=r"run run.*run other.*BindRun"):
        ledger.check_run("other")
    with pytest.raises(InvalidArgument, match="run_id"):
        ledger.check_run("")
    with pytest.raises(FailedPrecondition, match=r"no run.*run run.*BindRun"):
        Ledger("", "first").check_run("run")


def test_weights_are_those_of_one_step_of_one_run() -> None:
    ledger_of(3).check_step("run", 3)
    Ledger("", "first").check_step("", 0)
    for run_id, step in (("run", 2), ("run", 4), ("other", 3), ("", 3)):
        with pytest.raises(FailedPrecondition, match="step 3 of run 'run' is"):
            ledger_of(3).check_step(run_id, step)


def test_a_new_lineage_renames_the_current_version_and_no_older_one() -> None:
    renamed = ledger_of(3).in_lineage("second")
    assert renamed.version == Version("second", 3)
    assert [each.version.lineage for each in renamed.steps] == ["first", "first", "second"]


def test_weights_keep_their_lineage_only_while_they_are_its_newest(tmp_path: Path) -> None:
    lineages = Lineages(tmp_path / "lineages.json")
    assert lineages.first("mine") == "mine"
    lineages.produced(Version("mine", 1))
    lineages.produced(Version("mine", 2))
    assert lineages.resumed(Version("mine", 2)) == "mine"
    other = lineages.resumed(Version("mine", 1))
    assert other != "mine"
    assert lineages.resumed(Version(other, 1)) == other
    assert lineages.resumed(Version("from another machine", 4)) != "from another machine"


def test_a_new_process_remembers_what_the_one_before_has_produced(tmp_path: Path) -> None:
    path = tmp_path / "lineages.json"
    before = Lineages(path)
    assert before.first("mine") == "mine"
    assert Lineages(path).first("mine") == "mine", "the initial weights are still the newest"
    before.produced(Version("mine", 1))
    assert Lineages(path).first("mine") != "mine"
    assert Lineages(path).resumed(Version("mine", 1)) == "mine"
    assert Lineages(path).first("") not in ("", "mine")


def test_a_version_that_could_not_be_recorded_is_not_taken_for_recorded(tmp_path: Path) -> None:
    path = tmp_path / "gone" / "lineages.json"
    lineages = Lineages(path)
    with pytest.raises(FailedPrecondition, match=r"lineages\.json: cannot be written"):
        lineages.produced(Version("mine", 1))
    path.parent.mkdir()
    lineages.produced(Version("mine", 1))
    assert Lineages(path).resumed(Version("mine", 1)) == "mine"


def test_a_run_that_begins_gets_a_lineage_never_used_before(tmp_path: Path) -> None:
    lineages = Lineages(tmp_path / "lineages.json")
    begun = [lineages.begun("mine") for _ in range(20)]
    assert len({"mine", *begun}) == 21
    assert all(each.startswith("mine~") for each in begun)
    assert lineages.resumed(Version(begun[0], 0)) == begun[0]
