"""Text of models and scripts on a terminal: shown as it is, but unable to steer the terminal."""

from typing import Final

from rich.text import Text

_KEPT: Final = "\n\t"


def plain(text: str, style: str = "") -> Text:
    """The text with control characters made visible, never read as markup."""
    return Text(visible(text), style=style)


def visible(text: str) -> str:
    """The text with each control character but newline and tab replaced by its Unicode picture."""
    return "".join(_picture(character) for character in text)


def percent(share: float) -> str:
    """0.4321 as "43.2 %"."""
    return f"{100 * share:.1f} %"


def interval(value: float, low: float, high: float) -> str:
    """A share with its 95 % interval."""
    return f"{percent(value)} [{100 * low:.1f}, {100 * high:.1f}]"


def _picture(character: str) -> str:
    code = ord(character)
    if character in _KEPT or not (code < 0x20 or 0x7F <= code < 0xA0):
        return character
    return chr(0x2400 + code) if code < 0x20 else "␡" if code == 0x7F else "�"
