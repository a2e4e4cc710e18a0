"""How long a script may be, and a reply to it: checked alike by whoever makes one and by whoever hands it on.

A script travels to its process in one frame with the question, JSON that escapes a character into six at most; the frame's
limit is 1 MiB (`docs/script-pipe.md`).
"""

import json
from typing import Final

MAX_SCRIPT_CHARACTERS: Final = 32_768
MAX_REPLY_BYTES: Final = (1 << 20) - 1024
"""Of one agent's reply to a script, as JSON."""
_SURELY_SHORT_CHARACTERS: Final = MAX_REPLY_BYTES // 6


def script_refusal(script: str) -> str:
    """Why a script can be handed to no sandbox, which is the doing of whoever wrote it; empty if it can."""
    if not script.strip():
        return "the script is empty"
    if len(script) > MAX_SCRIPT_CHARACTERS:
        return f"the script has {len(script)} characters, the limit is {MAX_SCRIPT_CHARACTERS}"
    if "\0" in script:
        return "the script holds a NUL character"
    return ""


def reply_refusal(reply: str) -> str:
    """Why a reply can be handed to no script; empty if it can."""
    if len(reply) <= _SURELY_SHORT_CHARACTERS:
        return ""
    size = len(json.dumps(reply, ensure_ascii=False).encode())
    return "" if size <= MAX_REPLY_BYTES else f"the reply has {size} bytes, a script is given {MAX_REPLY_BYTES}"
