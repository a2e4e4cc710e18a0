"""The life of a rank: build what the first message asks for, then one command after the other."""

import os
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from troupe_contracts.settings import split_address

from troupe_learner.channel import Message, RankChannel
from troupe_learner.rank.commands import COMMANDS, Rank, Refused
from troupe_learner.rank.engine import AdamW, Engine
from troupe_learner.rank.model import DTYPES, is_tied, load_model, tensor_specs
from troupe_learner.rank.scorer import TokenScorer
from troupe_learner.rank.torch_engine import TorchEngine


def serve(channel: RankChannel) -> None:
    """Returns never; ends by `ChannelClosed` or by an exception, whose text the front reads from this rank's log."""
    start = channel.receive()
    own = None
    if start["command"] == "listen":
        own = _listening()
        channel.send({"kind": "done", "result": {"port": own.port}})
        start = channel.receive()
    torch.set_num_threads(start["threads"])
    if start["ranks"] > 1 or start["engine"] == "deepspeed":
        _meet(start, own)
    rank = _build(start, channel)
    channel.send({"kind": "done", "result": _description(rank, start)})
    while True:
        command = channel.receive()
        try:
            reply = {"kind": "done", "result": COMMANDS[command["command"]](rank, command)}
        except Refused as error:
            reply = {"kind": "refused", "code": error.code, "message": str(error)}
        channel.send(reply)


def _listening() -> TCPStore:
    """Where ranks of several machines meet: on a port that was free, so that no other generation can be met there. Listens
    on all addresses.
    """
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def _meet(start: Message, own: TCPStore | None) -> None:
    """Joins the collective of all ranks, where `rendezvous` says: at a file, or at the port that rank 0 has as its own."""
    place = urlsplit(start["rendezvous"])
    if place.scheme == "file":
        meeting: dict[str, Any] = {"init_method": start["rendezvous"]}
    else:
        # Each rank's is made here: torch puts a prefix before the keys of those that it makes itself.
        host, port = split_address(place.netloc)
        meeting = {"store": own or TCPStore(host, port, is_master=False, wait_for_workers=False)}
    dist.init_process_group("gloo", rank=start["rank"], world_size=start["ranks"], **meeting)


def _build(start: Message, channel: RankChannel) -> Rank:
    served = DTYPES[start["dtype"]]
    deepspeed = start["engine"] == "deepspeed"
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
