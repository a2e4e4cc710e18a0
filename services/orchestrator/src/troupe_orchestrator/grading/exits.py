"""How a grading worker says by its exit status what ended it."""

from typing import Final

MEMORY_EXIT: Final = 3
"""A comparison took all the memory that it may."""
