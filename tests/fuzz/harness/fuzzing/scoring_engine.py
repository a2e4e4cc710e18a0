"""Engine `scoring`: the example's, but it loads weights and scores with them, so that the updates of a run pass.

Installed beside the example, as a plug-in of its own.
"""

import asyncio

import torch
from transformers import AutoModelForCausalLM
from troupe_example_uniform import Uniform
from troupe_inference.engines.tensors import to_torch


class Scoring(Uniform):
    def __init__(self, model, context_length):
        super().__init__(model.config.vocab_size, context_length)
        self._model = model

    async def score(self, sequences):
        return [await asyncio.to_thread(self._score, list(sequence)) for sequence in sequences]

    @torch.no_grad()
    def _score(self, sequence):
        logits = self._model(input_ids=torch.tensor([sequence]), use_cache=False).logits[0, :-1]
        return torch.log_softmax(logits, -1).gather(1, torch.tensor(sequence[1:]).unsqueeze(1)).squeeze(1).tolist()

    async def load_weights(self, tensors):
        self._model.load_state_dict({name: to_torch(tensor) for name, tensor in tensors.items()})


async def start(model, settings, on_failure):
    loaded = AutoModelForCausalLM.from_pretrained(model.path, dtype=torch.float32).eval()
    return Scoring(loaded, settings.context_length or model.max_context_length)
