r"""Reads agents' replies. Pure: text in, parts out.

An answer stands in `\boxed{}` (a value) or `<solution>` (a program); `<delivery>` holds what other agents
see. Of several the last one counts. A reply asks for a tool by a fenced python block or by `<tool_call>`;
what stands inside `<solution>`, `<delivery>` or `<think>` asks for nothing.
"""

import json
import re
from typing import Any

_BOXED = "\\boxed{"
_DELIVERY = re.compile(r"<delivery>(.*?)</delivery>", re.DOTALL)
_SOLUTION = re.compile(r"<solution>(.*?)</solution>", re.DOTALL)
_QUIET = re.compile(r"<(solution|delivery|think)>.*?</\1>", re.DOTALL)
_PYTHON_FENCE = re.compile(r"```[ \t]*(?:python|py)\d?[ \t]*\n(.*?)```", re.DOTALL | re.IGNORECASE)
_ANY_FENCE = re.compile(r"```[^\n`]*\n(.*?)```", re.DOTALL)
_TOOL_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


def delivery(text: str) -> str | None:
    """What stands in the last `<delivery>`, None if there is none or it is empty."""
    return _last_group(_DELIVERY, text)


def solution(text: str) -> str | None:
    """The program in the last `<solution>`, without a fence around it."""
    inner = _last_group(_SOLUTION, text)
    return inner and (_last_group(_ANY_FENCE, inner) or inner)


def boxed(text: str) -> str | None:
    r"""What stands in the last `\boxed{}` whose braces close, which may hold braces itself."""
    end = len(text)
    while (start := text.rfind(_BOXED, 0, end)) >= 0:
        inner = _to_closing_brace(text, start + len(_BOXED))
        if inner is not None:
            return inner.strip()
        end = start
    return None


def python_block(text: str) -> str | None:
    """The code of the first fenced python block that asks to be run."""
    match = _PYTHON_FENCE.search(_QUIET.sub("", text))
    code = match and match.group(1).strip("\n")
    return code if code and code.strip() else None


def tool_calls(text: str) -> list[str]:
    """What stands in each `<tool_call>`, in order."""
    return [match.group(1).strip() for match in _TOOL_CALL.finditer(_QUIET.sub("", text))]


def parse_tool_call(call: str) -> tuple[str, dict[str, Any]]:
    """Name and arguments of a tool call. Raises ValueError, with what the agent should write instead."""
    form = 'write <tool_call>{"name": "TOOL", "arguments": {...}}</tool_call>'
    try:
        parsed = json.loads(call)
    except ValueError as error:
        raise ValueError(f"the tool call is not JSON ({error}); {form}") from error
    if not isinstance(parsed, dict) or not isinstance(parsed.get("name"), str):
        raise ValueError(f"the tool call has no name; {form}")
    arguments = parsed.get("arguments", parsed.get("parameters", {}))
    if not isinstance(arguments, dict):
        raise ValueError(f"the arguments of the tool call are not an object; {form}")
    return parsed["name"], arguments


def _last_group(pattern: re.Pattern[str], text: str) -> str | None:
    found = pattern.findall(text)
    return (found[-1].strip() or None) if found else None


def _to_closing_brace(text: str, start: int) -> str | None:
    depth = 1
    for index in range(start, len(text)):
        if text[index] == "{":
            depth += 1
        elif text[index] == "}":
            depth -= 1
            if depth == 0:
                return text[start:index]
    return None
