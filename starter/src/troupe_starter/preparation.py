"""Writes all that the starter profile needs into one folder: what `make quickstart` begins with.

    model/          the cold-started policy
    prompt/         the designer's prompt
    train.jsonl     training tasks            held_out.jsonl   tasks that no part of training sees
    run.yaml        the training run          serving.yaml     how evaluations and solving sample
    profile.yaml    the services

Invariant: the folder is there whole or not at all. One preparation of a folder at a time.
"""

import shutil
from pathlib import Path

import yaml

from troupe_starter import coldstart, tasks
from troupe_starter.coldstart import Outcome, Progress, Settings
from troupe_starter.prompts import PROMPT_FOLDER

CONFIG_FOLDER = PROMPT_FOLDER.parent
# Enough for every step of the run to draw tasks that it has not drawn before.
TRAINING_TASKS = 1_500
HELD_OUT_TASKS = 450


def prepare(folder: Path, seed: int, settings: Settings, progress: Progress) -> Outcome:
    """Makes the folder, which must not exist. Raises as `coldstart.run`."""
    if folder.exists():
        raise FileExistsError(f"{folder} exists: remove it, or prepare another folder")
    folder = folder.resolve()
    part = folder.with_name(f".{folder.name}.part")
    # What a preparation left that was killed.
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        tasks.write_jsonl(tasks.sample("train", TRAINING_TASKS, seed), part / "train.jsonl")
        # The same tasks for every seed, so that runs can be compared.
        tasks.write_jsonl(tasks.sample("held_out", HELD_OUT_TASKS, 0), part / "held_out.jsonl")
        shutil.copytree(PROMPT_FOLDER, part / "prompt")
        outcome = coldstart.run(part / "model", seed, settings, progress)
        shutil.copy(CONFIG_FOLDER / "serving.yaml", part)
        _write_run(part / "run.yaml", seed)
        _write_profile(part / "profile.yaml", folder / "serving.yaml")
        part.rename(folder)
    except BaseException:
        shutil.rmtree(part)
        raise
    return outcome


def _write_run(path: Path, seed: int) -> None:
    run = yaml.safe_load((CONFIG_FOLDER / "run.yaml").read_text())
    run["seed"] = seed
    path.write_text(yaml.safe_dump(run, sort_keys=False))


def _write_profile(path: Path, serving: Path) -> None:
    """`serving` is absolute: the orchestrator does not run in the profile's folder."""
    profile = yaml.safe_load((CONFIG_FOLDER / "profile.yaml").read_text())
    profile["orchestrator"]["settings"]["serving"] = str(serving)
    path.write_text(yaml.safe_dump(profile, sort_keys=False))
