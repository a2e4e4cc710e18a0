"""A port on loopback that leads to a Service's pod, through a stand-in API server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from standin_api.objects import PODS, SLICES, endpoint, endpoint_slice, pod, running, unschedulable, waiting
from standin_api.server import StandInApi
from troupe.v1 import training_pb2, training_pb2_grpc
from troupe_client.kubernetes.forwarding import forwarded_service
from troupe_client.kubernetes.place import NoDeploymentError
from troupe_client.sdk import Client
from troupe_contracts.server import start
from troupe_contracts.settings import ServiceSettings
from troupe_kubernetes.api import Api

SERVICES = "/api/v1/namespaces/troupe/services"


class StandInTraining(training_pb2_grpc.TrainingServicer):
    """Tells events 1 to 4, and breaks off after the second unless asked for those after it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.hold: asyncio.Event | None = None

    async def GetRun(self, request: training_pb2.GetRunRequest, context: object) -> training_pb2.Run:
        return training_pb2.Run(run_id=request.run_id, folder=self.name, config="x" * 300_000)

    async def WatchRun(
        self, request: training_pb2.WatchRunRequest, context: object
    ) -> AsyncIterator[training_pb2.RunEvent]:
        for number in range(request.after_event_id + 1, 5):
            yield training_pb2.RunEvent(event_id=number)
            if number == 2 and self.hold is not None:
                await self.hold.wait()


@contextlib.asynccontextmanager
async def orchestrator_pod(standin: StandInApi, name: str) -> AsyncIterator[StandInTraining]:
    """A pod that serves, and that the Service leads to."""
    training = StandInTraining(name)
    served = await start(
        ServiceSettings(),
        lambda server: training_pb2_grpc.add_TrainingServicer_to_server(training, server),
        ["troupe.v1.Training"],
    )
    standin.pods[name] = served.target
    standin.put(SERVICES, {"metadata": {"name": "orchestrator"}})
    standin.put(SLICES, endpoint_slice("orchestrator", endpoint("10.0.0.9", name)))
    yield training
    await served.drain(0)


async def test_calls_reach_the_pod_of_the_service_and_answers_come_back(
    standin: StandInApi, api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        orchestrator_pod(standin, "orchestrator-0"),
        forwarded_service(api, "orchestrator") as target,
        Client(target) as client,
    ):
        runs = await asyncio.gather(*(client.get_run(f"run-{number}") for number in range(8)))
    assert target.startswith("127.0.0.1:")
    assert [run.run_id for run in runs] == [f"run-{number}" for number in range(8)]
    assert {len(run.config) for run in runs} == {300_000}
    await asyncio.sleep(0.05)
    assert not caplog.records


async def test_a_watch_goes_on_with_the_pod_that_replaces_the_one_before(standin: StandInApi, api: Api) -> None:
    async with contextlib.AsyncExitStack() as stack:
        before = await stack.enter_async_context(orchestrator_pod(standin, "orchestrator-before"))
        before.hold = asyncio.Event()
        target = await stack.enter_async_context(forwarded_service(api, "orchestrator"))
        client = await stack.enter_async_context(Client(target))
        seen = []
        async for event in client.watch_run("run"):
            seen.append(event.event_id)
            if event.event_id == 2 and "orchestrator-before" in standin.pods:
                del standin.pods["orchestrator-before"]
                await stack.enter_async_context(orchestrator_pod(standin, "orchestrator-after"))
                standin.cut_forwards()
        run = await client.get_run("run")
    assert seen == [1, 2, 3, 4]
    assert run.folder == "orchestrator-after"


async def test_without_the_service_it_says_what_to_install(standin: StandInApi, api: Api) -> None:
    standin.put(SERVICES, {"metadata": {"name": "other"}})
    with pytest.raises(NoDeploymentError, match=r"namespace troupe of http.* has no Service orchestrator: install"):
        async with forwarded_service(api, "orchestrator"):
            pass


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (
            unschedulable("0/1 nodes are available: 1 Insufficient memory."),
            "orchestrator-0 Pending: insufficient memory",
        ),
        (waiting("ImagePullBackOff"), "orchestrator-0 ImagePullBackOff: troupe/main:1"),
        (running(False), "1 pods, none of them ready"),
    ],
)
async def test_with_nobody_behind_the_service_it_says_why(
    standin: StandInApi, api: Api, status: dict[str, object], said: str
) -> None:
    standin.put(SERVICES, {"metadata": {"name": "orchestrator"}})
    standin.put(PODS, pod("orchestrator-0", "orchestrator", status))
    standin.put(SLICES, endpoint_slice("orchestrator", endpoint("10.0.0.9", "orchestrator-0", ready=False)))
    with pytest.raises(NoDeploymentError, match=said):
        async with forwarded_service(api, "orchestrator"):
            pass
