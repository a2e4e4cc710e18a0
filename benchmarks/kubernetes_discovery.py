"""How soon a fleet knows of a replica that comes or goes, at many endpoints, from a real API server.

    .venv/bin/python benchmarks/kubernetes_discovery.py --endpoints 1000 5000 --changes 300

Endpoints are entries of EndpointSlices, 100 to a slice as the endpoint controller writes them, in a namespace that is made
and removed again: no pod runs. A change takes one endpoint out, or puts it back. Measured is the time from the API server's
answer to the change until the set of members has it, in this process; beside it what asking for the whole list takes,
which is what each look would cost a client that polls, as a multiple of the processor time of a change. 0.0 ms: the set had
the change before its sender had the answer. It says nothing about pods, kubelets or traffic.
"""

from __future__ import annotations

import argparse
import random
import statistics
import threading
import time
import uuid
from dataclasses import dataclass, field

from troupe_kubernetes.api import MERGE_PATCH, Api, Object
from troupe_kubernetes.endpoints import SERVICE_LABEL, EndpointReader, endpoints
from troupe_kubernetes.mirror import Mirror, Snapshot

SLICES = "discovery.k8s.io/v1"
PER_SLICE = 100
QUERY = {"labelSelector": f"{SERVICE_LABEL}=executor"}


@dataclass
class Members:
    """The set of members, as an orchestrator keeps it, and when it changed last."""

    count: int = 0
    spent: list[float] = field(default_factory=list)
    """Seconds of processor that each change took, whole set compared."""
    reader: EndpointReader = field(default_factory=lambda: EndpointReader("grpc"))
    changed: threading.Condition = field(default_factory=threading.Condition)

    def take(self, snapshot: Snapshot) -> None:
        begun = time.thread_time()
        count = len(self.reader.read(snapshot.objects))
        with self.changed:
            self.spent.append(time.thread_time() - begun)
            self.count = count
            self.changed.notify_all()

    def wait_for(self, count: int) -> float:
        """When there were so many."""
        with self.changed:
            if not self.changed.wait_for(lambda: self.count == count, 60):
                raise TimeoutError(f"{self.count} members, {count} expected")
            return time.perf_counter()


def entries(number: int) -> list[Object]:
    """The endpoints of one slice."""
    return [
        {
            "addresses": [f"10.{number // 250}.{number % 250}.{each}"],
            "conditions": {"ready": True, "serving": True, "terminating": False},
            "targetRef": {"kind": "Pod", "name": f"executor-{number}-{each}", "uid": str(uuid.uuid4())},
        }
        for each in range(1, PER_SLICE + 1)
    ]


def measure(api: Api, count: int, changes: int, chance: random.Random) -> str:
    """A row of the table."""
    path = api.namespaced(SLICES, "endpointslices")
    slices = {f"executor-{number}": entries(number) for number in range(count // PER_SLICE)}
    for name, listed in slices.items():
        labels = {"kubernetes.io/service-name": "executor"}
        made = {"addressType": "IPv4", "ports": [{"name": "grpc", "port": 50051}], "endpoints": listed}
        api.send("POST", path, {"metadata": {"name": name, "labels": labels}, **made})
    members = Members()
    mirror = Mirror(api, path, QUERY, members.take)
    mirror.start()
    members.wait_for(count)
    members.spent.clear()
    seconds = []
    expected = count
    for _ in range(changes):
        name = chance.choice(list(slices))
        one = chance.choice(slices[name])
        one["conditions"]["terminating"] = not one["conditions"]["terminating"]
        expected += -1 if one["conditions"]["terminating"] else 1
        api.send("PATCH", f"{path}/{name}", {"endpoints": slices[name]}, MERGE_PATCH)
        answered = time.perf_counter()
        seconds.append(max(0.0, members.wait_for(expected) - answered))
    looks = []
    for _ in range(10):
        begun = time.perf_counter()
        endpoints(api.get(path, QUERY)["items"], "grpc")
        looks.append(time.perf_counter() - begun)
    mirror.stop()
    for name in slices:
        api.send("DELETE", f"{path}/{name}", {})
    p50, p99 = statistics.median(seconds), statistics.quantiles(seconds, n=100)[98]
    look, spent = statistics.median(looks), statistics.median(members.spent)
    return f"{count:>9} {p50 * 1e3:>8.1f} {p99 * 1e3:>8.1f} {spent * 1e3:>12.1f} {look * 1e3:>12.1f} {look / spent:>17.0f} ×"


def main() -> None:
    """Makes a namespace, measures in it, and removes it."""
    parser = argparse.ArgumentParser(description="Discovery at many endpoints")
    parser.add_argument("--endpoints", type=int, nargs="+", default=[1000, 5000], help="multiples of 100")
    parser.add_argument("--changes", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    api = Api.from_kubeconfig(namespace=f"troupe-discovery-{uuid.uuid4().hex[:8]}")
    api.send("POST", "/api/v1/namespaces", {"metadata": {"name": api.namespace}})
    try:
        print("endpoints   p50 ms   p99 ms  cpu ms/change  whole list ms  list beside change")
        for count in options.endpoints:
            print(measure(api, count, options.changes, random.Random(options.seed)), flush=True)
    finally:
        api.send("DELETE", f"/api/v1/namespaces/{api.namespace}", {})


if __name__ == "__main__":
    main()
