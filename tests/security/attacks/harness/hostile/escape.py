"""Reaching what is outside, or a part of the kernel that no program needs.

Landlock alone leaves `stat`, `chmod`, datagrams and sockets by path open, so each of these has a program of its own.
"""

from .attack import Attack, Ends, Family

PRIVATE_FILES = {"off_in_full": ("private_root",)}


def escape(number: int, name: str, ends: Ends, program: str, *off: str, **more: object) -> Attack:
    return Attack(number, name, Family.ESCAPE, program, ends, off, **more)  # type: ignore[arg-type]
