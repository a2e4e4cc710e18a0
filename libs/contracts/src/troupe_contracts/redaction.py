"""Keeps secrets out of what is written to logs and terminals.

Three nets, each for what the others miss: values that this process knows to be secret (its token, and environment
variables such as HF_TOKEN or an API key), wherever they turn up; text that looks like a secret (bearer credentials,
tokens by their prefixes, passwords in URLs, private keys); and what stands under a key that names a secret.
"""

import os
import re
from collections.abc import Mapping
from typing import Any, Final

REDACTED: Final = "[redacted]"
_SHORTEST_VALUE: Final = 8
_KEY: Final = re.compile(
    r"(token|authorization|password|passwd|secret|(api|access|private)[_-]?key|credentials?)$", re.IGNORECASE
)
_LOOKS: Final = (
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}"), rf"\1 {REDACTED}"),
    (re.compile(r"\btroupe-token-[A-Za-z0-9_-]+"), REDACTED),
    (re.compile(r"\b(hf_|sk-|ghp_|github_pat_|xox[abp]-)[A-Za-z0-9_-]{16,}"), REDACTED),
    # The password of a URL: everything from the colon to the last @ of the authority.
    (re.compile(r"(\b[a-zA-Z][a-zA-Z0-9+.-]*://[^\s/:@]*):[^\s/]*@"), rf"\1:{REDACTED}@"),
    (re.compile(r"-----BEGIN ([A-Z ]*)PRIVATE KEY-----.*?(-----END \1PRIVATE KEY-----|$)", re.DOTALL), REDACTED),
)
_secret_values: set[str] = set()


def keep_secret(value: str) -> None:
    """Has a value left out of everything that this process writes from now on."""
    if len(value) >= _SHORTEST_VALUE:
        _secret_values.add(value)


def keep_environment_secret(environ: Mapping[str, str] | None = None) -> None:
    """`keep_secret` for each variable whose name says that it holds a secret."""
    for name, value in (os.environ if environ is None else environ).items():
        if _KEY.search(name):
            keep_secret(value)


def redact_text(text: str) -> str:
    """The text with everything secret replaced."""
    for value in _secret_values:
        text = text.replace(value, REDACTED)
    for pattern, replacement in _LOOKS:
        text = pattern.sub(replacement, text)
    return text


def redact(value: Any) -> Any:
    """The same for a value as it is logged: text, mappings and sequences of it; anything else as it would be shown."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, Mapping):
        return {key: _redact_item(str(key), each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [redact(each) for each in value]
    return redact_text(repr(value))


def _redact_item(key: str, value: Any) -> Any:
    # Numbers stay: a fencing token is one, a count of tokens too.
    if _KEY.search(key) and isinstance(value, str | bytes):
        return REDACTED
    return redact(value)
