"""What a zygote has preloaded is immortal, so that looking at it copies no page; a program's own objects are not."""

import json
import sys
from collections.abc import Callable, Iterator

import pytest
from troupe_sandbox import Sandbox

pytestmark = pytest.mark.skipif(sys.version_info < (3, 12), reason="CPython has immortal objects since 3.12")

# A count of references for each kind of object that programs look at, and what looking at all that modules hold costs.
LOOK = """
import collections, json, re, resource, sys, weakref

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

faults()
modules = list(sys.modules.values())
before = faults()
for module in modules:
    for value in vars(module).values():
        pass
looking = faults() - before

class Own:
    pass

own = Own()
followed = weakref.ref(own)
counts = {
    "function": json.dumps, "code": json.dumps.__code__, "constants": json.dumps.__code__.co_consts,
    "docstring": json.dumps.__doc__, "class": collections.Counter, "order of bases": int.__mro__, "module": re,
    "dictionary": vars(re), "modules": sys.modules, "pattern": re.compile, "list": sys.path, "own": own,
}
counts = {name: sys.getrefcount(value) for name, value in counts.items()}
own_count = counts.pop("own")
mortal = [name for name, count in counts.items() if count != sys.getrefcount(None)]
del own
print(json.dumps({"mortal": mortal, "own": own_count, "freed": followed() is None, "faults": looking}))
"""


@pytest.fixture(scope="module", params=["tool", "workflow"])
def look(request: pytest.FixtureRequest) -> Iterator[Callable[[], str]]:
    """Runs the program in either kind of zygote's child."""
    with Sandbox(test_slots=1, workflow_slots=1) as sandbox:
        if request.param == "tool":
            yield lambda: sandbox.run_tool(LOOK).output
        else:
            yield lambda: sandbox.run_workflow(LOOK, "?", lambda call: "").stdout


def test_what_was_preloaded_is_immortal_and_nothing_else(look):
    seen = json.loads(look())
    assert (seen["mortal"], seen["freed"]) == ([], True)
    assert seen["own"] < 10


def test_looking_at_what_was_preloaded_copies_no_pages(look):
    # Thousands of objects lie on some hundred pages; what is left is of the program's own frames and iterators.
    assert json.loads(look())["faults"] < 20
