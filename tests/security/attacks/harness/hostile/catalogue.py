"""All attacks, and the table that docs/sandbox-attacks.md shows of them.

`PYTHONPATH=tests/security/attacks/harness python -m hostile.catalogue docs/sandbox-attacks.md` writes it.
"""

import sys
from pathlib import Path

from .attack import PROFILES, Attack, Verdict
from .clocks import CLOCKS
from .files_outside import FILES_OUTSIDE
from .integrity import INTEGRITY
from .kernel_parts import KERNEL_PARTS
from .memory import MEMORY
from .native_code import NATIVE_CODE
from .other_processes import OTHER_PROCESSES
from .output import OUTPUT
from .protocol import PROTOCOL
from .sockets import SOCKETS
from .spawning import SPAWNING

RESOURCES = (*SPAWNING, *MEMORY, *OUTPUT, *CLOCKS)
ESCAPES = (*OTHER_PROCESSES, *SOCKETS, *FILES_OUTSIDE, *KERNEL_PARTS, *NATIVE_CODE)
ATTACKS: tuple[Attack, ...] = tuple(
    sorted((*RESOURCES, *ESCAPES, *INTEGRITY, *PROTOCOL), key=lambda attack: attack.number)
)
# The catalogue's numbers; 78 is a list of outputs rather than a program.
NUMBERS = range(1, 82)
WITHOUT_A_PROGRAM = {78}
START, END = "<!-- table of attacks -->\n", "<!-- end of the table -->\n"


def table() -> str:
    """Markdown: one line per attack."""
    lines = ["| | attack | stopped by | full | pod | control |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {attack.number} | {attack.name} | {_stopped_by(attack)} | {_ends(attack)} | {_control(attack)} |"
        for attack in ATTACKS
    ]
    return "\n".join(lines) + "\n"


def _stopped_by(attack: Attack) -> str:
    if attack.batch:
        return "a process for each case"
    if not attack.off:
        return "–" if attack.uncovered or attack.plant else attack.no_control
    more = f"; full also {_names(attack.off_in_full)}" if attack.off_in_full else ""
    return _names(attack.off) + more


def _names(switches: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in switches)


def _ends(attack: Attack) -> str:
    return " | ".join(_ends_in(attack, profile) for profile in PROFILES)


def _ends_in(attack: Attack, profile: str) -> str:
    if profile in attack.uncovered:
        return "**succeeds**"
    verdicts: dict[Verdict, list[str]] = {}
    for form in attack.forms:
        verdicts.setdefault(attack.expected(form, profile), []).append(str(form))
    if len(verdicts) == 1:
        return str(next(iter(verdicts)))
    return "; ".join(f"{', '.join(forms)}: {verdict}" for verdict, forms in verdicts.items())


def _control(attack: Attack) -> str:
    if attack.plant:
        return "finds what is planted"
    if attack.batch:
        return "succeeds in a batch"
    if attack.harmless:
        return "passes when harmless"
    if attack.careless:
        return "deceives a careless grader"
    if attack.uncovered and not attack.off:
        return "not covered"
    return "pod only" if attack.no_control_in_full else "yes"


if __name__ == "__main__":
    page = Path(sys.argv[1])
    before, rest = page.read_text().split(START)
    page.write_text(before + START + table() + END + rest.split(END)[1])
