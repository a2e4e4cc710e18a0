"""Finds the script, and the pattern it declares, in the text of a reply. Pure; the script's text is never
changed.

The script is, in this order: what stands in the last `<code>` (inside its fence, if it has one), the last
python fence, the last fence, or everything from the first import of the workflow library on.
"""

import re
from typing import Final

_CODE: Final = re.compile(r"<code>(.*?)</code>", re.DOTALL | re.IGNORECASE)
_FENCE: Final = re.compile(r"^[ \t]*```[ \t]*(\w*)[^\n`]*\n(.*?)^[ \t]*```[ \t]*$", re.DOTALL | re.MULTILINE)
_PYTHON: Final = frozenset({"python", "py", "python3"})
_IMPORT: Final = re.compile(r"^(?:from[ \t]+workflow\b|import[ \t]+workflow\b)", re.MULTILINE)
_PATTERN: Final = re.compile(
    r"^[ \t#*\-\d.]*(?:workflow[ _]+)?pattern\b[ \t*`]*[:=][ \t*`\"']*([A-Za-z][\w+/ \-]{0,63})",
    re.MULTILINE | re.IGNORECASE,
)


def extract_script(text: str) -> str:
    """The script in a reply, empty if there is none."""
    for found in (_in_code_tag(text), _in_fence(text, python_only=True), _in_fence(text, python_only=False)):
        if found:
            return found
    match = _IMPORT.search(text)
    return text[match.start() :].strip() if match else ""


def declared_pattern(text: str) -> str:
    """The workflow pattern that a reply names ("Workflow pattern: math_ensemble_vote"), empty if none."""
    match = _PATTERN.search(text)
    return match[1].strip() if match else ""


def _in_code_tag(text: str) -> str:
    blocks = _CODE.findall(text)
    if not blocks:
        return ""
    inner = blocks[-1]
    return _in_fence(inner, python_only=True) or _in_fence(inner, python_only=False) or inner.strip()


def _in_fence(text: str, *, python_only: bool) -> str:
    bodies = [body for language, body in _FENCE.findall(text) if not python_only or language.lower() in _PYTHON]
    return bodies[-1].strip() if bodies else ""
