"""`from troupe_sandbox import Sandbox`: the same supervisor without a service."""

import array
import os
import pickle
import resource
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from troupe_sandbox import AgentCall, CheckerProgram, Difference, Limits, Sandbox, SandboxError


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    return Sandbox(test_slots=2)


def test_tests_are_run_in_process(sandbox):
    report = sandbox.run_tests("print(int(input()) ** 2)", [("3", "9"), ("4", "15")])
    assert [case.verdict for case in report.cases] == ["ok", "wrong_answer"]
    assert not report.passed
    assert report.first_failed == 1
    wrong = Difference(unit="token", place=1, line=1, column=1, got="16", expected="15")
    assert [case.difference for case in report.cases] == [None, wrong]
    assert sandbox.run_tests("def f(x): return x", ["assert f(1) == 1", "assert f(2) == 2"]).passed
    with pytest.raises(ValueError, match="no cases"):
        sandbox.run_tests("x = 1", [])


def test_no_program_of_one_thread_takes_less_time_than_it_computes(sandbox):
    report = sandbox.run_tests("print(sum(range(20000)))", [("", "199990000")] * 50)
    used = [case.use for case in report.cases]
    used += [sandbox.run_tool("sum(range(20000))").use for _ in range(20)]
    assert [use for use in used if use.wall_seconds < use.cpu_seconds] == []


def test_what_is_around_the_sandbox_is_reported(sandbox):
    report = sandbox.isolation()
    assert "gvisor" in {layer.name for layer in report.outer_layers}
    assert {layer.name for layer in report.outer_layers}.isdisjoint(layer.name for layer in report.layers)
    assert all(layer.active == (not layer.remedy) for layer in report.outer_layers)


def test_however_many_ask_at_once_all_but_those_that_fit_wait():
    narrow = Sandbox(workflow_slots=1, test_slots=1)
    script = (
        "from workflow import AgentNode, Workflow\nWorkflow('one').add_node(AgentNode('a', 'Solve.')).run(question)"
    )
    with ThreadPoolExecutor(12) as threads:
        asked = [threads.submit(narrow.run_workflow, script, "?", lambda call: "42") for _ in range(12)]
        assert [each.result().verdict for each in asked] == ["ok"] * 12


def test_a_workflow_asks_the_callback(sandbox):
    script = """
from workflow import AgentNode, EnsembleNode, Workflow
flow = Workflow("vote")
flow.add_node(EnsembleNode("vote", [AgentNode(f"a{i}", "Solve.") for i in range(4)], strategy="majority_vote"))
flow.run(question)
"""
    agents: list[str] = []

    def answer(call: AgentCall) -> str:
        agents.append(call.agent)
        return r"\boxed{4}"

    report = sandbox.run_workflow(script, "2 + 2?", answer)
    assert report.verdict == "ok", report
    assert "4" in (report.result or "")
    assert sorted(agents) == ["a0", "a1", "a2", "a3"]


def test_hundreds_of_callbacks_that_wait_hold_up_nothing_else(sandbox):
    script = """
from workflow import AgentNode, EnsembleNode, Workflow
flow = Workflow("vote")
flow.add_node(EnsembleNode("vote", [AgentNode(f"a{i}", "Solve.") for i in range(16)], strategy="majority_vote"))
flow.run(question)
"""
    waiting, go_on = threading.Semaphore(0), threading.Event()

    def answer(call: AgentCall) -> str:
        waiting.release()
        go_on.wait()
        return r"\boxed{4}"

    with ThreadPoolExecutor(41) as callers:
        reports = [callers.submit(sandbox.run_workflow, script, "2 + 2?", answer) for _ in range(40)]
        try:
            assert all(waiting.acquire(timeout=60) for _ in range(640))
            besides = callers.submit(sandbox.run_tests, "print(input())", [("1", "1"), ("2", "2")])
            assert besides.result(timeout=60).passed
        finally:
            go_on.set()
        assert {report.result().verdict for report in reports} == {"ok"}


def test_a_callback_that_raises_refuses(sandbox):
    script = """
from workflow import AgentNode, Workflow
flow = Workflow("one")
flow.add_node(AgentNode("a", "Solve."))
flow.run(question)
"""

    def refuse(call: AgentCall) -> str:
        raise LookupError("nobody home")

    report = sandbox.run_workflow(script, "?", refuse)
    assert report.result_type == "error"
    assert "nobody home" in (report.result or "")


def test_limits_and_layers_are_checked(sandbox):
    assert sandbox.run_tool("while True: pass", Limits(cpu_seconds=0.1)).verdict == "cpu_limit"
    with pytest.raises(ValueError, match="memory_bytes"):
        sandbox.run_tool("1", Limits(memory_bytes=1))
    with pytest.raises(RuntimeError, match="unknown layer"):
        Sandbox(require_layers=["luck"])
    assert {layer.name for layer in sandbox.isolation().layers} >= {"landlock", "seccomp", "rlimits"}


def test_a_forked_copy_says_so_instead_of_waiting_for_ever(sandbox):
    child = os.fork()
    if child == 0:
        try:
            sandbox.run_tool("1")
        except RuntimeError:
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("profile", ["full", "pod"])
def test_descriptors_that_others_have_under_way_do_not_keep_a_jail_from_being_reported(profile, tmp_path: Path):
    """The kernel counts them for all processes of a user, and a jailed process has no capability to exceed the count."""
    ours, theirs = socket.socketpair()
    with ours, theirs, Sandbox(profile=profile, work_root=tmp_path) as sandbox:
        for _ in range(4):
            attached = array.array("i", [ours.fileno()] * 200)
            ours.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, attached)])
        assert sandbox.run_tool("1").verdict == "ok"
        assert sandbox.run_workflow("pass", "?", lambda call: "").verdict == "ok"
        assert sandbox.run_tests("def f(): return 1", ["assert f() == 1"]).passed


def test_a_case_given_up_while_it_starts_leaves_no_process(tmp_path: Path):
    """The first failure drops the case beside it, now and then between its fork and its jail."""
    own = psutil.Process()
    with Sandbox(test_slots=2, work_root=tmp_path) as sandbox:
        before = len(own.children())
        for _ in range(60):
            sandbox.run_tests("1 / 0", [("", "")] * 4, stop_at_first_failure=True)
        deadline = time.monotonic() + 20
        while len(own.children()) > before:
            assert time.monotonic() < deadline, [child.status() for child in own.children()]
            time.sleep(0.02)


def test_a_second_sandbox_does_not_disturb_the_first(sandbox, tmp_path):
    other = Sandbox(work_root=tmp_path)
    assert other.run_tool("1").verdict == "ok"
    assert len(list(tmp_path.iterdir())) == 1
    del other
    assert list(tmp_path.iterdir()) == []
    assert sandbox.run_workflow("open('note', 'w').write('x')", "?", lambda call: "").verdict == "ok"


def test_pairs_may_be_lists_and_what_is_no_case_is_refused_by_its_index(sandbox):
    report = sandbox.run_tests("print(input())", [("1", "1"), ["2", "3"]])
    assert [case.verdict for case in report.cases] == ["ok", "wrong_answer"]
    for odd in (None, ("1",), ["1", 2], {"stdin": "1"}):
        with pytest.raises(TypeError, match=r"cases\[1\]"):
            sandbox.run_tests("print(input())", [("1", "1"), odd])


def test_what_is_too_large_is_refused_by_the_name_of_its_argument(sandbox):
    large = "#" * ((1 << 20) + 1)
    for argument, call in {
        "script": lambda: sandbox.run_workflow(large, "?", lambda call: ""),
        "question": lambda: sandbox.run_workflow("pass", large, lambda call: ""),
        "solution": lambda: sandbox.run_tests(large, [("", "")]),
        "setup": lambda: sandbox.run_tests("x = 1", ["assert x"], setup=large),
        r"cases\[1\]": lambda: sandbox.run_tests("x = 1", ["assert x", large]),
        "code": lambda: sandbox.run_tool(large),
        "source": lambda: sandbox.run_tests("x = 1", [("", "")], checker=CheckerProgram(large)),
    }.items():
        with pytest.raises(ValueError, match=rf"{argument} .*at most 1048576"):
            call()
    half = "#" * (600 << 10)
    with pytest.raises(ValueError, match="script makes a start frame"):
        sandbox.run_workflow(half, half, lambda call: "")
    script = "from workflow import AgentNode, Workflow\nWorkflow('w').add_node(AgentNode('a', 'Go.')).run(question)"
    with pytest.raises(ValueError, match=r"reply of on_agent_call.*at most 1048576"):
        sandbox.run_workflow(script, "?", lambda call: large)


def test_a_failure_of_the_sandbox_has_a_type_and_says_whether_to_try_again(sandbox, tmp_path: Path):
    with pytest.raises(SandboxError) as missing:
        Sandbox(require_layers=["luck"], work_root=tmp_path)
    assert not missing.value.retriable
    with pytest.raises(SandboxError) as checker:
        sandbox.run_tests("print(1)", [("", "1")], checker=CheckerProgram("1 / 0"))
    assert (checker.value.reason, checker.value.retriable) == ("CHECKER", False)
    closed = Sandbox(work_root=tmp_path)
    closed.close()
    with pytest.raises(SandboxError, match="closed") as error:
        closed.run_tool("1")
    assert (error.value.reason, error.value.retriable) == ("CLOSED", False)
    copied = pickle.loads(pickle.dumps(error.value))
    assert (str(copied), copied.reason) == (str(error.value), "CLOSED")


def test_a_sandbox_has_the_open_files_that_its_slots_take(tmp_path: Path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 1024), hard))
    try:
        with Sandbox(work_root=tmp_path):
            assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(hard, 1 << 20)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with pytest.raises(ValueError, match=r"workflow_slots.*ulimit -Hn"):
        Sandbox(workflow_slots=10**9, work_root=tmp_path)


def test_options_are_taken_as_text_and_refused_by_name(tmp_path: Path):
    with Sandbox(work_root=str(tmp_path), python=sys.executable) as sandbox:
        assert sandbox.run_tool("1").verdict == "ok"
    for name, value in {
        "workflow_slots": 0,
        "test_slots": 0,
        "work_root": tmp_path / "none",
        "python": "/bin/true",
    }.items():
        with pytest.raises(ValueError, match=name):
            Sandbox(**{name: value})
