"""docs/sandbox-attacks.md holds the table of these tests, word for word."""

from pathlib import Path

from hostile.catalogue import ATTACKS, END, START, table

PAGE = Path(__file__).parents[3] / "docs" / "sandbox-attacks.md"


def test_the_table_in_the_documentation_is_that_of_the_tests() -> None:
    assert PAGE.read_text().split(START)[1].split(END)[0] == table(), "write it: see hostile/catalogue.py"


def test_every_attack_that_succeeds_is_named_there_with_its_reason() -> None:
    text = " ".join(PAGE.read_text().split())
    for attack in ATTACKS:
        for reason in attack.uncovered.values():
            assert reason in text, attack.slug
