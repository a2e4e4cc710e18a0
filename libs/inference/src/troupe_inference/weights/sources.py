"""Where the bytes of a set of weights come from.

A source yields tensors of a manifest by name, as raw bytes. It verifies nothing: `updates` does.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, Protocol

import fsspec
import grpc
from safetensors import SafetensorError, deserialize
from troupe.v1 import learner_pb2, learner_pb2_grpc, policy_pb2
from troupe_contracts.channel import connect
from troupe_contracts.errors import DataLoss, InvalidArgument, NotFound, Relayed, Unavailable
from troupe_contracts.identity import own

from troupe_inference import wire
from troupe_inference.weights.manifest import Manifest


class Source(Protocol):
    """Gives the bytes of a manifest's tensors."""

    def tensors(self, policy_id: str, manifest: Manifest) -> AsyncIterator[tuple[str, bytearray]]:
        """Yields (name, bytes) of tensors. Raises a typed error that names the source."""


def open_source(source: policy_pb2.WeightSource) -> Source:
    """The source that a request names.

    Raises:
        InvalidArgument: it names none.
    """
    match source.WhichOneof("source"):
        case "learner_target" if source.learner_target:
            return LearnerSource(source.learner_target)
        case "store_uri" if source.store_uri:
            return StoreSource(source.store_uri)
        case _:
            raise InvalidArgument("source", "is not set: name a learner_target or a store_uri")


class LearnerSource:
    """Pulls from a Learner, over `ExportWeights`."""

    def __init__(self, target: str) -> None:
        self._target = target

    async def tensors(self, policy_id: str, manifest: Manifest) -> AsyncIterator[tuple[str, bytearray]]:
        sizes = {tensor.name: tensor.byte_size for tensor in manifest.tensors}
        request = learner_pb2.ExportWeightsRequest(policy_id=policy_id, version=wire.version_to_proto(manifest.version))
        name, content = "", bytearray()
        try:
            async with connect(self._target, own()) as channel:
                async for response in learner_pb2_grpc.LearnerStub(channel).ExportWeights(request):
                    if response.WhichOneof("message") != "chunk":
                        continue
                    chunk = response.chunk
                    if chunk.offset == 0:
                        name, content = chunk.name, bytearray()
                    self._check(chunk, name, len(content), sizes)
                    content += chunk.data
                    if len(content) == sizes[name]:
                        yield name, content
        except grpc.aio.AioRpcError as error:
            raise Relayed(error, f"learner {self._target}") from error

    def _check(self, chunk: learner_pb2.TensorChunk, name: str, received: int, sizes: Mapping[str, int]) -> None:
        if chunk.name not in sizes:
            raise DataLoss(f"learner {self._target} sent {chunk.name!r}, which is not in the manifest")
        if chunk.name != name or chunk.offset != received:
            raise DataLoss(
                f"learner {self._target} sent {chunk.name} from byte {chunk.offset} after {received} bytes of {name}"
            )
        if received + len(chunk.data) > sizes[name]:
            raise DataLoss(
                f"learner {self._target} sent more than the {sizes[name]} bytes that the manifest gives {name}"
            )


class StoreSource:
    """Reads the safetensors files of a folder, on anything that fsspec can reach."""

    def __init__(self, uri: str) -> None:
        self._uri = uri

    async def tensors(self, policy_id: str, manifest: Manifest) -> AsyncIterator[tuple[str, bytearray]]:
        wanted = {tensor.name for tensor in manifest.tensors}
        files = self._files()
        while True:
            entries = await asyncio.to_thread(next, files, None)
            if entries is None:
                return
            for name, entry in entries:
                if name in wanted:
                    yield name, bytearray(entry["data"])

    def _files(self) -> Iterator[list[tuple[str, Any]]]:
        """The tensors of one file after another."""
        try:
            system, folder = fsspec.core.url_to_fs(self._uri)
            paths = sorted(system.glob(f"{folder.rstrip('/')}/*.safetensors"))
            if not paths:
                raise NotFound("folder with *.safetensors", self._uri)
            for path in paths:
                yield deserialize(system.cat_file(path))  # type: ignore[no-untyped-call]
        except SafetensorError as error:
            raise DataLoss(f"store {self._uri}: {error}") from error
        except (OSError, ImportError, ValueError) as error:
            raise Unavailable(f"store {self._uri}: {type(error).__name__}: {error}") from error
