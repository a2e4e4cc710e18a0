"""Limits of scripts and replies: what passes here fits the pipe, whatever characters it has."""

import json

from hypothesis import given
from hypothesis import strategies as st
from troupe_contracts.scripts import MAX_REPLY_BYTES, MAX_SCRIPT_CHARACTERS, reply_refusal, script_refusal

FRAME = 1 << 20


def test_a_script_at_the_limit_passes_and_one_beyond_it_does_not() -> None:
    assert script_refusal("#" * MAX_SCRIPT_CHARACTERS) == ""
    assert str(MAX_SCRIPT_CHARACTERS) in script_refusal("#" * (MAX_SCRIPT_CHARACTERS + 1))
    assert "NUL" in script_refusal("x\0")
    assert "empty" in script_refusal(" \n")


@given(st.sampled_from(["\x01", "a", "é", "\U0001f600", '"', "\\", "\n"]))
def test_the_longest_script_of_any_character_fits_a_frame_with_room_for_the_question(character: str) -> None:
    assert len(json.dumps(character * MAX_SCRIPT_CHARACTERS, ensure_ascii=False).encode()) < FRAME // 4


@given(st.sampled_from(["\x01", "a", "é", "\U0001f600", '"', "\\", "\n"]), st.integers(0, 1_100_000))
def test_a_reply_passes_exactly_if_its_frame_does(character: str, length: int) -> None:
    size = len(json.dumps(character * length, ensure_ascii=False).encode())
    assert (reply_refusal(character * length) == "") == (size <= MAX_REPLY_BYTES)
