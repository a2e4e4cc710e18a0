"""Tokens and the files that hold them."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from troupe_contracts.access import Role
from troupe_contracts.tokens import CredentialError, line_for, new_token, parse_known, read_known, read_token, role_of

ROLES = [role for role in Role if role is not Role.ANONYMOUS]
TOKENS = st.text(st.characters(codec="ascii", min_codepoint=33), min_size=32, max_size=80)


@given(st.dictionaries(TOKENS, st.sampled_from(ROLES), min_size=1), TOKENS)
def test_a_token_has_the_role_of_its_line_and_any_other_has_none(tokens: dict[str, Role], other: str) -> None:
    known = parse_known("\n".join(line_for(role, token) for token, role in tokens.items()))
    for token, role in tokens.items():
        assert role_of(known, token) is role
        assert token not in "".join(map(repr, known))
    assert role_of(known, other) is tokens.get(other)


def test_two_tokens_of_a_role_are_good_at_the_same_time_so_that_one_can_replace_the_other() -> None:
    old, new = new_token(), new_token()
    known = parse_known(f"# from last week\n{line_for(Role.CLIENT, old)}\n\n{line_for(Role.CLIENT, new)}\n")
    assert role_of(known, old) is role_of(known, new) is Role.CLIENT


@pytest.mark.parametrize(
    "line",
    [
        "client my-secret-token",
        "client sha256:",
        "client sha256:" + "A" * 64,
        "client sha256:" + "0" * 63,
        "anonymous sha256:" + "0" * 64,
        "root sha256:" + "0" * 64,
        "sha256:" + "0" * 64,
    ],
)
def test_a_bad_line_is_told_by_number_and_never_quoted(line: str) -> None:
    with pytest.raises(CredentialError, match="the file, line 2: ") as caught:
        parse_known(f"{line_for(Role.CLIENT, new_token())}\n{line}\n")
    assert "secret" not in str(caught.value)


def test_a_file_that_names_no_token_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("# later\n")
    with pytest.raises(CredentialError, match=r"tokens names no token: nobody could call"):
        read_known(tmp_path / "tokens")


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 31, b"two words " + b"x" * 40, b"\xff" * 40, b"a\n" * 40])
def test_what_is_no_token_is_refused_and_not_quoted(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "token").write_bytes(content)
    with pytest.raises(CredentialError) as caught:
        read_token(tmp_path / "token")
    assert str(tmp_path / "token") in str(caught.value)
    assert "xxxx" not in str(caught.value)


def test_a_token_is_read_without_the_newline_that_editors_add(tmp_path: Path) -> None:
    token = new_token()
    (tmp_path / "token").write_text(f"{token}\n")
    assert read_token(tmp_path / "token") == token


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for read in (read_known, read_token):
        with pytest.raises(CredentialError, match="nowhere: No such file"):
            read(tmp_path / "nowhere")
