"""Engine `uniform`: every token is as likely as any other. For trying the services without a model's weights in memory."""

import math
import random

from troupe_inference.engines.base import EngineInfo, Generation


class Uniform:
    def __init__(self, vocabulary_size: int, context_length: int) -> None:
        self.info = EngineInfo("uniform", "float32", context_length, vocabulary_size, capacity=64)
        self.log_prob = -math.log(vocabulary_size)

    async def generate(self, prompt_ids, sampling, stop_token_ids):
        drawn = random.Random(sampling.seed).choices(range(self.info.vocabulary_size), k=sampling.max_tokens)
        end = next((i + 1 for i, token in enumerate(drawn) if token in stop_token_ids), len(drawn))
        return Generation(drawn[:end], [self.log_prob] * end, stopped=drawn[end - 1] in stop_token_ids)

    async def score(self, sequences):
        return [[self.log_prob] * (len(sequence) - 1) for sequence in sequences]

    async def pause(self, grace_seconds): ...
    async def resume(self): ...
    async def load_weights(self, tensors): ...
    async def close(self): ...


async def start(model, settings, on_failure):
    return Uniform(model.vocabulary_size, settings.context_length or model.max_context_length)
