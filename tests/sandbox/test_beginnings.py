"""How programs begin: in the surroundings that a plain interpreter gives a file."""

from collections.abc import Iterator

import pytest
from troupe_sandbox import Sandbox


@pytest.fixture(scope="module", params=["full", "pod"])
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    with Sandbox(profile=request.param, test_slots=1) as running:
        yield running


@pytest.mark.parametrize(
    "program",
    [
        "\ufeffprint('right')",
        "__builtins__.print('right')",
        "print('right' if __name__ == '__main__' and __doc__ is None else __doc__)",
        "import sys\nprint('right' if sys.modules['__main__'].__dict__ is globals() else 'wrong')",
    ],
)
def test_a_program_finds_what_a_file_would(sandbox, program):
    for batch in (False, True):
        report = sandbox.run_tests(program, [("", "right\n")] * 2, checker="exact", batch=batch)
        assert report.passed, report
    assert sandbox.run_tests(program, [("", "right\n")], checker="exact").passed
    assert sandbox.run_tool(program + "\npass").output == "right\n"
    assert sandbox.run_workflow(program, "?", lambda call: "42").stdout == "right\n"


def test_a_solution_and_its_setup_may_begin_with_a_byte_order_mark(sandbox):
    solution = "\ufeffdef double(x):\n    return times(x, 2)"
    setup = "\ufeffdef times(x, y):\n    return x * y"
    report = sandbox.run_tests(solution, ["assert double(2) == 4"], setup=setup, entry_point="double")
    assert report.passed, report
