"""vLLM, in this process, driven by one thread of its own.

The thread owns the engine: it is made, stepped, loaded and scored there and nowhere else. Requests reach it
over a queue; what a step finished is handed to the event loop in one call. The thread speaks to vLLM's
engine core, below its text layer: what is returned are the ids and log-probabilities that the sampler
produced, with nothing decoded or encoded in between.

Traps of vLLM 0.32 that are handled here:

- on a CPU a seeded request whose prefill is split fails (its generator has no offset), so prefills are
  never split there;
- on a CPU the output projection multiplies with a packed copy of its weights. `reload_weights` packs anew
  what it loads, but a tied projection is not in the list of weights: its old copy stays in use unless it is
  packed again.
"""

import asyncio
import functools
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

from troupe_inference.engines import vllm_environment
from troupe_inference.engines.base import (
    EngineError,
    EngineInfo,
    EngineStartError,
    EngineStoppedError,
    Generation,
    Sampling,
    Tensor,
    WeightLoadError,
)
from troupe_inference.engines.tensors import to_torch
from troupe_inference.model_folder import ModelFolder

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.v1.engine import EngineCoreOutput
    from vllm.v1.engine.llm_engine import LLMEngine

_GIB: Final = 2**30
# Tokens that one step may hold, when the context is shorter.
_MIN_BATCHED_TOKENS: Final = 4096
# Two of these batches are generated at start: one to warm up, one to time.
_TRIAL_REQUESTS: Final = 16
_TRIAL_TOKENS: Final = 8
_TRIAL_PROMPT: Final = 8

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class VllmSettings:
    """How to start the engine."""

    model: ModelFolder
    # vLLM's name of the type to compute in; "auto" takes the one the weights were saved in.
    dtype: str = "auto"
    context_length: int = 4096
    # Generations that run at once.
    max_num_seqs: int = 128
    # Compute equal beginnings of prompts once.
    prefix_caching: bool = True
    # None lets vLLM take its share of a GPU's memory; needed on a CPU.
    kv_cache_gib: float | None = 1.0
    # Of the CPU engine's kernels.
    threads: int = 1
    # "nobind", or cores as vLLM writes them, such as "0-3".
    binding: str = "nobind"
    # The start fails below this, measured with 16 generations at once.
    min_tokens_per_second: float = 0.0


@dataclass(slots=True)
class _Request:
    """A generation or a scoring under way, shared by the event loop and the engine's thread."""

    identifier: str
    prompt_ids: list[int]
    parameters: "SamplingParams"
    future: "asyncio.Future[Any]"
    scoring: bool = False
    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    prompt_log_probs: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Abort:
    identifiers: list[str]


@dataclass(frozen=True, slots=True)
class _Call:
    function: Callable[[], Any]
    future: "asyncio.Future[Any]"


_Item = _Request | _Abort | _Call | None


class VllmEngine:
    """Implements `base.Engine`. Made by `start`."""

    def __init__(self, settings: VllmSettings, on_failure: Callable[[str], None]) -> None:
        self._settings = settings
        self._on_failure = on_failure
        self._loop = asyncio.get_running_loop()
        self._inbox: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="vllm", daemon=True)
        # Of the event loop: what has been asked and not answered.
        self._pending: dict[str, _Request | _Call] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._counter = 0
        self._paused = False
        self._failure: str | None = None
        # Of the engine's thread.
        self._vllm: LLMEngine
        self._running: dict[str, _Request] = {}
        self.info: EngineInfo

    @classmethod
    async def start(cls, settings: VllmSettings, on_failure: Callable[[str], None]) -> "VllmEngine":
        """Starts the engine and measures that it is not far too slow.

        Args:
            on_failure: called on the event loop, with the reason, when the engine ends without being closed.

        Raises:
            EngineStartError: vLLM refused, or the engine is slower than the floor.
        """
        vllm_environment.prepare(
            threads=settings.threads,
            binding=settings.binding,
            local_model=settings.model.path == type(settings.model.path)(settings.model.name),
        )
        engine = cls(settings, on_failure)
        engine._thread.start()
        try:
            engine.info = await engine._call(engine._create)
            await engine._prove_speed()
        except EngineStoppedError as error:
            raise EngineStartError(str(error)) from error
        except EngineError:
            await engine.close()
            raise
        return engine

    async def generate(self, prompt_ids: list[int], sampling: Sampling, stop_token_ids: Sequence[int]) -> Generation:
        if self._paused:
            raise EngineStoppedError("the engine is paused for new weights")
        from vllm import SamplingParams

        parameters = SamplingParams(
            temperature=sampling.temperature,
            max_tokens=sampling.max_tokens,
            seed=sampling.seed,
            top_p=1.0 if sampling.top_p is None else sampling.top_p,
            top_k=0 if sampling.top_k is None else sampling.top_k,
            stop_token_ids=list(stop_token_ids),
            logprobs=0,
            detokenize=False,
        )
        generation: Generation = await self._ask(prompt_ids, parameters, scoring=False)
        return generation

    async def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        from vllm import SamplingParams

        parameters = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        return list(
            await asyncio.gather(
                *(self._ask(list(sequence), parameters.clone(), scoring=True) for sequence in sequences)
            )
        )

    async def pause(self, grace_seconds: float) -> None:
        self._paused = True
        try:
            await asyncio.wait_for(self._idle.wait(), grace_seconds)
        except TimeoutError:
            late = [item for item in self._pending.values() if isinstance(item, _Request)]
            self._inbox.put(_Abort([request.identifier for request in late]))
            for request in late:
                self._settle(request.identifier, EngineStoppedError("the engine was paused for new weights"))

    async def resume(self) -> None:
        self._paused = False

    async def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        if not self._paused or not self._idle.is_set():
            raise EngineError("weights are loaded while the engine is paused and nothing runs: pause it first")
        await self._call(lambda: self._load(tensors))

    async def close(self) -> None:
        self._inbox.put(None)
        await asyncio.to_thread(self._thread.join)

    # On the event loop.

    async def _ask(self, prompt_ids: list[int], parameters: "SamplingParams", *, scoring: bool) -> Any:
        self._counter += 1
        identifier = str(self._counter)
        request = _Request(identifier, prompt_ids, parameters, self._loop.create_future(), scoring)
        self._submit(identifier, request)
        try:
            return await request.future
        except asyncio.CancelledError:
            self._inbox.put(_Abort([identifier]))
            self._forget(identifier)
            raise

    async def _call(self, function: Callable[[], Result]) -> Result:
        self._counter += 1
        identifier = f"call {self._counter}"
        call = _Call(lambda: self._answer_call(identifier, function), self._loop.create_future())
        self._submit(identifier, call)
        result: Result = await call.future
        return result

    def _submit(self, identifier: str, item: _Request | _Call) -> None:
        if self._failure is not None:
            raise EngineStoppedError(self._failure)
        self._pending[identifier] = item
        self._idle.clear()
        self._inbox.put(item)

    def _settle(self, identifier: str, outcome: object) -> None:
        """Answers whoever waits for it; an exception is raised there."""
        item = self._forget(identifier)
        if item is None or item.future.done():
            return
        if isinstance(outcome, BaseException):
            item.future.set_exception(outcome)
        else:
            item.future.set_result(outcome)

    def _settle_all(self, outcomes: list[tuple[str, object]]) -> None:
        for identifier, outcome in outcomes:
            self._settle(identifier, outcome)

    def _forget(self, identifier: str) -> _Request | _Call | None:
        item = self._pending.pop(identifier, None)
        if not self._pending:
            self._idle.set()
        return item

    def _stopped(self, reason: str, *, failed: bool) -> None:
        self._failure = reason
        for identifier in list(self._pending):
            self._settle(identifier, EngineStoppedError(reason))
        if failed:
            self._on_failure(reason)

    async def _prove_speed(self) -> None:
        sampling = Sampling(temperature=1.0, max_tokens=_TRIAL_TOKENS, seed=0)
        prompt = [index % self.info.vocabulary_size for index in range(_TRIAL_PROMPT)]
        speed = 0.0
        for _ in range(2):
            started = time.perf_counter()
            await asyncio.gather(*(self.generate(list(prompt), sampling, ()) for _ in range(_TRIAL_REQUESTS)))
            speed = _TRIAL_REQUESTS * _TRIAL_TOKENS / (time.perf_counter() - started)
        if speed < self._settings.min_tokens_per_second:
            raise EngineStartError(
                f"the engine generates {speed:.0f} tokens/s with {_TRIAL_REQUESTS} requests at once, the floor is "
                f"{self._settings.min_tokens_per_second:g}. Known causes: more threads than free cores, threads "
                "bound to a busy core, torch.set_num_threads in this process. Free cores, or lower the floor"
            )

    # On the engine's thread.

    def _run(self) -> None:
        try:
            while self._take_items():
                if self._running:
                    self._step()
        except Exception as error:
            # The thread's last resort: whoever waits must hear of it, and nothing is known of vLLM's state.
            reason = f"vLLM failed: {type(error).__name__}: {error}; restart the service"
            self._tell_loop(functools.partial(self._stopped, reason, failed=True))
            raise
        self._tell_loop(functools.partial(self._stopped, "the engine was closed", failed=False))

    def _take_items(self) -> bool:
        """Handles what has been asked; waits for something when nothing runs. False when it is time to end."""
        block = not self._running
        while True:
            try:
                item = self._inbox.get(block=block)
            except queue.Empty:
                return True
            block = False
            match item:
                case None:
                    return False
                case _Request():
                    self._add(item)
                case _Abort(identifiers):
                    known = [each for each in identifiers if self._running.pop(each, None) is not None]
                    self._vllm.engine_core.abort_requests(known)
                case _Call(function):
                    function()

    def _answer_call(self, identifier: str, function: Callable[[], object]) -> None:
        outcome: object
        try:
            outcome = function()
        except EngineError as error:
            outcome = error
        self._tell_loop(self._settle, identifier, outcome)

    def _tell_loop(self, function: Callable[..., None], *arguments: object) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *arguments)

    def _create(self) -> EngineInfo:
        import torch
        from vllm import EngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.llm_engine import LLMEngine

        settings = self._settings
        on_cpu = current_platform.is_cpu()
        dtype = settings.model.dtype if settings.dtype == "auto" else settings.dtype
        batched = max(settings.context_length, _MIN_BATCHED_TOKENS) if on_cpu else None
        try:
            self._vllm = LLMEngine.from_engine_args(
                EngineArgs(
                    model=str(settings.model.path),
                    dtype=dtype,  # type: ignore[arg-type]
                    max_model_len=settings.context_length,
                    max_num_seqs=settings.max_num_seqs,
                    max_num_batched_tokens=batched,
                    enable_chunked_prefill=not on_cpu,
                    enable_prefix_caching=settings.prefix_caching,
                    enforce_eager=on_cpu,
                    kv_cache_memory_bytes=(
                        None if settings.kv_cache_gib is None else int(settings.kv_cache_gib * _GIB)
                    ),
                    # Sampling is what the request says, never what the model's folder suggests.
                    generation_config="vllm",
                    # Of the logits as they are, before temperature and cuts.
                    logprobs_mode="raw_logprobs",
                    skip_tokenizer_init=True,
                    disable_log_stats=True,
                    use_tqdm_on_load=False,
                )
            )
        except (ValueError, RuntimeError, OSError) as error:
            raise EngineStartError(f"vLLM cannot serve {settings.model.name}: {error}") from error
        package, version = vllm_environment.installed_package()
        cores = ",".join(str(core) for core in sorted(os.sched_getaffinity(threading.get_native_id())))
        return EngineInfo(
            description=(
                f"{package} {version}, torch {torch.__version__}, {current_platform.device_type}, {dtype}, "
                f"threads={torch.get_num_threads()}, binding={settings.binding}, cores={cores}, "
                f"kv_cache_gib={settings.kv_cache_gib}, prefix_caching={settings.prefix_caching}"
            ),
            dtype=dtype,
            context_length=settings.context_length,
            vocabulary_size=settings.model.vocabulary_size,
            capacity=settings.max_num_seqs,
        )

    def _add(self, request: _Request) -> None:
        from vllm.v1.engine import EngineCoreRequest

        self._running[request.identifier] = request
        self._vllm.engine_core.add_request(
            EngineCoreRequest(
                request_id=request.identifier,
                external_req_id=request.identifier,
                prompt_token_ids=request.prompt_ids,
                sampling_params=request.parameters,
                arrival_time=time.time(),
                mm_features=None,
                pooling_params=None,
                lora_request=None,
                cache_salt=None,
                data_parallel_rank=None,
            )
        )

    def _step(self) -> None:
        finished: list[tuple[str, object]] = []
        for output in self._vllm.engine_core.get_output().outputs:
            request = self._running.get(output.request_id)
            if request is None:
                continue  # aborted while the step ran
            if request.scoring:
                _take_prompt_log_probs(request, output)
            else:
                request.token_ids += output.new_token_ids
                if output.new_logprobs is not None:
                    request.log_probs += output.new_logprobs.logprobs[:, 0].tolist()
            if output.finish_reason is not None:
                del self._running[output.request_id]
                finished.append((output.request_id, _outcome(request, output)))
        if finished:
            self._tell_loop(self._settle_all, finished)

    def _load(self, tensors: Mapping[str, Tensor]) -> None:
        try:
            weights = ((name, to_torch(tensor)) for name, tensor in tensors.items())
            self._vllm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
            if self._settings.model.tied_embeddings:
                head = self._vllm.collective_rpc("get_model")[0].lm_head
                head.quant_method.process_weights_after_loading(head)
        except (ValueError, RuntimeError, KeyError, AttributeError, AssertionError) as error:
            raise WeightLoadError(f"vLLM did not take the weights: {type(error).__name__}: {error}") from error
        if not self._vllm.reset_prefix_cache():
            raise WeightLoadError("vLLM did not reset its prefix cache: something is still being generated")


def _take_prompt_log_probs(request: _Request, output: "EngineCoreOutput") -> None:
    if output.new_prompt_logprobs_tensors is not None:
        request.prompt_log_probs += output.new_prompt_logprobs_tensors.logprobs[:, 0].tolist()


def _outcome(request: _Request, output: "EngineCoreOutput") -> object:
    from vllm.v1.engine import FinishReason

    if output.finish_reason not in (FinishReason.STOP, FinishReason.LENGTH):
        return EngineStoppedError(f"vLLM ended a generation with {output.finish_reason}")
    if request.scoring:
        return request.prompt_log_probs
    if len(request.log_probs) != len(request.token_ids):
        return EngineError(f"vLLM gave {len(request.log_probs)} log-probabilities for {len(request.token_ids)} tokens")
    return Generation(request.token_ids, request.log_probs, output.finish_reason is FinishReason.STOP)
