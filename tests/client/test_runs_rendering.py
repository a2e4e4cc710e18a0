"""What `troupe runs show`, `troupe runs diff` and `troupe train --plan` draw."""

import io
import json
import struct
from pathlib import Path

import pytest
from rich.console import Console
from troupe.v1 import training_pb2
from troupe_client.model_description import describe_profile
from troupe_client.profile import Profile
from troupe_client.render_runs import byte_size, show, show_difference, show_plan
from troupe_client.run_difference import difference
from troupe_client.run_report import report, told_of


def drawn(draw, *arguments: object) -> str:  # type: ignore[no-untyped-def]
    written = io.StringIO()
    draw(Console(file=written, width=200, highlight=False, markup=False), *arguments)
    return written.getvalue()


def run(run_id: str = "r-1", **fields: object) -> training_pb2.Run:
    provenance = training_pb2.RunProvenance(
        source_revision="c" * 40,
        source_dirty=True,
        source_version="0.1.0",
        lock_source="uv.lock",
        lock_digest="1" * 64,
        data_digest="d" * 64,
        data_tasks=12,
        seed=3,
        isolation_profile="full",
        plugins=[training_pb2.PluginProvenance(kind="grader", name="units", distribution="my-graders", version="1.2")],
        policies=[
            training_pb2.PolicyProvenance(
                policy_id="p", roles=["designer", "executor"], model="m", serving_engine="vllm"
            )
        ],
    )
    known: dict[str, object] = {
        "run_id": run_id,
        "state": training_pb2.RUN_STATE_PAUSED,
        "reason": "after step 4 NoVariance: [red]zero[/red]",
        "config": "seed: 3\nstages:\n- train: executor\n",
        "committed_steps": 4,
        "total_steps": 9,
        "stage": 2,
        "trains": "designer",
        "forkable_steps": "0, 3-4",
        "best_step": 4,
        "best_success": 0.625,
        "provenance": provenance,
        "last_metrics": {"success": 0.5, "seconds": 2.0},
        "disk_bytes": training_pb2.DiskBytes(trees=1536, checkpoints=5 * 2**20),
        "checkpoints": [training_pb2.RunCheckpoint(step=4, uris={"p": "/c/step-4"}, best=True)],
        "quarantined_tasks": [training_pb2.QuarantinedTask(task_id="t-9", reason="sandbox: gone", drops=3)],
        "recent_events": [
            training_pb2.RunEvent(
                step=4, condition=training_pb2.Condition(reason="NoVariance", message="all alike", remedy="other tasks")
            )
        ],
    }
    return training_pb2.Run(**(known | fields))  # type: ignore[arg-type]


def test_a_run_is_shown_with_reason_provenance_faults_disk_and_checkpoints() -> None:
    text = drawn(show, run())
    for part in (
        "paused",
        "[red]zero[/red]",
        "2, trains designer",
        "after steps 0, 3-4",
        "4, 62.5 % in validation",
        "units, of my-graders 1.2",
        f"{'c' * 40} with changes that are not committed, version 0.1.0",
        f"{'d' * 64}, 12 tasks",
        "vllm",
        "1.5 KiB",
        "5.0 MiB",
        "step 4 (best)",
        "sandbox: gone (3 drops)",
        "NoVariance: all alike; other tasks",
        "0.5",
    ):
        assert part in text


def test_the_status_of_open_runs_names_faults_with_their_remedy_and_tasks_that_are_left_out() -> None:
    text = report([run(), run("r-2", state=training_pb2.RUN_STATE_QUEUED, reason="waits", recent_events=[])], 3)
    for part in (
        "paused r-1, 4 of 9 steps: after step 4 NoVariance",
        "step 4: NoVariance: all alike; other tasks",
        "no longer drawn: t-9 (sandbox: gone)",
        "queued r-2, 4 of 9 steps: waits",
        "3 more runs",
    ):
        assert part in text
    assert report([], 0) == "no run under way"


def test_parts_that_a_run_does_not_have_are_left_out() -> None:
    text = drawn(show, training_pb2.Run(run_id="r-1", state=training_pb2.RUN_STATE_RUNNING, total_steps=2))
    for part in ("provenance", "quarantined", "checkpoints", "disk", "events"):
        assert part not in text


def test_of_two_runs_only_what_differs_is_shown_with_both_sides() -> None:
    fork = training_pb2.RunFork(parent_run_id="r-1", step=3)
    other = run("r-2", config="seed: 4\nstages:\n- train: executor\n- train: both\n", last_metrics={"success": 0.75})
    other.provenance.fork.CopyFrom(fork)
    other.provenance.plugins[0].version = "1.3"
    found = difference(run(), other)
    assert [(each.name, each.first, each.second) for each in found.config] == [
        ("seed", "3", "4"),
        ("stages.1.train", None, "both"),
    ]
    assert ("fork.parent_run_id", None, "r-1") in [(each.name, each.first, each.second) for each in found.provenance]
    plugin = ("plugins.grader units", "my-graders 1.2", "my-graders 1.3")
    assert plugin in [(each.name, each.first, each.second) for each in found.provenance]
    assert ("success", "0.5", "0.75") in [(each.name, each.first, each.second) for each in found.metrics]
    text = drawn(show_difference, found)
    assert "stages.1.train" in text
    assert "tokenizer" not in text


def test_runs_that_do_not_differ_are_said_not_to() -> None:
    assert "r-1 and r-1 do not differ" in drawn(show_difference, difference(run(), run()))


def test_a_plan_names_bounds_estimates_and_formulas() -> None:
    plan = training_pb2.RunPlan(
        steps=4,
        tasks=9,
        stages=[
            training_pb2.StagePlan(
                stage=1, trains="executor", first_step=1, last_step=2, tasks=3, designs=2, executions=4,
                executor_sequences=12345, generated_tokens=678901,
            )
        ],
        estimates=[
            training_pb2.PlanEstimate(name="generated tokens", value=1e6, unit="tokens", formula="a × b", bound=True),
            training_pb2.PlanEstimate(name="checkpoint", value=3 * 2**30, unit="bytes", formula="c + d"),
        ],
    )  # fmt: skip
    text = drawn(show_plan, plan)
    for part in ("4 steps over 9 tasks", "3 × 2 × 4", "12,345", "678,901", "at most", "1,000,000 tokens", "about"):
        assert part in text
    assert "3.0 GiB" in text
    assert "the stages repeat" in text


@pytest.mark.parametrize(("value", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (2**60, "1024.0 PiB")])
def test_bytes_are_shown_in_the_unit_that_fits(value: int, text: str) -> None:
    assert byte_size(value) == text


def test_a_profiles_models_are_read_off_their_headers(tmp_path: Path) -> None:
    header = {
        "__metadata__": {"format": "pt"},
        "model.layers.0.self_attn.k_proj.weight": {"dtype": "BF16", "shape": [16, 8], "data_offsets": [0, 256]},
        "model.layers.0.self_attn.v_proj.weight": {"dtype": "BF16", "shape": [16, 8], "data_offsets": [256, 512]},
        "model.embed_tokens.weight": {"dtype": "BF16", "shape": [100, 8], "data_offsets": [512, 2112]},
    }
    packed = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(packed)) + packed)
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 4096}')
    profile = Profile.model_validate(
        {
            "executor": {"model": str(tmp_path), "policy_id": "p"},
            "designer": {"policy_id": "p"},
            "learner": {"ranks": 2, "engine": "deepspeed"},
        }
    )
    models = describe_profile(profile)
    (found,) = models.policies
    assert models.left_out == ()
    assert (found.parameters, found.weight_bytes, found.kv_bytes_per_token) == (1056, 2112, 64)
    assert (found.context_length, found.learner_ranks, list(found.roles)) == (4096, 2, ["designer", "executor"])


@pytest.mark.parametrize(
    ("model", "file", "why"),
    [
        ("hub/id", "", "'hub/id' is no folder here; download the model"),
        ("", "config.json", "holds no *.safetensors; save the model as safetensors"),
        ("", "model.safetensors", "holds no config.json; copy the model's there"),
    ],
)
def test_a_model_that_cannot_be_read_here_is_left_out_of_the_plan_by_name_with_the_remedy(
    tmp_path: Path, model: str, file: str, why: str
) -> None:
    if file:
        (tmp_path / file).touch()
    profile = Profile.model_validate(
        {"executor": {"model": model or str(tmp_path), "policy_id": "p"}, "designer": {"policy_id": "p"}, "learner": {}}
    )
    models = describe_profile(profile)
    assert models.policies == ()
    (line,) = models.left_out
    text = " ".join(drawn(show_plan, training_pb2.RunPlan(steps=1, tasks=1), models.left_out).split())
    assert line in text
    for said in ("memory, checkpoint and batch bytes of policy p", why, "or plan while `troupe up` serves it"):
        assert said in line


def run_in(run_id: str, state: str) -> training_pb2.Run:
    return training_pb2.Run(
        run_id=run_id, state=training_pb2.RunState.Value(f"RUN_STATE_{state}"), reason="broke; mend"
    )


def test_the_newest_failed_run_is_told_of_until_a_newer_one_runs_or_succeeds() -> None:
    failed = [run_in("b", "FAILED"), run_in("a", "FAILED")]
    assert told_of(failed) == ["b"]
    assert told_of([run_in("d", "QUEUED"), run_in("c", "CANCELLED"), *failed]) == ["d", "b"]
    assert told_of([run_in("c", "RUNNING"), *failed]) == ["c"]
    assert told_of([run_in("c", "SUCCEEDED"), *failed]) == []
    assert told_of([*failed, run_in("z", "PAUSED")]) == ["b", "z"]
    assert "failed b, 0 of 0 steps: broke; mend" in report([failed[0]], 0)


def test_of_what_went_wrong_in_the_last_step_a_run_shows_what_is_above_zero() -> None:
    metrics = {
        "tasks_dropped": 1.0,
        "faults": 3.0,
        "faults/sandbox": 3.0,
        "faults/executor": 0.0,
        "drop_rate/prompt_lt_128": 0.0,
        "drop_rate/prompt_ge_2048": 0.25,
    }
    text = drawn(show, run(last_metrics=metrics))
    for shown in ("tasks_dropped", "faults/sandbox", "drop_rate/prompt_ge_2048", "0.25"):
        assert shown in text
    for left_out in ("faults/executor", "drop_rate/prompt_lt_128"):
        assert left_out not in text
    assert "tasks_dropped" not in drawn(show, run(last_metrics={"tasks_dropped": 0.0, "faults": 0.0}))
