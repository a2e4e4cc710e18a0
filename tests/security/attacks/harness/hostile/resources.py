"""Using more than was given. Each is bounded by its own numbers, whatever is switched off."""

from .attack import Attack, Ends, Family, Limits

WALL = Limits(wall_seconds=0.6)


def resource(number: int, name: str, ends: Ends, program: str, *off: str, **more: object) -> Attack:
    return Attack(number, name, Family.RESOURCES, program, ends, off, **more)  # type: ignore[arg-type]
