"""Secrets are replaced wherever they stand, and nothing else is."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from troupe_contracts.redaction import REDACTED, keep_environment_secret, keep_secret, redact, redact_text
from troupe_contracts.tokens import new_token

TOKEN = new_token()
KEY = "-----BEGIN EC PRIVATE KEY-----\nabcd\n-----END EC PRIVATE KEY-----"


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        (f"authorization: Bearer {'x' * 20} sent", f"authorization: Bearer {REDACTED} sent"),
        ("postgresql://me:p@ss:w0rd@db:5432/runs?x=1", f"postgresql://me:{REDACTED}@db:5432/runs?x=1"),
        ("https://:only-password@host/", f"https://:{REDACTED}@host/"),
        (f"a {TOKEN}, a {TOKEN}", f"a {REDACTED}, a {REDACTED}"),
        (f"before {KEY} after", f"before {REDACTED} after"),
        (KEY.replace("\n", "\\n")[:-20], REDACTED),
        ("hf_abcdefghijklmnopqrst", REDACTED),
    ],
)
def test_what_looks_like_a_secret_is_replaced(text: str, redacted: str) -> None:
    assert redact_text(text) == redacted


@pytest.mark.parametrize(
    "text",
    [
        "127.0.0.1:4100 serves policy starter at http://host:80/path and mail@example.org",
        "the bearer of the token is bound to run 7",
        "postgresql://db:5432/runs",
        "troupe_orchestrator.training.run_loop",
        "-----BEGIN CERTIFICATE-----\nabcd\n-----END CERTIFICATE-----",
    ],
)
def test_plain_text_stays_as_it_is(text: str) -> None:
    assert redact_text(text) == text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(JSON, st.sampled_from([TOKEN, f"Bearer {TOKEN}", f"https://u:{TOKEN}@h/"]), st.integers(0, 2))
def test_a_secret_is_found_however_deep_it_lies(around: Any, secret: str, depth: int) -> None:
    value: Any = secret
    for level in range(depth):
        value = {"around": around, f"level {level}": [around, value]}
    assert TOKEN not in repr(redact({"event": value, "error": ValueError(secret)}))


def test_text_under_a_key_that_names_a_secret_is_replaced_and_numbers_stay() -> None:
    event = {"api_key": "abc", "HF_TOKEN": "abc", "password": b"abc", "token": 7, "tokens": 512, "key": "step"}
    assert redact(event) == {
        "api_key": REDACTED, "HF_TOKEN": REDACTED, "password": REDACTED, "token": 7, "tokens": 512, "key": "step",
    }  # fmt: skip


def test_known_values_are_replaced_and_short_ones_are_left_alone() -> None:
    keep_secret("whatever-this-is-4711")
    keep_environment_secret({"MY_API_KEY": "from-the-environment", "SHORT_TOKEN": "no", "EDITOR": "an-editor"})
    text = "whatever-this-is-4711 from-the-environment no an-editor"
    assert redact_text(text) == f"{REDACTED} {REDACTED} no an-editor"
