"""Evaluates a problem file at a running orchestrator: `python examples/eval_client.py 127.0.0.1:4100 problems.jsonl`.

Bare gRPC, with nothing of Troupe but the generated stubs; a watch that is lost, or ended as idle, goes on after the last
event. An orchestrator that asks for a token is shown that of a third argument, such as `.troupe/credentials/client.token`.
"""

import sys
import time
from pathlib import Path

import grpc
from troupe.v1 import evaluation_pb2, evaluation_pb2_grpc

target, file = sys.argv[1], Path(sys.argv[2])
jobs = evaluation_pb2_grpc.EvaluationStub(grpc.insecure_channel(target))
request = evaluation_pb2.CreateEvalJobRequest(dataset_name=file.name, dataset=file.read_bytes(), samples=2)
shown = [("authorization", f"Bearer {Path(token).read_text().strip()}") for token in sys.argv[3:]]
last, job = 0, jobs.CreateEvalJob(request, metadata=shown)
while job.state == evaluation_pb2.EVAL_STATE_RUNNING:
    try:
        watch = evaluation_pb2.WatchEvalJobRequest(job_id=job.job_id, after_event_id=last)
        for event in jobs.WatchEvalJob(watch, metadata=shown):
            last, job = event.event_id, event.job
            for item in event.items:
                print(f"{job.items_done}/{job.items_total} {item.problem_id}: {item.success} {item.answer}")
    except grpc.RpcError as error:
        if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            raise
        time.sleep(1)
print(f"{job.job_id}: success {job.summary.success:.3f}, coverage {job.summary.coverage:.3f} {job.reason}")
