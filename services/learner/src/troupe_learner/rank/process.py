"""The life of a rank: build what the first message asks for, then one command after the other."""

import os
from functools import partial
from typing import Any

import torch
from torch import distributed as dist

from troupe_learner.channel import Message, RankChannel
from troupe_learner.rank.commands import COMMANDS, Rank, Refused
from troupe_learner.rank.engine import AdamW, Engine
from troupe_learner.rank.model import DTYPES, is_tied, load_model, tensor_specs
from troupe_learner.rank.scorer import TokenScorer
from troupe_learner.rank.torch_engine import TorchEngine


def serve(channel: RankChannel) -> None:
    """Returns never; ends by `ChannelClosed` or by an exception, whose text the front reads from this rank's log."""
    start = channel.receive()
    torch.set_num_threads(start["threads"])
    rank = _build(start, channel)
    channel.send({"kind": "done", "result": _description(rank, start)})
    while True:
        command = channel.receive()
        try:
            reply = {"kind": "done", "result": COMMANDS[command["command"]](rank, command)}
        except Refused as error:
            reply = {"kind": "refused", "code": error.code, "message": str(error)}
        channel.send(reply)


def _build(start: Message, channel: RankChannel) -> Rank:
    rank, ranks = start["rank"], start["ranks"]
    served = DTYPES[start["dtype"]]
    deepspeed = start["engine"] == "deepspeed"
    if ranks > 1 or deepspeed:
        rendezvous = f"file://{start['rendezvous']}"
        dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=ranks)
    # Plain torch keeps its masters as the parameters; DeepSpeed keeps them beside parameters of the served type.
    held = served if deepspeed else torch.float32
    model = load_model(start["model"], held)
    specs = tensor_specs(model, served)
    scorer = TokenScorer(model)
    scorer.check()
    return Rank(
        engine=_engine(start, scorer, served),
        initial=partial(load_model, start["model"], held),
        rng=torch.get_rng_state(),
        specs=specs,
        tied=is_tied(model),
        token_budget=start["tokens_per_microbatch"],
        recompute_old=start["recompute_old"],
        progress=(lambda done: channel.send({"kind": "progress", "value": done})),
    )


def _engine(start: Message, scorer: TokenScorer, served: torch.dtype) -> Engine:
    adamw = AdamW(**start["adamw"])
    rank, ranks = start["rank"], start["ranks"]
    if start["engine"] == "torch":
        return TorchEngine(scorer, adamw, served, rank, ranks)
    # Imported here: DeepSpeed takes seconds and memory that the other engine does not need.
    from troupe_learner.rank.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(scorer, adamw, served, start["zero_stage"], rank, ranks)


def _description(rank: Rank, start: Message) -> dict[str, Any]:
    """What the front checks and tells: tensors, threads and cores as they are, not as they were asked for."""
    return {
        "tensors": [[spec.name, list(spec.shape)] for spec in rank.specs],
        "tied": rank.tied,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cores": sorted(os.sched_getaffinity(0)),
        "engine": start["engine"],
    }
