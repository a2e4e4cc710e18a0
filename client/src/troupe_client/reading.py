"""Reads files that options name: whole, within a limit, and with an error of one line that says which file and why."""

from pathlib import Path
from typing import Any, Final

import yaml
from troupe_contracts.yaml_keys import RepeatedKeysError, load_yaml

MAX_YAML_BYTES: Final = 2**20


class UnreadableError(ValueError):
    """A file that cannot be used."""


def read_file(path: Path, limit: int) -> bytes:
    """The bytes of a file. Never reads more than the limit, whatever the file is.

    Raises:
        UnreadableError: it cannot be read, or is larger than `limit` bytes.
    """
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise UnreadableError(f"{path}: {error.strerror}") from error
    except ValueError as error:  # a path with a null byte
        raise UnreadableError(f"{str(path)!r}: {error}") from error
    if len(content) > limit:
        raise UnreadableError(f"{path} is too large, the limit is {limit} bytes: split it")
    return content


def read_yaml(path: Path) -> Any:
    """What a YAML file holds.

    Raises:
        UnreadableError: it cannot be read, is not YAML, or has a key twice.
    """
    content = read_file(path, MAX_YAML_BYTES)
    try:
        return load_yaml(content.decode())
    except RepeatedKeysError as error:
        raise UnreadableError(f"{path}: {error}") from error
    # ValueError: such as a date in the 13th month, and bytes that are not UTF-8.
    except (yaml.YAMLError, ValueError) as error:
        raise UnreadableError(f"{path} is not YAML: {error}") from error
    except RecursionError as error:
        raise UnreadableError(f"{path} is not YAML that can be used: it is nested too deeply") from error
