"""A rank: `python -m troupe_learner.rank SOCKET_FD FRONT_PID`, started by the front only.

Dies with the front by the kernel's doing, set before anything slow is imported.
"""

import os
import signal
import socket
import sys

from troupe_contracts.parent import die_with_parent


def main() -> None:
    descriptor, front = (int(each) for each in sys.argv[1:3])
    die_with_parent(signal.SIGKILL)
    if os.getppid() != front:
        raise SystemExit("the front ended before this rank began")
    # Imported here: torch takes seconds, in which a front that dies must already take this process along.
    from troupe_learner.channel import ChannelClosed, RankChannel
    from troupe_learner.rank.process import serve

    try:
        serve(RankChannel(socket.socket(fileno=descriptor)))
    except ChannelClosed:
        return


if __name__ == "__main__":
    main()
