"""Fixtures that several parts share: a tiny Qwen3 policy made from nothing, and services as real processes."""

import ipaddress
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from xdist.scheduler import LoadScopeScheduling

# A shell has what it starts in the background ignore it, and children would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Programs of `make checkers`.
os.environ["PATH"] = os.pathsep.join((str(Path(__file__).parents[1] / ".tools/checkers"), os.environ["PATH"]))

# tiny_model(tied) or tiny_model(tied, seed): a model folder.
TinyModel = Callable[..., Path]
_START_SECONDS = 240.0


@dataclass(frozen=True)
class ServiceProcess:
    """A service that serves."""

    target: str
    process: subprocess.Popen[bytes]
    log: Path
    metrics: str
    """Address of its HTTP port."""


# start_service(name, arguments, settings): starts `python ARGUMENTS` with TROUPE_ settings, without waiting for it; the
# result waits until it serves.
StartService = Callable[[str, list[str], dict[str, str]], Callable[[], ServiceProcess]]

# listening(pid): where a process and its descendants listen beyond loopback, as "host:port".
Listening = Callable[[int], set[str]]

# The layout of Qwen3's own template, in the parts that a conversation of ours uses.
CHAT_TEMPLATE = """
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """A Hugging Face folder with a random Qwen3 policy of about 0.5M parameters."""
    made: dict[tuple[bool, int], Path] = {}

    def folder(tied: bool, seed: int = 7) -> Path:
        if (tied, seed) not in made:
            made[tied, seed] = tmp_path_factory.mktemp("model") / f"{'tied' if tied else 'untied'}-{seed}"
            _write_model(made[tied, seed], tied=tied, seed=seed)
        return made[tied, seed]

    return folder


@pytest.fixture(scope="session")
def start_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartService]:
    """Starts services as processes; all are ended with the session."""
    folder = tmp_path_factory.mktemp("services")
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str, arguments: list[str], settings: dict[str, str]) -> Callable[[], ServiceProcess]:
        number = len(started)
        ready, log = folder / f"{name}-{number}.json", folder / f"{name}-{number}.log"
        environment = {key: value for key, value in os.environ.items() if not key.startswith("TROUPE_")}
        environment |= {"TROUPE_READY_FILE": str(ready), "TROUPE_DIE_WITH_PARENT": "true"} | settings
        with log.open("wb") as output:
            process = subprocess.Popen([sys.executable, *arguments], env=environment, stdout=output, stderr=output)
        started.append(process)
        return lambda: _serving(name, process, ready, log)

    yield start
    for process in started:
        process.terminate()
    for process in started:
        process.wait(30)


@pytest.fixture(scope="session")
def listening() -> Listening:
    """What others on the network could connect to."""
    return _reachable


@pytest.fixture(scope="session")
def starter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The starter's folder with a policy after a short cold start: enough for some scripts to be valid."""
    import torch
    from troupe_starter import coldstart, guards, preparation, training

    folder = tmp_path_factory.mktemp("starter") / "starter"
    settings = coldstart.Settings(
        recipe=training.Recipe(steps=300),
        floors=guards.Floors(0.2, 0.0, 0.0, 0.0),
        rehearsal_tasks=24,
        extra_rounds=2,
        extra_steps=100,
    )
    torch.set_num_threads(1)
    preparation.prepare(folder, 0, settings, lambda done, total, what: None)
    return folder


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run tests that take minutes, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # What waits longest for engines and ranks goes first, so that no worker is left alone with it at the end.
    first = [Path(__file__).parent / folder for folder in ("e2e", "learner", "executor", "designer", "client")]
    items.sort(key=lambda item: next((place for place, folder in enumerate(first) if folder in item.path.parents), 9))
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="takes minutes: run with --slow"))


class _ByFile(LoadScopeScheduling):
    """A file is one worker's, and one worker starts the engines that executor and designer are tested with."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", 1)[0]
        return "engines" if file.startswith(("tests/executor/", "tests/designer/")) else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return _ByFile(config, log)


def _reachable(pid: int) -> set[str]:
    root = psutil.Process(pid)
    sockets = [each for process in (root, *root.children(recursive=True)) for each in process.net_connections("tcp")]
    addresses = {each.laddr for each in sockets if each.status == psutil.CONN_LISTEN}
    assert addresses, f"{root} listens nowhere"
    outside = {each for each in addresses if not _loopback(ipaddress.ip_address(each.ip))}
    return {f"{each.ip}:{each.port}" for each in outside}


def _loopback(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _serving(name: str, process: subprocess.Popen[bytes], ready: Path, log: Path) -> ServiceProcess:
    limit = time.monotonic() + _START_SECONDS
    while not ready.exists():
        if process.poll() is not None or time.monotonic() > limit:
            pytest.fail(f"{name} does not serve (status {process.poll()}):\n{log.read_text()[-4000:]}")
        time.sleep(0.05)
    said = json.loads(ready.read_text())
    return ServiceProcess(said["target"], process, log, said["metrics"])


def _write_model(folder: Path, *, tied: bool, seed: int) -> None:
    """Random weights, with end-of-turn made likely enough (some percent a token) that turns end by it."""
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_tokenizer(), eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=tied,
        initializer_range=0.08,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        # Channel 0 carries a constant from the embedding to the output; end-of-turn alone listens to it.
        model.model.embed_tokens.weight[:, 0] = 0.3
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[0] = 0.0
            layer.mlp.down_proj.weight[0] = 0.0
        if not tied:
            model.lm_head.weight[:, 0] = 0.0
        model.lm_head.weight[tokenizer.eos_token_id, 0] += 10.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _tokenizer():  # type: ignore[no-untyped-def]
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        trainers,
    )

    pattern = r" ?\p{L}+|\p{N}|\s*[\r\n]+|\s+| ?[^\s\p{L}\p{N}]+"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    words = ["system", "user", "assistant", "tool", "answer", "question", "python", "print", "the", "sum of"]
    text = [f"{word} {index} is\n\n{index + 1} + {index * 7};" for index in range(40) for word in words]
    tokenizer.train_from_iterator(
        text,
        trainers.BpeTrainer(vocab_size=384, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False),
    )
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True) for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")]
    )
    plain = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain])
    return tokenizer
