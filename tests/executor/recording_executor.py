"""The executor, with all that passes the engine's boundary written to a file: `recording_executor.py FILE [N]`.

Each line is what vLLM's engine core was given and what its sampler gave back for one generation. With N, the
engine's thread fails at the N-th.
"""

import json
import sys
from pathlib import Path

from troupe_executor.service import run
from troupe_executor.settings import ExecutorSettings
from troupe_inference import policy_start
from troupe_inference.engines.vllm import VllmEngine
from troupe_inference.launch import launch

RECORD = Path(sys.argv[1])
FAILS_AT = int(sys.argv[2]) if len(sys.argv) > 2 else 0


class RecordingEngine(VllmEngine):
    """The engine itself; `_add` and `_settle_all` are where ids go into vLLM's core and come out of it."""

    def _add(self, request):
        self.given = getattr(self, "given", {})
        self.count = getattr(self, "count", 0) + 1
        if self.count == FAILS_AT:
            raise RuntimeError("a kernel failed")
        super()._add(request)
        self.given[request.identifier] = list(request.prompt_ids)

    def _settle_all(self, outcomes):
        with RECORD.open("a") as file:
            for identifier, outcome in outcomes:
                prompt = self.given.pop(identifier)
                if hasattr(outcome, "token_ids"):
                    entry = {"prompt": prompt, "sampled": outcome.token_ids, "log_probs": outcome.log_probs}
                    file.write(json.dumps(entry) + "\n")
        super()._settle_all(outcomes)


if __name__ == "__main__":
    policy_start.VllmEngine = RecordingEngine
    launch("executor", run(ExecutorSettings.load()))
