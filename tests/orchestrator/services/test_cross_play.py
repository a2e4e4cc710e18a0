"""Cross-play with one policy for both roles: the designs of one version played by another."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
from orchestrated.models import RIGHT, SINGLE, WRONG
from orchestrated.world import Backends, World, backends, eval_request, lines, math_task, refused
from rich.console import Console
from safetensors.numpy import save_file
from troupe.v1 import designer_pb2, evaluation_pb2, policy_pb2, training_pb2
from troupe_client.cross_play import cross_play
from troupe_client.frame import CommandError
from troupe_client.render_comparison import cross_table
from troupe_client.sdk import Client
from troupe_contracts.errors import Unavailable

pytestmark = pytest.mark.asyncio(loop_scope="session")

HELD = [math_task(f"held-{number}") for number in range(4)]
STORED = evaluation_pb2.EVAL_MODE_STORED_DESIGNS
INVALID = designer_pb2.Design(text="none", problems=[designer_pb2.ScriptProblem(message="no script")])


def designed(request: designer_pb2.ProposeDesignsRequest) -> str:
    """Tells its version to the agent."""
    return SINGLE.replace("Solve it.", f"Designed by version {request.version.number}.")


def played(request: policy_pb2.GenerateRequest) -> str:
    """Right on one problem of four, one more with the better designer, two more with the better executor."""
    said = "\n".join(message.content for message in request.messages)
    solved = 1 + ("version 2" in said) + 2 * (request.version.number == 2)
    return RIGHT if any(f"(held-{number})" in said for number in range(solved)) else WRONG


def checkpoint(step: int) -> evaluation_pb2.EvalTarget:
    return evaluation_pb2.EvalTarget(checkpoint=evaluation_pb2.CheckpointTarget(run_id="run", step=step))


async def trained(world: World) -> None:
    """A run of two steps with a checkpoint after each, and weights where the stand-in learner wrote none."""
    tasks = [math_task(f"task-{number}") for number in range(4)]
    await world.run(world.config(tasks, checkpoint={"every": 1, "keep": 2}))
    for uri in world.backends.learner.checkpoints:
        model = Path(uri) / "model"
        model.mkdir(parents=True)
        save_file({}, model / "model.safetensors")
        (model / "config.json").write_text("{}")


async def test_each_designer_is_played_by_each_executor_and_the_same_call_again_runs_nothing(
    open_world, stand_ins: Backends
) -> None:
    async with open_world(learner=True) as world, Client(world.target) as client:
        await trained(world)
        stand_ins.designer.otherwise = [designed]
        stand_ins.policy.reply = played
        stand_ins.designer.begin_again()
        request = eval_request(*HELD, target=checkpoint(2))
        cells = await cross_play(client, request, checkpoint(1), "cross")
        success = {sides: job.summary.success for sides, job in cells.items()}
        assert success == {
            ("before", "before"): 0.25,
            ("after", "before"): 0.5,
            ("before", "after"): 0.75,
            ("after", "after"): 1.0,
        }
        mixed = cells["before", "after"]
        assert (mixed.designer_version.number, mixed.executor_version.number) == (1, 2)
        assert (mixed.job_id, mixed.designs_of) == ("cross-before-after", "cross-before")
        assert len(stand_ins.designer.requests) == 8
        asked = len(stand_ins.policy.requests)
        again = await cross_play(client, request, checkpoint(1), "cross")
        assert {sides: job.summary.success for sides, job in again.items()} == success
        assert len(stand_ins.policy.requests) == asked
        console = Console(width=120, record=True)
        console.print(cross_table(cells))
        shown = console.export_text()
        assert ["75.0 % [" in shown, "designer before" in shown, "executor after" in shown] == [True] * 3


async def test_one_command_shows_the_table_and_one_the_rival_at_equal_tokens(open_world, stand_ins: Backends) -> None:
    async with open_world(learner=True) as world:
        await trained(world)
        stand_ins.designer.otherwise = [designed]
        stand_ins.policy.reply = played
        file = world.folder / "held.jsonl"
        file.write_text(lines(*HELD))

        async def troupe(*options: str) -> str:
            command = [sys.executable, "-m", "troupe_client", "eval", "--dataset", str(file), "--target", world.target]
            ran = await asyncio.create_subprocess_exec(
                *command, *options, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
            )
            said, _ = await ran.communicate()
            assert ran.returncode == 0, said.decode()
            return said.decode()

        options = ("--of", "checkpoint:run@2", "--cross-play", "checkpoint:run@1", "--job-id", "cross")
        said = await troupe(*options)
        assert [f"{success} % [" in said for success in ("25.0", "50.0", "75.0", "100.0")] == [True] * 4, said
        assert await troupe("--mode", "majority", "--votes", "equal:cross-after", "--job-id", "rival")
        jobs = (await world.evaluation.ListEvalJobs(evaluation_pb2.ListEvalJobsRequest())).jobs
        assert {job.job_id for job in jobs if job.votes} == {"rival"}
        assert "rival-agent" in {job.job_id for job in jobs}


async def test_a_job_of_the_table_that_was_cancelled_is_gone_on_with(open_world, stand_ins: Backends) -> None:
    async with open_world(learner=True) as world, Client(world.target) as client:
        await trained(world)
        await client.create_eval(eval_request(*HELD, target=checkpoint(1), job_id="cross-before"))
        await client.cancel_eval("cross-before")
        cells = await cross_play(client, eval_request(*HELD, target=checkpoint(2)), checkpoint(1), "cross")
        assert [job.items_done for job in cells.values()] == [4] * 4


async def test_an_executor_that_changes_between_two_jobs_of_a_column_is_refused_by_name(
    open_world, stand_ins: Backends
) -> None:
    endpoint = evaluation_pb2.EndpointTarget
    async with open_world() as world, Client(world.target) as client, backends() as others:

        def moves(request: policy_pb2.GenerateRequest) -> str:
            others.policy.weights.version.number += 1
            return RIGHT

        others.policy.reply = moves
        after = evaluation_pb2.EvalTarget(endpoint=endpoint(executor=others.target, designer=others.target))
        before = evaluation_pb2.EvalTarget(endpoint=endpoint(designer=others.target))
        with pytest.raises(CommandError, match=r"executor after .* start:0 in eval job cross-after and start:1"):
            await cross_play(client, eval_request(HELD[0], target=after), before, "cross")


async def test_a_design_that_cannot_be_run_stays_one_and_items_without_a_result_are_no_designs(
    open_world, stand_ins: Backends
) -> None:
    async with open_world() as world:
        stand_ins.designer.scripts[str(HELD[0]["question"])] = [INVALID]
        await world.evaluate(*HELD[:2], job_id="designs")
        job = await world.evaluate(*HELD[:2], mode=STORED, designs_of="designs")
        assert [(item.status, item.valid_script) for item in await world.items(job.job_id)] == [
            ("policy_fault", False),
            ("ok", True),
        ]
        stand_ins.policy.reply = lambda request: (_ for _ in ()).throw(Unavailable("gone"))
        await world.evaluate(*HELD[:2], job_id="faulted")
        for fields, code, said in (
            ({"designs_of": "nobody"}, "NOT_FOUND", "nobody"),
            ({"designs_of": job.job_id}, "FAILED_PRECONDITION", "EVAL_MODE_STORED_DESIGNS"),
            ({"designs_of": "faulted"}, "FAILED_PRECONDITION", "--retry-faults faulted"),
            ({"designs_of": "designs", "samples": 2}, "FAILED_PRECONDITION", "samples"),
            ({"designs_of": "designs", "dataset": b"{}\n"}, "INVALID_ARGUMENT", "dataset"),
            ({"designs_of": ""}, "INVALID_ARGUMENT", "designs_of"),
            ({"designs_of": "designs", "mode": evaluation_pb2.EVAL_MODE_SYSTEM}, "INVALID_ARGUMENT", "designs_of"),
        ):
            with refused(code, said):
                await world.evaluation.CreateEvalJob(eval_request(*HELD[:2], **{"mode": STORED, **fields}))
        with refused("FAILED_PRECONDITION", "other problems"):
            await world.evaluation.CreateEvalJob(eval_request(*HELD[2:], mode=STORED, designs_of="designs"))


async def test_designs_are_not_taken_from_trees_that_are_not_those_that_were_stored(
    open_world, stand_ins: Backends
) -> None:
    async with open_world() as world:
        await world.evaluate(*HELD[:2], job_id="designs")
        (file, *_) = (world.folder / "data" / "evals" / "designs" / "trees").glob("*.parquet")
        file.write_bytes(file.read_bytes()[:-1] + b"X")
        job = await world.evaluate(*HELD[:2], mode=STORED, designs_of="designs", job_id="played")
        assert job.state == evaluation_pb2.EVAL_STATE_FAILED
        for said in ("designs: has no trees to take designs from", str(file), "put it back", "run the job again"):
            assert said in job.reason


async def test_what_a_run_began_with_is_its_learners_model_or_the_base_of_a_fork(open_world) -> None:
    async with open_world(learner=True) as world:
        await trained(world)
        fork = training_pb2.ForkRunRequest(parent_run_id="run", step=1, run_id="fork")
        await world.training.ForkRun(fork)
        await world.run_events("fork")
        found = []
        for run_id in ("run", "fork"):
            target = evaluation_pb2.EvalTarget(checkpoint=evaluation_pb2.CheckpointTarget(run_id=run_id, start=True))
            job = await world.evaluation.CreateEvalJob(eval_request(*HELD, target=target))
            found.append(job.target.checkpoint)
        assert dict(found[0].uris) == {"scripted": "no model"}
        assert (found[1].run_id, found[1].step, "base-scripted" in found[1].uris["scripted"]) == ("fork", 1, True)
