"""Where the weights of a stage are while it runs, and while it is idle.

- resident: always on the device.
- offloaded: on the device while the stage runs, in pinned host memory while it is idle.
- streamed: offloaded, and some blocks (transformer layers) are streamed while the stage runs: they pass through two
  device buffers, and the next block is copied on a stream of its own while one computes.

Outputs are those of resident weights bit for bit: the same kernels read the same bytes. On a CPU the same code copies
the same bytes, without streams.

A block's weights are one contiguous range of bytes on the host. On the device they are views of a buffer whose address
stays the same while the stage runs, so compiled code and CUDA graphs may read them. While the stage is idle the
buffer's storage has zero bytes, and the weights must not be used.
"""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

Residency = Literal["resident", "streamed", "offloaded"]
Network = TypeVar("Network", bound=nn.Module)

ALIGNMENT = 256  # bytes, of each tensor's offset in a device buffer
NUM_BUFFERS = 2  # of streamed blocks


class Offloadable(Protocol):
    """Has device memory only while its stage runs."""

    def load(self) -> None: ...

    def offload(self) -> None: ...


@dataclass(slots=True)
class Placement:
    """Where one stage keeps its weights. Networks are registered with `put`, and run within `on_device`.

    Args:
        streamed_blocks: how many blocks of a streamed network are streamed, counted from the last one; None for all.
    """

    device: str
    residency: Residency = "resident"
    streamed_blocks: int | None = None
    offloadables: list[Offloadable] = field(default_factory=list)

    @property
    def is_resident(self) -> bool:
        return self.residency == "resident"

    @property
    def load_device(self) -> str:
        """The device that a network must be on when it is passed to `put`."""
        return self.device if self.is_resident else "cpu"

    def put(self, network: Network, blocks: Iterable[nn.Module] = (), *, exclude: Collection[str] = ()) -> Network:
        """The same network, its weights placed as planned.

        Args:
            blocks: modules that may be streamed, in the order in which they run.
            exclude: submodules of a block that are not streamed with it, since they are used outside of its forward.
        """
        if not self.is_resident:
            blocks = list(blocks) if self.residency == "streamed" else []
            streamed = len(blocks) if self.streamed_blocks is None else self.streamed_blocks
            self.offloadables.append(
                OffloadedWeights(network, blocks, streamed=streamed, device=self.device, exclude=exclude)
            )
        return network

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """Loads weights on entry; on exit offloads them and returns the device memory to the driver."""
        with ExitStack() as stack:
            if self.device != "cpu":
                stack.callback(torch.cuda.empty_cache)  # other processes need the memory
            for offloadable in self.offloadables:
                stack.callback(offloadable.offload)
                offloadable.load()
            yield


def limit_gpu_memory(nbytes: int) -> None:
    """Cap this process's CUDA allocator. At the cap it first reuses its cached memory; then it raises."""
    torch.cuda.set_per_process_memory_fraction(min(nbytes / torch.cuda.mem_get_info()[1], 1.0))


class OffloadedWeights:
    """Weights of a network in pinned host memory, copied to `device` by `load`.

    Args:
        network: on the CPU.
        blocks: modules that run one after the other, in this order, in every forward.
        streamed: how many of them are streamed, counted from the last one. All other weights are copied by `load`.
        exclude: as for `Placement.put`.
    """

    def __init__(
        self,
        network: nn.Module,
        blocks: Sequence[nn.Module] = (),
        *,
        streamed: int = 0,
        device: str,
        exclude: Collection[str] = (),
    ) -> None:
        self.device = device
        streamed_blocks = blocks[len(blocks) - streamed :]
        tensors_by_block = [_tensors(block, exclude=exclude) for block in streamed_blocks]
        streamed_ids = {id(tensor) for tensors in tensors_by_block for tensor in tensors}
        self._unstreamed = PackedTensors(
            [tensor for tensor in _tensors(network) if id(tensor) not in streamed_ids], device
        )
        self._unstreamed.bind(DeviceBuffer(self._unstreamed.nbytes, device))
        self._weight_stream: WeightStream | None = None
        if streamed_blocks:
            self._weight_stream = WeightStream([PackedTensors(tensors, device) for tensors in tensors_by_block], device)
            self._weight_stream.register_hooks(blocks[0], streamed_blocks)

    @property
    def device_bytes(self) -> int:
        """Device memory while loaded."""
        return self._unstreamed.nbytes + (self._weight_stream.nbytes if self._weight_stream else 0)

    def load(self) -> None:
        self._unstreamed.buffer.allocate()
        self._unstreamed.copy_to_device()
        if self._weight_stream:
            self._weight_stream.allocate()

    def offload(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize()
        self._unstreamed.buffer.free()
        if self._weight_stream:
            self._weight_stream.free()


class DeviceBuffer:
    """Bytes on the device whose storage can be freed and allocated again; views of them stay valid objects."""

    def __init__(self, nbytes: int, device: str) -> None:
        self.nbytes = nbytes
        self.bytes = torch.empty(nbytes, dtype=torch.uint8, device=device)
        self.free()

    def allocate(self) -> None:
        self.bytes.untyped_storage().resize_(self.nbytes)

    def free(self) -> None:
        self.bytes.untyped_storage().resize_(0)


class PackedTensors:
    """Tensors packed into one contiguous range of host bytes. Tensors that share memory keep sharing it."""

    def __init__(self, tensors: Sequence[Tensor], device: str) -> None:
        self._segments = _segments(tensors)
        self.nbytes = sum(segment.padded_nbytes for segment in self._segments)
        self.host = _page_aligned(self.nbytes)
        offset = 0
        for segment in self._segments:
            self.host[offset : offset + segment.nbytes] = segment.content()
            offset += segment.padded_nbytes
        if device != "cpu":
            _pin(self.host)

    def bind(self, buffer: DeviceBuffer) -> None:
        """Make the tensors views of a buffer of at least `nbytes`, and release their own memory."""
        self.buffer = buffer
        buffer.allocate()
        offset = 0
        for segment in self._segments:
            for tensor in segment.tensors:
                start = offset + tensor.data_ptr() - segment.address
                typed = buffer.bytes[start : start + _extent(tensor)].view(tensor.dtype)
                tensor.data = typed.as_strided(tensor.shape, tensor.stride(), typed.storage_offset())
            offset += segment.padded_nbytes
        self._segments = []
        buffer.free()

    def copy_to_device(self) -> None:
        """Asynchronous, on the current stream."""
        self.buffer.bytes[: self.nbytes].copy_(self.host, non_blocking=True)


class WeightStream:
    """Streams blocks through NUM_BUFFERS device buffers: block i uses buffer i % NUM_BUFFERS."""

    def __init__(self, blocks: list[PackedTensors], device: str) -> None:
        self._blocks = blocks
        self._buffers = [DeviceBuffer(max(block.nbytes for block in blocks), device) for _ in range(NUM_BUFFERS)]
        self._loaded = [-1] * NUM_BUFFERS  # index of the block in each buffer
        self._stream = None if device == "cpu" else torch.cuda.Stream()
        self._copied: list[torch.cuda.Event] = []
        if self._stream:
            self._copied = [torch.cuda.Event() for _ in range(NUM_BUFFERS)]
        for index, block in enumerate(blocks):
            block.bind(self._buffers[index % NUM_BUFFERS])

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in self._buffers)

    def allocate(self) -> None:
        for buffer in self._buffers:
            buffer.allocate()

    def free(self) -> None:
        self._loaded = [-1] * NUM_BUFFERS
        for buffer in self._buffers:
            buffer.free()

    def register_hooks(self, first: nn.Module, blocks: Sequence[nn.Module]) -> None:
        """Prefetch the first blocks when the module `first` begins, and each block as soon as its buffer is free."""

        def prefetch_first(*_: object) -> None:
            for index in range(min(NUM_BUFFERS, len(blocks))):
                self._prefetch(index)

        first.register_forward_pre_hook(prefetch_first)
        for index, block in enumerate(blocks):

            def wait(*_: object, index: int = index) -> None:
                self._wait(index)

            def prefetch_next(*_: object, index: int = index) -> None:
                if index + NUM_BUFFERS < len(blocks):
                    self._prefetch(index + NUM_BUFFERS)

            block.register_forward_pre_hook(wait)
            block.register_forward_hook(prefetch_next)

    def _prefetch(self, index: int) -> None:
        """Copy a block into its buffer, after the work that reads the buffer's previous block."""
        if self._stream:
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                self._blocks[index].copy_to_device()
                self._copied[index % NUM_BUFFERS].record()
        else:
            self._blocks[index].copy_to_device()
        self._loaded[index % NUM_BUFFERS] = index

    def _wait(self, index: int) -> None:
        """Make the current stream wait for a block's copy."""
        if self._loaded[index % NUM_BUFFERS] != index:
            raise RuntimeError(f"streamed block {index} runs out of order: blocks {self._loaded} are on the device")
        if self._stream:
            torch.cuda.current_stream().wait_event(self._copied[index % NUM_BUFFERS])


@dataclass(frozen=True, slots=True)
class _Segment:
    """A contiguous range of memory that is covered by overlapping tensors."""

    address: int
    nbytes: int
    tensors: list[Tensor]

    @property
    def padded_nbytes(self) -> int:
        """Bytes in a buffer, so that the next segment is aligned."""
        return -(-self.nbytes // ALIGNMENT) * ALIGNMENT

    def content(self) -> Tensor:
        storage = self.tensors[0].untyped_storage()
        content = torch.empty(0, dtype=torch.uint8)
        return content.set_(storage, self.address - storage.data_ptr(), (self.nbytes,), (1,))


def _segments(tensors: Sequence[Tensor]) -> list[_Segment]:
    """Tensors on the CPU, overlapping ones in one segment."""
    segments: list[_Segment] = []
    for tensor in sorted(tensors, key=lambda t: (t.data_ptr(), -_extent(t))):
        start, end = tensor.data_ptr(), tensor.data_ptr() + _extent(tensor)
        if segments and start < segments[-1].address + segments[-1].nbytes:
            last = segments.pop()
            nbytes = max(end - last.address, last.nbytes)
            segments.append(_Segment(last.address, nbytes, [*last.tensors, tensor]))
        else:
            segments.append(_Segment(start, end - start, [tensor]))
    return segments


def _extent(tensor: Tensor) -> int:
    """Bytes from a tensor's first element to the end of its last."""
    last = sum((length - 1) * step for length, step in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size() if tensor.numel() else 0


def _tensors(module: nn.Module, *, exclude: Collection[str] = ()) -> list[Tensor]:
    """Parameters, buffers, and tensors that are plain attributes, of a module and its submodules."""
    excluded = {id(submodule) for name in exclude for submodule in _submodule(module, name).modules()}
    found: dict[int, Tensor] = {}
    for submodule in module.modules():
        if id(submodule) not in excluded:
            plain = (value for value in vars(submodule).values() if isinstance(value, Tensor))
            for tensor in chain(submodule.parameters(recurse=False), submodule.buffers(recurse=False), plain):
                found[id(tensor)] = tensor
    return list(found.values())


def _submodule(module: nn.Module, name: str) -> nn.Module:
    """nn.Identity where there is none of that name."""
    try:
        return module.get_submodule(name)
    except AttributeError:
        return nn.Identity()


def _page_aligned(nbytes: int) -> Tensor:
    """Host bytes that share no page with anything else: whole pages are what gets pinned."""
    pages = mmap.mmap(-1, max(nbytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=torch.uint8)[:nbytes]


def _pin(host: Tensor) -> None:
    """Page-lock memory in place for as long as it exists; torch's pinned allocator would round it up to a power of
    two."""
    if host.numel():
        cudart = torch.cuda.cudart()
        torch.cuda.check_error(int(cudart.cudaHostRegister(host.data_ptr(), host.nbytes, 0)))
        weakref.finalize(host, cudart.cudaHostUnregister, host.data_ptr()).atexit = False
