"""Who is let in, and when: seats taken together, turns between scopes, nothing held by who waits. No service takes part."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from troupe_orchestrator import rotation
from troupe_orchestrator.fleet import PolicyFleet, SandboxFleet
from troupe_orchestrator.rollout.admission import Admission
from troupe_orchestrator.rollout.faults import InfrastructureFaultError


class Services:
    """Fleets with so many seats, behind targets where nobody listens."""

    def __init__(
        self, workflows: Sequence[int] = (1,), tests: Sequence[int] = (1,), engines: Sequence[int] = (1,)
    ) -> None:
        self.sandboxes = SandboxFleet([f"127.0.0.1:{number}" for number in range(1, len(workflows) + 1)], 0.05)
        for sandbox, slots, test_slots in zip(self.sandboxes.replicas(), workflows, tests, strict=True):
            sandbox.workflows.total, sandbox.tests.total = slots, test_slots
        self.executors = PolicyFleet([f"127.0.0.1:{number}" for number in range(11, 11 + len(engines))])
        for replica, seats in zip(self.executors.replicas(), engines, strict=True):
            replica.seats.total = seats
        self.admission = Admission(self.sandboxes)

    def taken(self) -> list[int]:
        seats = [seats for each in self.sandboxes.replicas() for seats in (each.workflows, each.tests)]
        return [each.taken for each in (*seats, *(replica.seats for replica in self.executors.replicas()))]

    def execution(self, scope: str = "run", key: str = "key") -> contextlib.AbstractAsyncContextManager[object]:
        return self.admission.execution(scope, key, self.executors)

    def designs(self, count: int = 1, scope: str = "run") -> contextlib.AbstractAsyncContextManager[object]:
        return self.admission.designs(scope, "task", count, self.executors)


@contextlib.asynccontextmanager
async def working(
    log: list[str], name: str, place: contextlib.AbstractAsyncContextManager[object]
) -> AsyncIterator[asyncio.Event]:
    """Work that is in the log once it is let in, and ends with the event."""
    end = asyncio.Event()

    async def work() -> None:
        async with place:
            log.append(name)
            await end.wait()

    task = asyncio.create_task(work())
    await settle()
    try:
        yield end
    finally:
        # Not waited for: it may wait for work that ends after it.
        end.set()
        await settle()
        if name in log:
            assert task.done()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_who_waits_for_an_engine_holds_no_slot_of_a_sandbox() -> None:
    services, log = Services(workflows=[2], engines=[1]), list[str]()
    async with working(log, "first", services.execution()), working(log, "second", services.execution()) as _:
        assert (log, services.taken()) == (["first"], [1, 0, 1])
        async with working(log, "other engine", services.designs(1)) as _:
            assert log == ["first"]
    assert (sorted(log), services.taken()) == (["first", "other engine", "second"], [0, 0, 0])


async def test_while_tests_wait_no_execution_begins() -> None:
    services, log = Services(workflows=[2], tests=[1], engines=[2]), list[str]()
    async with (
        working(log, "tests", services.admission.tests("run")) as first,
        working(log, "more tests", services.admission.tests("run")),
        working(log, "execution", services.execution()),
    ):
        assert log == ["tests"]
        first.set()
        await settle()
        assert log == ["tests", "more tests", "execution"]


async def test_runs_and_jobs_take_turns_however_much_one_of_them_asks_for() -> None:
    services, log = Services(workflows=[1], engines=[1]), list[str]()

    async def one(scope: str, number: int) -> None:
        async with services.execution(scope):
            log.append(f"{scope}{number}")
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group, working([], "before them", services.execution()):
        for number in range(4):
            group.create_task(one("run", number))
        await settle()
        for number in range(2):
            group.create_task(one("job", number))
        await settle()
    assert log == ["run0", "job0", "run1", "job1", "run2", "run3"]


async def test_every_sandbox_gets_work_as_it_has_room() -> None:
    services, log = Services(workflows=[1, 3], tests=[1, 1], engines=[9]), list[str]()
    async with contextlib.AsyncExitStack() as stack:
        for number in range(4):
            await stack.enter_async_context(working(log, str(number), services.execution()))
        assert services.taken() == [1, 0, 3, 0, 4]


async def test_an_execution_goes_to_the_same_engine_while_that_has_room_and_to_another_when_not() -> None:
    services = Services(workflows=[9], engines=[1, 1])
    async with services.execution(key="a") as one, services.execution(key="a") as two:
        assert one.executor is not two.executor  # type: ignore[attr-defined]
    async with services.execution(key="a") as again:
        assert again.executor is one.executor  # type: ignore[attr-defined]


async def test_a_proposal_larger_than_the_engine_is_let_in_when_the_engine_is_free() -> None:
    services, log = Services(workflows=[1], engines=[2]), list[str]()
    async with working(log, "execution", services.execution()) as execution, working(log, "m", services.designs(64)):
        assert log == ["execution"]
        execution.set()
        await settle()
        assert (log[-1], services.taken()[-1]) == ("m", 2)


def following(services: Services) -> PolicyFleet:
    """A designer that the executors' engines play."""
    designers = PolicyFleet(["127.0.0.1:21"], "designer")
    designers.follow(services.executors)
    return designers


@pytest.mark.parametrize(("count", "rival"), [(1, "execution"), (2, "execution"), (64, "execution"), (2, "proposal")])
async def test_a_proposal_goes_next_when_as_many_have_passed_it_as_its_engines_have_seats(
    count: int, rival: str
) -> None:
    services, log = Services(workflows=[9], engines=[2]), list[str]()
    rivals = [f"{rival} {number}" for number in range(8)]

    def begin() -> contextlib.AbstractAsyncContextManager[object]:
        return services.execution("job") if rival == "execution" else services.designs(1, "job")

    async with contextlib.AsyncExitStack() as stack:
        ends = {name: await stack.enter_async_context(working(log, name, begin())) for name in rivals[:2]}
        for name in ("large 0", "large 1"):
            ends[name] = await stack.enter_async_context(working(log, name, services.designs(count)))
        for name in rivals[2:]:
            ends[name] = await stack.enter_async_context(working(log, name, begin()))
        for number in range(7):
            ends[log[number]].set()
            await settle()
        # Each waits for two, and the second counts when it is the first of its scope.
        assert log[:8] == [*rivals[:4], "large 0", *rivals[4:6], "large 1"]
    assert set(services.taken()) == {0}


async def test_a_proposal_whose_turn_it_is_holds_back_only_who_wants_its_engines_and_only_while_it_could_be_let_in() -> (
    None
):
    services, log = Services(workflows=[9], engines=[2]), list[str]()
    designers, others = following(services), PolicyFleet(["127.0.0.1:31"])
    async with contextlib.AsyncExitStack() as stack:
        work = await stack.enter_async_context(working(log, "first", services.execution()))
        proposal = services.admission.designs("run", "task", 2, designers)
        await stack.enter_async_context(working(log, "proposal", proposal))
        for number in range(2):
            async with working(log, f"passes {number}", services.execution()):
                pass
        await stack.enter_async_context(working(log, "held", services.execution()))
        elsewhere = services.admission.execution("job", "key", others)
        await stack.enter_async_context(working(log, "elsewhere", elsewhere))
        assert log == ["first", "passes 0", "passes 1", "elsewhere"]
        designers.take_out(designers.replicas()[0])
        await settle()
        assert log[-1] == "held"
        designers.put_back(designers.replicas()[0])
        await stack.enter_async_context(working(log, "held again", services.execution()))
        work.set()
        await settle()
        assert log[-1] == "held"


@pytest.mark.parametrize("after", [0, 1, 2])
async def test_who_gives_up_while_waiting_or_when_let_in_leaves_no_seat_taken(after: int) -> None:
    services, log = Services(), list[str]()
    async with working(log, "first", services.execution()) as first:

        async def wait() -> None:
            async with services.execution():
                await asyncio.sleep(1)

        waiting = asyncio.create_task(wait())
        await settle()
        first.set()
        for _ in range(after):
            await asyncio.sleep(0)
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting
    assert services.taken() == [0, 0, 0]


async def test_without_any_sandbox_work_waits_and_is_let_in_when_one_is_back() -> None:
    services, log = Services(), list[str]()
    (sandbox,) = services.sandboxes.replicas()
    services.sandboxes.take_out(sandbox, "gone")
    async with working(log, "execution", services.execution()):
        assert log == []
        services.sandboxes.put_back(sandbox)
        await settle()
        assert log == ["execution"]


async def test_a_sandbox_that_stays_away_is_a_fault_by_name_for_who_waits_and_for_who_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rotation, "_FIRST_PAUSE_SECONDS", 0.02)
    services = Services()
    (sandbox,) = services.sandboxes.replicas()
    services.sandboxes.suspect(sandbox, "UNAVAILABLE")
    try:
        for _ in range(2):
            async with asyncio.timeout(20):
                with pytest.raises(InfrastructureFaultError, match=r"no sandbox serves.*127\.0\.0\.1:1"):
                    await services.execution().__aenter__()
        services.sandboxes.put_back(sandbox)
        async with services.execution():
            assert services.taken() == [1, 0, 1]
    finally:
        await services.sandboxes.close()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["run", "job", "Solve"]), st.integers(1, 6), st.integers(0, 3), st.booleans()),
        max_size=12,
    ),
    st.integers(1, 3),
    st.integers(1, 4),
)
def test_any_mixture_of_work_ends_with_every_seat_given_back(
    tasks: list[tuple[str, int, int, bool]], slots: int, seats: int
) -> None:
    async def everything() -> None:
        services = Services([slots, 1], [1, 1], [seats, 1])

        def check() -> None:
            for sandbox in services.sandboxes.replicas():
                assert sandbox.workflows.taken <= sandbox.workflows.total
                assert sandbox.tests.taken <= sandbox.tests.total
            assert all(each.seats.taken <= each.seats.total for each in services.executors.replicas())

        async def execute(scope: str, key: str) -> None:
            async with services.execution(scope, key):
                check()
                await asyncio.sleep(0)
            async with services.admission.tests(scope):
                check()
                await asyncio.sleep(0)

        async def task(scope: str, designs: int, executions: int, gives_up: bool) -> None:
            async with asyncio.TaskGroup() as group:
                async with services.designs(designs, scope):
                    check()
                    begun = [group.create_task(execute(scope, str(number))) for number in range(executions)]
                    await asyncio.sleep(0)
                if gives_up and begun:
                    begun[0].cancel()

        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            for each in tasks:
                group.create_task(task(*each))
        assert set(services.taken()) == {0}

    asyncio.run(everything())
