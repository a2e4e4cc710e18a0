"""From settings to a running policy: what both services do before they serve."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tokenizers import Tokenizer
from troupe_contracts.health import Health
from troupe_contracts.log import get_logger
from troupe_contracts.plugins import mismatches
from troupe_contracts.redaction import keep_secret

from troupe_inference.engines.base import Engine, EngineStartError
from troupe_inference.engines.openai import EndpointSettings, OpenAIPolicy
from troupe_inference.engines.registry import ENGINES
from troupe_inference.engines.remote import RemotePolicy
from troupe_inference.engines.vllm import VllmEngine, VllmSettings
from troupe_inference.engines.vllm_environment import CPU_PACKAGE, installed_package
from troupe_inference.model_folder import (
    ModelFolder,
    architecture_digest,
    chat_template_digest,
    open_model,
    tokenizer_digest,
)
from troupe_inference.policy_settings import PolicySettings
from troupe_inference.renderers import RENDERERS, RendererError, get_renderer
from troupe_inference.token_policy import Identity, TokenPolicy
from troupe_inference.transcript import Version
from troupe_inference.turns import Policy
from troupe_inference.weights.updates import UpdateTarget, WeightUpdates

_logger = get_logger()
_OUTPUT_PROJECTION: Final = "lm_head.weight"
_DEFAULT_CONTEXT: Final = 4096
_DEFAULT_ENDPOINT_CONTEXT: Final = 32768
_DEFAULT_CPU_CACHE_GIB: Final = 1.0
# `model_type` in a model's config.json, to the renderer of its family.
_RENDERER_OF_TYPE: Final[Mapping[str, str]] = {"qwen3": "qwen3", "qwen3_moe": "qwen3"}


@dataclass(frozen=True, slots=True)
class RunningPolicy:
    """A policy that can be served. `updates` is None, and `owner` set, where another service holds the
    weights.
    """

    policy: Policy
    updates: WeightUpdates | None = None
    owner: str = ""
    # Waits for the engine to fail; held here so that it lives as long as the policy.
    watch: "asyncio.Task[None] | None" = None

    async def close(self) -> None:
        """Lets go of engine or connection."""
        if self.watch is not None:
            self.watch.cancel()
        await self.policy.close()


async def start_policy(settings: PolicySettings, health: Health) -> RunningPolicy:
    """Starts what the settings ask for.

    Raises:
        EngineStartError: the engine cannot run with these settings; the text says why.
        ModelFolderError, RendererError: the model's folder, or no renderer for it.
    """
    match settings.engine:
        case "remote":
            assert settings.remote_target is not None
            remote = RemotePolicy(settings.remote_target, settings.replica_id, settings.turn_seconds)
            return RunningPolicy(remote, owner=settings.remote_target)
        case "openai":
            endpoint = OpenAIPolicy(await asyncio.to_thread(_endpoint, settings))
            return RunningPolicy(endpoint, owner=str(settings.openai_base_url))
        case _:
            return await _start_with_weights(settings, health)


def choose_renderer(named: str | None, config: Mapping[str, Any]) -> str:
    """The renderer of a model's family: the one named, else told from its config.

    Raises:
        RendererError: it cannot be told.
    """
    if named is not None:
        return named
    model_type = str(config.get("model_type", ""))
    if model_type not in _RENDERER_OF_TYPE:
        raise RendererError(
            f"no renderer is known for models of type {model_type!r}: "
            f"set TROUPE_RENDERER to one of {', '.join(sorted(RENDERERS))}"
        )
    return _RENDERER_OF_TYPE[model_type]


async def _start_with_weights(settings: PolicySettings, health: Health) -> RunningPolicy:
    assert settings.model is not None
    assert settings.lineage is not None
    model = await asyncio.to_thread(open_model, settings.model)
    tokenizer = Tokenizer.from_file(str(model.tokenizer_file))
    renderer = get_renderer(choose_renderer(settings.renderer, model.config), tokenizer)
    failure: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    engine = await _start_engine(settings, model, failure.set_result)
    shapes = {name: tensor.shape for name, tensor in model.tensors.items()}
    updates = WeightUpdates(
        UpdateTarget(settings.policy_id, settings.replica_id, _updated(shapes, model), model.tied_embeddings),
        engine,
        health,
        Version(settings.lineage, 0),
        pause_seconds=settings.pause_seconds,
    )
    watch = asyncio.create_task(_watch(failure, updates))
    policy = TokenPolicy(
        Identity(
            policy_id=settings.policy_id,
            replica_id=settings.replica_id,
            model=model.name,
            tokenizer_digest=tokenizer_digest(model),
            chat_template_digest=chat_template_digest(model),
            architecture_digest=architecture_digest(shapes, model.tied_embeddings),
        ),
        renderer,
        engine,
        updates.serving,
        max_queued=settings.max_queued,
        max_token_characters=max(map(len, tokenizer.get_vocab())),
    )
    return RunningPolicy(policy, updates, watch=watch)


async def _start_engine(settings: PolicySettings, model: ModelFolder, on_failure: Callable[[str], None]) -> Engine:
    """vLLM, or the engine of a plug-in."""
    start = ENGINES.find(settings.engine)
    if start is None:
        return await VllmEngine.start(_vllm_settings(settings, model), on_failure)
    engine = await start(model, settings, on_failure)
    problems = mismatches(engine, Engine)
    if problems:
        raise EngineStartError(f"the engine {settings.engine!r} is no {Engine.__name__}: {'; '.join(problems)}")
    return engine


async def _watch(failure: "asyncio.Future[str]", updates: WeightUpdates) -> None:
    reason = await failure
    _logger.error("the engine failed, nothing is served until a restart", reason=reason)
    await updates.engine_failed(reason)


def _updated(shapes: Mapping[str, tuple[int, ...]], model: ModelFolder) -> dict[str, tuple[int, ...]]:
    """The tensors of an update: a tied projection is not among them, even where the folder stores it."""
    return {name: shape for name, shape in shapes.items() if not (model.tied_embeddings and name == _OUTPUT_PROJECTION)}


def _vllm_settings(settings: PolicySettings, model: ModelFolder) -> VllmSettings:
    longest = model.max_context_length
    context_length = settings.context_length or min(longest, _DEFAULT_CONTEXT)
    if context_length > longest:
        raise EngineStartError(
            f"TROUPE_CONTEXT_LENGTH={context_length} is more than the {longest} tokens that {model.name} was made for"
        )
    on_cpu = installed_package()[0] == CPU_PACKAGE
    return VllmSettings(
        model=model,
        dtype=settings.dtype,
        context_length=context_length,
        max_num_seqs=settings.max_num_seqs,
        prefix_caching=settings.prefix_caching,
        kv_cache_gib=settings.kv_cache_gib or (_DEFAULT_CPU_CACHE_GIB if on_cpu else None),
        threads=settings.threads,
        binding=settings.binding,
        min_tokens_per_second=settings.min_tokens_per_second,
    )


def _endpoint(settings: PolicySettings) -> EndpointSettings:
    assert settings.openai_base_url is not None
    assert settings.openai_model is not None
    key = None
    if settings.openai_key_file is not None:
        try:
            key = settings.openai_key_file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise EngineStartError(f"TROUPE_OPENAI_KEY_FILE: {error}") from error
        keep_secret(key)
    return EndpointSettings(
        policy_id=settings.policy_id,
        replica_id=settings.replica_id,
        base_url=settings.openai_base_url,
        model=settings.openai_model,
        key=key,
        context_length=settings.context_length or _DEFAULT_ENDPOINT_CONTEXT,
        max_concurrent=settings.max_num_seqs,
        max_queued=settings.max_queued,
        turn_seconds=settings.turn_seconds,
    )
