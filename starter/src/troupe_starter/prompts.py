"""The starter's prompt folder, which the designer service reads and the demonstrations are made with."""

from pathlib import Path

# Holds system.txt and user.txt, in which {question} stands for the question.
PROMPT_FOLDER = Path(__file__).parent / "config" / "prompt"


def designer_system() -> str:
    """The designer's system prompt.

    Raises ValueError when the user prompt is anything but the question, which the demonstrations rely on.
    """
    user = (PROMPT_FOLDER / "user.txt").read_text()
    if user != "{question}":
        raise ValueError(f"{PROMPT_FOLDER / 'user.txt'} holds {user!r}; the starter's is '{{question}}'")
    return (PROMPT_FOLDER / "system.txt").read_text()
