"""Tokens per second through the executor's gRPC against vLLM's own `LLM.generate`, in one run on one machine.

    .venv/bin/python benchmarks/executor.py [--model FOLDER] [--concurrency 16 128] [--requests 512]

Both generate for the same prompts (about 40 tokens, 20 new ones, temperature 1, a seed each,
log-probabilities of the sampled tokens) with the same engine settings, one after the other, each in a
process of its own. Printed are tokens per second, tokens per CPU second (the steadier figure on a machine
that does other things too), memory, and the ratio. Without --model a random policy of the starter's shape
is made. What is left out: several turns, weight updates, several replicas.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

NEW_TOKENS = 20
ROUNDS = 3
THREADS = 1


@dataclass(frozen=True)
class Measured:
    """The best of some rounds."""

    tokens_per_second: float
    tokens_per_cpu_second: float
    cpu_milliseconds_per_request: float


def main() -> None:
    """Measures both and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="Hugging Face folder of the Qwen3 family")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[16, 128])
    parser.add_argument("--requests", type=int, default=512, help="per round")
    parser.add_argument("--own", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.own:
        print(json.dumps(measure_own(options.model, options.concurrency, options.requests)))
        return
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or random_model(Path(folder) / "model")
        own = own_in_a_process(model, options.concurrency, options.requests)
        served, memory = asyncio.run(measure_executor(model, Path(folder), options.concurrency, options.requests))
    print(f"{'':>12} {'LLM.generate':>24} {'executor':>24} {'ratio':>8}")
    for count in options.concurrency:
        before, after = own[str(count)], served[count]
        for label, here, there in (
            ("tokens/s", before["tokens_per_second"], after.tokens_per_second),
            ("per CPU s", before["tokens_per_cpu_second"], after.tokens_per_cpu_second),
            ("CPU ms/call", before["cpu_milliseconds_per_request"], after.cpu_milliseconds_per_request),
        ):
            print(f"{count:>4} {label:>11} {here:>20.2f} {there:>24.2f} {there / here:>8.2f}")
    print(f"executor resident memory: {memory / 2**20:.0f} MiB")


def questions(count: int) -> list[str]:
    """Texts whose rendered prompts have about 40 tokens with the starter's kind of tokenizer."""
    return [f"What is the sum of {index % 97} and {index % 89}? Answer" for index in range(count)]


def random_model(folder: Path) -> str:
    """A random policy of the starter's shape; its tokenizer knows bytes and Qwen's control tokens only."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    alphabet = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=False,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>").save_pretrained(folder)
    return str(folder)


def own_in_a_process(model: str, concurrency: list[int], requests: int) -> dict[str, dict[str, float]]:
    """`measure_own` in a fresh process, whose threads nobody else has set."""
    command = [sys.executable, __file__, "--own", "--model", model, "--requests", str(requests), "--concurrency"]
    output = subprocess.run([*command, *map(str, concurrency)], check=True, stdout=subprocess.PIPE, text=True).stdout
    measured: dict[str, dict[str, float]] = json.loads(output.splitlines()[-1])
    return measured


def measure_own(model: str, concurrency: list[int], requests: int) -> dict[str, dict[str, float]]:
    """vLLM's own `LLM.generate` with the executor's engine settings."""
    from tokenizers import Tokenizer
    from troupe_inference.engines import vllm_environment
    from troupe_inference.renderers import get_renderer
    from troupe_inference.transcript import Message, Role

    vllm_environment.prepare(threads=THREADS, binding="nobind", local_model=True)
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=model,
        dtype="float32",
        enforce_eager=True,
        max_model_len=512,
        max_num_seqs=max(concurrency),
        max_num_batched_tokens=4096,
        enable_chunked_prefill=False,
        kv_cache_memory_bytes=2**28,
        generation_config="vllm",
        disable_log_stats=True,
    )
    renderer = get_renderer("qwen3", Tokenizer.from_file(str(Path(model) / "tokenizer.json")))
    prompts = [
        {"prompt_token_ids": renderer.open_turn([Message(Role.USER, text)], first=True)} for text in questions(requests)
    ]
    parameters = [
        SamplingParams(temperature=1.0, max_tokens=NEW_TOKENS, seed=seed, logprobs=0, ignore_eos=True)
        for seed in range(requests)
    ]
    results = {}
    for count in concurrency:

        def one_round(count: int = count) -> int:
            tokens = 0
            for start in range(0, requests, count):
                batch = slice(start, start + count)
                for output in llm.generate(prompts[batch], parameters[batch], use_tqdm=False):
                    tokens += len(output.outputs[0].token_ids)
            return tokens

        rounds = []
        for _ in range(ROUNDS):
            wall, cpu = time.perf_counter(), time.process_time()
            tokens = one_round()
            rounds.append(measured(tokens, time.perf_counter() - wall, time.process_time() - cpu, requests))
        results[str(count)] = vars(max(rounds, key=lambda each: each.tokens_per_second))
    return results


async def measure_executor(
    model: str, folder: Path, concurrency: list[int], requests: int
) -> tuple[dict[int, Measured], int]:
    """The executor as a process, called over gRPC, with its resident memory."""
    from troupe.v1 import policy_pb2_grpc
    from troupe_contracts.channel import connect

    ready = folder / "ready.json"
    settings = {
        "TROUPE_MODEL": model,
        "TROUPE_LINEAGE": "benchmark",
        "TROUPE_REPLICA_ID": "executor-0",
        "TROUPE_DTYPE": "float32",
        "TROUPE_CONTEXT_LENGTH": "512",
        "TROUPE_MAX_NUM_SEQS": str(max(concurrency)),
        "TROUPE_KV_CACHE_GIB": "0.25",
        "TROUPE_THREADS": str(THREADS),
        "TROUPE_READY_FILE": str(ready),
        "TROUPE_LOG_LEVEL": "warning",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "troupe_executor", env={**os.environ, **settings}
    )
    try:
        while not ready.exists():
            if process.returncode is not None:
                raise SystemExit("the executor did not start")
            await asyncio.sleep(0.1)
        watched = psutil.Process(process.pid)
        async with connect(json.loads(ready.read_text())["target"]) as channel:
            stub = policy_pb2_grpc.PolicyStub(channel)
            results = {count: await measure_rounds(stub, watched, count, requests) for count in concurrency}
        return results, watched.memory_info().rss
    finally:
        process.terminate()
        await process.wait()


async def measure_rounds(stub, watched: psutil.Process, count: int, requests: int) -> Measured:
    """The best round of `requests` calls with `count` in flight."""
    from troupe.v1 import common_pb2, policy_pb2

    calls = [
        policy_pb2.GenerateRequest(
            messages=[common_pb2.ChatMessage(role=common_pb2.MESSAGE_ROLE_USER, content=text)],
            sampling=common_pb2.Sampling(temperature=1.0, max_tokens=NEW_TOKENS, seed=seed, training=True),
        )
        for seed, text in enumerate(questions(requests))
    ]
    rounds = []
    for _ in range(ROUNDS):
        queue = iter(calls)

        async def worker(queue=queue) -> int:
            return sum([(await stub.Generate(call)).generated_tokens for call in queue])

        before, wall = cpu_seconds(watched), time.perf_counter()
        tokens = sum(await asyncio.gather(*(worker() for _ in range(count))))
        rounds.append(measured(tokens, time.perf_counter() - wall, cpu_seconds(watched) - before, requests))
    return max(rounds, key=lambda each: each.tokens_per_second)


def measured(tokens: int, wall: float, cpu: float, requests: int) -> Measured:
    """One round."""
    return Measured(tokens / wall, tokens / cpu, 1000 * cpu / requests)


def cpu_seconds(process: psutil.Process) -> float:
    """CPU time of a process, both kinds."""
    times = process.cpu_times()
    return times.user + times.system


if __name__ == "__main__":
    main()
