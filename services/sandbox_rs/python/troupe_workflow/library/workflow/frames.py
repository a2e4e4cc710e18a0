"""Frames of the script's pipe: a 4-byte little-endian length, then that many bytes of UTF-8 JSON.

Pure: bytes in, objects out. `docs/script-pipe.md` is the contract.
"""

import json
from typing import Any

MAX_FRAME_BYTES = 1 << 20
HEADER_BYTES = 4

Frame = dict[str, Any]


class FrameError(ValueError):
    """Bytes that are no frame, or a frame that is too large to send."""


def encode(frame: Frame) -> bytes:
    """The bytes of one frame. Half surrogate pairs, which UTF-8 cannot say, become question marks.

    Raises FrameError when the frame is beyond the cap, since the other side would end the script for it.
    """
    body = json.dumps(frame, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "replace")
    if len(body) > MAX_FRAME_BYTES:
        raise FrameError(
            f"a {frame['type']} frame of {len(body)} bytes is beyond the limit of {MAX_FRAME_BYTES}: "
            "pass shorter texts to agents and tools"
        )
    return len(body).to_bytes(HEADER_BYTES, "little") + body


def body_length(header: bytes) -> int:
    """The length that a header announces; FrameError beyond the cap."""
    length = int.from_bytes(header, "little")
    if length > MAX_FRAME_BYTES:
        raise FrameError(f"a frame of {length} bytes is announced; the limit is {MAX_FRAME_BYTES}")
    return length


def decode(body: bytes) -> Frame:
    """The object in a frame's body; FrameError when it is not an object with a `type`."""
    try:
        frame = json.loads(body)
    except ValueError as error:
        raise FrameError(f"a frame is not JSON: {error}") from error
    if not isinstance(frame, dict) or not isinstance(frame.get("type"), str):
        raise FrameError("a frame is not an object with a type")
    return frame


def field(frame: Frame, name: str, kind: type) -> Any:
    """One field of a frame, of exactly the given type; FrameError otherwise."""
    value = frame.get(name)
    if type(value) is not kind:
        raise FrameError(f"field {name} of a {frame['type']} frame must be {kind.__name__}, got {value!r:.80}")
    return value
