"""A stand-in for a rank, without torch (`test_learner_agent.py`): answers commands with what it was told and what it read.

python standin_rank.py SOCKET_FD PARENT_PID
"""

import contextlib
import socket
import sys
from pathlib import Path

from troupe_learner.channel import ChannelClosed, Message, RankChannel
from troupe_learner.checkpoint_layout import MODEL_WEIGHTS, state_file


def answer(rank: int, message: Message) -> Message:
    """The result of a command."""
    match message["command"]:
        case "listen":
            return {"port": 29500}
        case "train":
            return {"read": Path(message["batch"]).read_text(), "from": message["batch"]}
        case "save":
            (Path(message["folder"]) / state_file(rank)).write_text(f"state of rank {rank}")
        case "load":
            names = (state_file(rank), MODEL_WEIGHTS)
            return {"read": [(Path(message["folder"]) / name).read_text() for name in names]}
    return message


def main() -> None:
    channel, rank = RankChannel(socket.socket(fileno=int(sys.argv[1]))), 0
    with contextlib.suppress(ChannelClosed):
        while True:
            message = channel.receive()
            rank = message.get("rank", rank)
            channel.send({"kind": "done", "result": answer(rank, message)})


if __name__ == "__main__":
    main()
