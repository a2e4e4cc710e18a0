"""What many TrainingRuns and EvalJobs cost an orchestrator: its start, a new one among them, requests while all is quiet.

    KUBECONFIG=... python benchmarks/custom_resources.py --runs 1000 --jobs 10000

The API server is a real one (etcd and `kube-apiserver` are enough), and so are the definitions, the controller and its store
(SQLite). Runs and jobs are stand-ins that do nothing: seconds are of the front door alone. All objects but those that are
timed have ended and say so, as old ones do. Beside the start stands `kubectl get -o json` of the same objects.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "kubernetes" / "harness"))

from requested.place import CONFIG, Place
from troupe_kubernetes.api import MERGE_PATCH, Api, Object
from troupe_orchestrator.custom_resources.resources import API_VERSION, EVAL_JOB, TRAINING_RUN, Kind
from troupe_orchestrator.store.database import Database

LINES = '{"id": "a", "question": "What is 6 * 7?", "answer": "42"}\n'
SPECS: dict[Kind, Object] = {
    TRAINING_RUN: {"config": CONFIG},
    EVAL_JOB: {"dataset": {"inline": LINES}, "samples": 1},
}


class CountingApi(Api):
    """Counts requests by method and resource."""

    asked: Counter[str]

    def _call(self, method: str, path: str, *arguments: Any, **options: Any) -> Any:
        # Only a watch says how long it may be silent.
        self.asked["WATCH" if "read_seconds" in options else method] += 1
        return super()._call(method, path, *arguments, **options)


def put(api: Api, kind: Kind, name: str, ended: bool) -> str:
    """Make an object; its uid."""
    made = {"apiVersion": API_VERSION, "kind": kind.name, "metadata": {"name": name}, "spec": SPECS[kind]}
    uid = api.send("POST", api.namespaced(API_VERSION, kind.plural), made)["metadata"]["uid"]
    if ended:
        status = {"phase": "Succeeded", "observedGeneration": 1, "reason": "", "conditions": []}
        path = f"{api.namespaced(API_VERSION, kind.plural, name)}/status"
        api.send("PATCH", path, {"status": status}, MERGE_PATCH)
    return str(uid)


def listed_by_kubectl(api: Api, plurals: str) -> float:
    began = time.perf_counter()
    subprocess.run(
        ["kubectl", "-n", api.namespace, "get", plurals, "-o", "json"],
        stdout=subprocess.DEVNULL,
        check=True,
        timeout=300,
    )
    return time.perf_counter() - began


async def settled(place: Place) -> None:
    """Both kinds are listed, and nothing is to be done."""
    assert place.controller is not None
    while len(place.controller._listed) < 2 or not place.controller.idle:
        await asyncio.sleep(0.005)


async def measure(runs: int, jobs: int, timed: int, quiet: float) -> None:
    admin = Api.from_kubeconfig(namespace=f"troupe-many-{uuid.uuid4().hex[:6]}")
    admin.send("POST", "/api/v1/namespaces", {"metadata": {"name": admin.namespace}})
    try:
        with ThreadPoolExecutor(8) as pool:
            names = [(TRAINING_RUN, f"run-{n}") for n in range(runs)] + [(EVAL_JOB, f"job-{n}") for n in range(jobs)]
            list(pool.map(lambda each: put(admin, *each, ended=True), names))
        rival = listed_by_kubectl(admin, f"{TRAINING_RUN.plural},{EVAL_JOB.plural}")
        with tempfile.TemporaryDirectory() as folder:
            database = await Database.open(f"sqlite:///{folder}/troupe.db", 60.0)
            api = CountingApi.from_kubeconfig(namespace=admin.namespace)
            api.asked = Counter()
            place = Place(None, api, database)  # type: ignore[arg-type]
            before = psutil.Process().memory_info().rss
            began = time.perf_counter()
            await place.start()
            await settled(place)
            start = time.perf_counter() - began
            memory = psutil.Process().memory_info().rss - before
            asked = dict(api.asked)
            seconds = [await until_running(admin, f"timed-{n}") for n in range(timed)]
            await settled(place)
            api.asked.clear()
            await asyncio.sleep(quiet)
            idle = sum(api.asked.values())
            await place.stop()
            await database.close()
    finally:
        admin.send("DELETE", f"/api/v1/namespaces/{admin.namespace}", {})
        for kind in (TRAINING_RUN, EVAL_JOB):
            # Thousands at once: the answer comes when all are gone.
            admin._call("DELETE", admin.namespaced(API_VERSION, kind.plural), {}, read_seconds=600).drain_conn()
    print(f"{runs} TrainingRuns and {jobs} EvalJobs that have ended")
    print(f"start     {start:6.2f} s, x {start / rival:.2f} of `kubectl get -o json` ({rival:.2f} s); requests {asked}")
    print(f"memory    {memory / 2**20:6.0f} MiB")
    middle, most = statistics.median(seconds), max(seconds)
    print(f"a new one {middle:6.3f} s until it says Running (median of {timed}), at most {most:.3f} s")
    print(f"quiet     {idle} requests in {quiet:.0f} s")


async def until_running(admin: Api, name: str) -> float:
    """Seconds from making an EvalJob to its status."""
    began = time.perf_counter()
    await asyncio.to_thread(put, admin, EVAL_JOB, name, False)
    path = admin.namespaced(API_VERSION, EVAL_JOB.plural, name)
    while True:
        found = await asyncio.to_thread(admin.get, path)
        if found.get("status", {}).get("phase") == "Running":
            return time.perf_counter() - began
        await asyncio.sleep(0.002)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--timed", type=int, default=20, help="EvalJobs that are made while the others are there")
    parser.add_argument("--quiet", type=float, default=20.0, help="seconds for which requests are counted")
    given = parser.parse_args()
    asyncio.run(measure(given.runs, given.jobs, given.timed, given.quiet))
