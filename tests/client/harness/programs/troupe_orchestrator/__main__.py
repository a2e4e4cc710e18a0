import asyncio

import grpc
from standin.orchestrator import Evaluation, OrchestratorSettings, Solver, Training
from troupe.v1 import evaluation_pb2_grpc, solver_pb2_grpc, training_pb2_grpc
from troupe_contracts.server import serve


def register(server: grpc.aio.Server) -> None:
    training_pb2_grpc.add_TrainingServicer_to_server(Training(), server)  # type: ignore[abstract]
    evaluation_pb2_grpc.add_EvaluationServicer_to_server(Evaluation(), server)  # type: ignore[abstract]
    solver_pb2_grpc.add_SolverServicer_to_server(Solver(), server)


services = ["troupe.v1.Training", "troupe.v1.Evaluation", "troupe.v1.Solver"]
asyncio.run(serve("orchestrator", OrchestratorSettings.load(), register, services))
