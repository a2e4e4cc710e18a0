"""Attack 78: what is printed where 1.0 or 1 is expected, the checker that must not be taken in, and a comparison that is."""

from collections.abc import Callable

EXPECTED = "1"


def close(printed: str) -> bool:
    """By a relative tolerance asked the wrong way round: nothing is beyond nan, nor beyond a share of infinity."""
    value, expected = float(printed), float(EXPECTED)
    return not abs(value - expected) > 1e-6 * max(abs(value), abs(expected))


def same_literal(printed: str) -> bool:
    return int(printed, 0) == int(EXPECTED, 0)


def same_to_the_eye(printed: str) -> bool:
    return "".join(filter(str.isprintable, printed)) == EXPECTED


def same_to_its_end(printed: str) -> bool:
    """As far as the expected text goes."""
    return printed.startswith(EXPECTED)


LOOK_ALIKES: tuple[tuple[str, str, Callable[[str], bool]], ...] = (
    ("float_tokens", "nan", close),
    ("float_tokens", "inf", close),
    ("float_tokens", "-nan", close),
    ("float_tokens", "1e999", close),
    ("float_tokens", "１.０", close),
    ("float_tokens", "0_1", close),
    ("float_tokens", "0x1", same_literal),
    ("float_tokens", "9" * 5000, close),
    ("tokens", "１", close),
    ("tokens", "1\u200b", same_to_the_eye),
    ("tokens", "+1", close),
    ("tokens", "1\x00", same_to_the_eye),
    ("exact", "1 ", same_to_its_end),
    ("lines", "1\n1", same_to_its_end),
)
