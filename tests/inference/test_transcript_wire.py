"""Transcripts: append-only, and the same after a journey as protobuf."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from troupe.v1 import transcript_pb2
from troupe_contracts.errors import InvalidArgument
from troupe_inference import wire
from troupe_inference.transcript import (
    Generated,
    Message,
    Role,
    StopReason,
    TokenRun,
    Transcript,
    Version,
)

tokens = st.integers(0, 2**32 - 1)
log_probs = st.floats(max_value=0, width=32, allow_infinity=False)
versions = st.builds(Version, st.text(min_size=1, max_size=5), st.integers(0, 2**64 - 1))
messages = st.builds(Message, st.sampled_from(Role), st.text(max_size=10))


@st.composite
def generated(draw) -> Transcript:
    values = tuple(draw(st.lists(log_probs, min_size=1, max_size=5)))
    ids = draw(st.lists(tokens, min_size=len(values), max_size=len(values)))
    reason = draw(st.sampled_from([StopReason.END_OF_TURN, StopReason.LENGTH]))
    return Transcript.sampled(ids, Generated(draw(versions), values, reason), (draw(messages),))


pieces = st.one_of(generated(), st.builds(Transcript.inserted, st.lists(tokens, max_size=5), st.tuples(messages)))


def joined(parts: list[Transcript]) -> Transcript:
    whole = Transcript()
    for part in parts:
        whole = whole.appended(part)
    return whole


@given(st.lists(pieces, max_size=5))
def test_a_transcript_survives_the_wire(parts):
    transcript = joined(parts)
    sent = transcript_pb2.Transcript.FromString(wire.to_proto(transcript).SerializeToString())
    assert wire.from_proto(sent) == transcript


@given(st.lists(pieces, max_size=5), pieces)
def test_appending_keeps_all_that_was_there(parts, more):
    before = joined(parts)
    after = before.appended(more)
    assert after.token_ids[: len(before.token_ids)] == before.token_ids
    assert after.runs[: len(before.runs)] == before.runs
    assert after.messages[: len(before.messages)] == before.messages
    assert len(after.trained_mask()) == len(after.token_ids)


def test_runs_that_do_not_cover_the_tokens_are_refused():
    with pytest.raises(ValueError, match="cover 1 tokens, the transcript has 2"):
        Transcript((1, 2), (TokenRun(1),))


def test_a_log_probability_is_needed_for_each_token():
    with pytest.raises(ValueError, match="one per token"):
        TokenRun(2, Generated(Version("a", 0), (-1.0,), StopReason.LENGTH))


def run(**fields) -> transcript_pb2.Transcript:
    return transcript_pb2.Transcript(token_ids=[1], runs=[transcript_pb2.TokenRun(length=1, **fields)])


INSERTED = transcript_pb2.TOKEN_RUN_KIND_INSERTED
GENERATED = transcript_pb2.TOKEN_RUN_KIND_GENERATED


@pytest.mark.parametrize(
    ("transcript", "field"),
    [
        (run(), "transcript.runs[0].kind"),
        (run(kind=INSERTED, log_probs=[-1.0]), "transcript.runs[0]"),
        (run(kind=GENERATED), "transcript.runs[0].log_probs"),
        (run(kind=GENERATED, log_probs=[-1.0]), "transcript.runs[0].version.lineage"),
        (
            transcript_pb2.Transcript(runs=[transcript_pb2.TokenRun(kind=INSERTED)]),
            "transcript.runs[0].length",
        ),
        (transcript_pb2.Transcript(token_ids=[1, 2]), "transcript.runs"),
        (transcript_pb2.Transcript(messages=[{"content": "a"}]), "transcript.messages[0].role"),
    ],
)
def test_a_broken_transcript_is_refused_by_field(transcript, field):
    with pytest.raises(InvalidArgument) as caught:
        wire.from_proto(transcript)
    assert caught.value.violations[0][0] == field


def test_a_generated_run_needs_a_stop_reason():
    broken = run(kind=GENERATED, log_probs=[-math.log(2)], version={"lineage": "a"})
    with pytest.raises(InvalidArgument, match="stop_reason"):
        wire.from_proto(broken)
