"""Names of versions, so that two sets of weights never share one.

A small file in the work folder holds the highest number that was produced in each lineage; it is written before a version
is announced. Weights may go on under their old lineage only if that lineage's highest number is their own: otherwise other
weights may have been served under the numbers to come, and they get a new lineage. A lineage that the file does not know
(a checkpoint from another machine, a work folder that is gone) counts as continued elsewhere.
"""

import json
import uuid
from pathlib import Path

from troupe_learner.disk import replace_json
from troupe_learner.ledger import Version


class Lineages:
    """The file's content; one learner holds it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._highest: dict[str, int] = json.loads(path.read_text()) if path.exists() else {}

    def first(self, wanted: str) -> str:
        """A lineage for the initial weights: `wanted` if it has no trained version yet, else a new one."""
        if wanted and self._highest.get(wanted, 0) == 0:
            self.produced(Version(wanted, 0))
            return wanted
        return self._new(wanted, 0)

    def resumed(self, version: Version) -> str:
        """The lineage under which restored weights go on."""
        if self._highest.get(version.lineage) == version.number:
            return version.lineage
        return self._new(version.lineage, version.number)

    def begun(self, base: str) -> str:
        """A lineage never used before, for a run that begins with the weights of a version of `base`."""
        return self._new(base, 0)

    def produced(self, version: Version) -> None:
        """Records that weights of this version exist, or are about to.

        Raises:
            Exhausted, FailedPrecondition: it cannot be recorded, so weights must not be made under that name.
        """
        if self._highest.get(version.lineage, -1) >= version.number:
            return
        highest = self._highest | {version.lineage: version.number}
        replace_json(self._path, highest)
        self._highest = highest

    def _new(self, base: str, number: int) -> str:
        stem = base.split("~")[0]
        lineage = f"{stem}~{uuid.uuid4().hex[:8]}" if stem else uuid.uuid4().hex[:12]
        # Not written: a lineage that the file does not know is never continued, and this must not fail.
        self._highest[lineage] = number
        return lineage
