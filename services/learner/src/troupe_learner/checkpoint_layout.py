"""Where things lie in a checkpoint folder. Known to the front, which publishes it, and the ranks, which fill it.

checkpoint.json            what it is (CheckpointRecord), with the SHA-256 and size of every other file
model/                     opens with transformers and vLLM: config, tokenizer files, model.safetensors
state/rank-N.safetensors   what rank N needs beside model/: moments, masters, partitions, random state
"""

from typing import Final

RECORD: Final = "checkpoint.json"
MODEL: Final = "model"
MODEL_WEIGHTS: Final = "model/model.safetensors"
STATE: Final = "state"


def state_file(rank: int) -> str:
    return f"{STATE}/rank-{rank}.safetensors"
