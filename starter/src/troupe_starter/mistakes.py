"""What a teacher gets wrong. Pure: one mistake, drawn at random, in something that was right."""

from collections.abc import Callable
from random import Random

from troupe_starter.families import calc, prog


def misread(symbols: str, random: Random) -> str:
    """Symbols with one thing wrong: the sign, the last number or, in a program, what is combined."""
    ways: list[Callable[[str, Random], str]] = [_swap_sign, _change_last_number]
    if "a" in symbols:
        ways.append(_change_combination)
    return random.choice(ways)(symbols, random)


def spoil(reply: str, random: Random) -> str:
    """A design that cannot be run: no import, a bracket too few, an unknown name or class, or cut off."""
    ways: list[Callable[[str], str]] = [
        lambda text: text.replace("from workflow import *\n", ""),
        lambda text: text.replace('"))\n', '")\n', 1) if '"))\n' in text else text.replace(")]\n", "]\n", 1),
        lambda text: text.replace("w.run(", "flow.run("),
        lambda text: text.replace("Workflow(", "WorkFlow("),
        lambda text: text[: text.rindex("w.add_node(") + len("w.add_node(")],
    ]
    return random.choice(ways)(reply)


def _swap_sign(symbols: str, random: Random) -> str:
    head, sign, last = symbols.rsplit(" ", 2)
    return f"{head} {'-' if sign == '+' else '+'} {last}"


def _change_last_number(symbols: str, random: Random) -> str:
    head, last = symbols.rsplit(" ", 1)
    return f"{head} {random.choice([number for number in calc.NUMBERS if number != int(last)])}"


def _change_combination(symbols: str, random: Random) -> str:
    head, sign, last = symbols.rsplit(" ", 2)
    others = [combination.code for combination in prog.COMBINATIONS.values() if combination.code != head]
    return f"{random.choice(others)} {sign} {last}"
