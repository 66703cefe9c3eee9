"""Where the weights of a stage are while it works, and while it does not.

- resident: on the device, always.
- offloaded: on the device while the stage works; on the host, in pinned memory, the rest of the time.
- streamed: as offloaded, but blocks of the network do not stay. Two at a time are on the device: one computes while the
  bytes of the next arrive on a stream of their own.

Outputs are bit for bit those of resident weights: the same kernels read the same bytes. On a CPU the same code moves
the same bytes, without streams.

A block's weights lie side by side in one run of bytes on the host. On the device they are views of a buffer that keeps
its address for as long as the stage works, so compiled code and captured graphs may read them. Between two pieces of
work the buffer's storage has no bytes, and the weights must not be touched.
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

ALIGNMENT = 256  # bytes, of a tensor in its buffer
RING = 2  # buffers that streamed blocks pass through


class Part(Protocol):
    """What has memory on the device only while its stage works."""

    def bring_in(self) -> None: ...

    def send_away(self) -> None: ...


@dataclass(slots=True)
class Placement:
    """How one stage keeps its weights. Its networks are put here as they are loaded; its work is done in `at_work`.

    Args:
        streamed_blocks: how many blocks of a streamed network do not stay, the last ones; all of them when None.
    """

    device: str
    residency: Residency = "resident"
    streamed_blocks: int | None = None
    parts: list[Part] = field(default_factory=list)

    @property
    def is_resident(self) -> bool:
        return self.residency == "resident"

    @property
    def load_device(self) -> str:
        """Where a network must be when it is put."""
        return self.device if self.is_resident else "cpu"

    def put(self, network: Network, blocks: Iterable[nn.Module] = (), *, keep: Collection[str] = ()) -> Network:
        """The network, with its weights where the plan wants them.

        Args:
            blocks: what can be streamed, in the order in which it runs.
            keep: names of parts of a block that stay with the rest, since they are used outside of its forward.
        """
        if not self.is_resident:
            passing = list(blocks) if self.residency == "streamed" else []
            count = len(passing) if self.streamed_blocks is None else self.streamed_blocks
            self.parts.append(MovingWeights(network, passing, streamed=count, device=self.device, keep=keep))
        return network

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Within it the networks can run; behind it the device has its memory back."""
        with ExitStack() as stack:
            if self.device != "cpu":
                stack.callback(torch.cuda.empty_cache)  # other processes are waiting for it
            for part in self.parts:
                stack.callback(part.send_away)
                part.bring_in()
            yield


def limit_gpu_memory(nbytes: int) -> None:
    """Let this process have no more of the GPU's memory. At the limit it first uses again what lies idle in its
    allocator; then it fails."""
    torch.cuda.set_per_process_memory_fraction(min(nbytes / torch.cuda.mem_get_info()[1], 1.0))


class MovingWeights:
    """The weights of a network on the CPU: kept on the host, and brought to `device` for its work.

    Args:
        blocks: what runs one after the other, in this order, in every forward.
        streamed: how many of them, the last ones, are streamed. All else comes in as a whole.
        keep: as for `Placement.put`.
    """

    def __init__(
        self,
        network: nn.Module,
        blocks: Sequence[nn.Module] = (),
        *,
        streamed: int = 0,
        device: str,
        keep: Collection[str] = (),
    ) -> None:
        self.device = device
        passing = blocks[len(blocks) - streamed :]
        owned = [_tensors(block, without=keep) for block in passing]
        moving = {id(tensor) for tensors in owned for tensor in tensors}
        self._rest = Packed([tensor for tensor in _tensors(network) if id(tensor) not in moving], device)
        self._rest.lie_in(Buffer(self._rest.nbytes, device))
        self._ring = Ring([Packed(tensors, device) for tensors in owned], device) if passing else None
        if self._ring:
            self._ring.attach(blocks[0], passing)

    @property
    def device_bytes(self) -> int:
        """What it takes on the device while it works."""
        return self._rest.nbytes + (self._ring.nbytes if self._ring else 0)

    def bring_in(self) -> None:
        self._rest.buffer.grow()
        self._rest.arrive()
        if self._ring:
            self._ring.grow()

    def send_away(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize()
        self._rest.buffer.shrink()
        if self._ring:
            self._ring.shrink()


class Buffer:
    """Bytes on the device that come and go; views of them stay valid."""

    def __init__(self, nbytes: int, device: str) -> None:
        self.nbytes = nbytes
        self.bytes = torch.empty(nbytes, dtype=torch.uint8, device=device)
        self.shrink()

    def grow(self) -> None:
        self.bytes.untyped_storage().resize_(self.nbytes)

    def shrink(self) -> None:
        self.bytes.untyped_storage().resize_(0)


class Packed:
    """Tensors as one run of bytes on the host. Those that share memory go on sharing it."""

    def __init__(self, tensors: Sequence[Tensor], device: str) -> None:
        self._runs = _runs(tensors)
        self.nbytes = sum(run.room for run in self._runs)
        self.host = _whole_pages(self.nbytes)
        offset = 0
        for run in self._runs:
            self.host[offset : offset + run.nbytes] = run.content()
            offset += run.room
        if device != "cpu":
            _pin(self.host)

    def lie_in(self, buffer: Buffer) -> None:
        """Make the tensors views of a buffer that is large enough."""
        self.buffer = buffer
        buffer.grow()
        offset = 0
        for run in self._runs:
            for tensor in run.tensors:
                at = offset + tensor.data_ptr() - run.start
                typed = buffer.bytes[at : at + _extent(tensor)].view(tensor.dtype)
                tensor.data = typed.as_strided(tensor.shape, tensor.stride(), typed.storage_offset())
            offset += run.room
        self._runs = []
        buffer.shrink()

    def arrive(self) -> None:
        """Copy the bytes to the device, in the order of the current stream."""
        self.buffer.bytes[: self.nbytes].copy_(self.host, non_blocking=True)


class Ring:
    """Buffers on the device that the blocks pass through, each in its turn."""

    def __init__(self, blocks: list[Packed], device: str) -> None:
        self._blocks = blocks
        self._buffers = [Buffer(max(block.nbytes for block in blocks), device) for _ in range(RING)]
        self._inside = [-1] * RING  # number of the block that is in each buffer
        self._stream = None if device == "cpu" else torch.cuda.Stream()
        self._arrived: list[torch.cuda.Event] = [torch.cuda.Event() for _ in range(RING)] if self._stream else []
        for number, block in enumerate(blocks):
            block.lie_in(self._buffers[number % RING])

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in self._buffers)

    def grow(self) -> None:
        for buffer in self._buffers:
            buffer.grow()

    def shrink(self) -> None:
        self._inside = [-1] * RING
        for buffer in self._buffers:
            buffer.shrink()

    def attach(self, first: nn.Module, blocks: Sequence[nn.Module]) -> None:
        """Have the weights of `blocks` there when they run. The copies begin with `first`, which runs before them."""

        def begin(*_: object) -> None:
            for number in range(min(RING, len(blocks))):
                self._fetch(number)

        first.register_forward_pre_hook(begin)
        for number, block in enumerate(blocks):

            def wait(*_: object, number: int = number) -> None:
                self._wait_for(number)

            def follow(*_: object, number: int = number) -> None:
                if number + RING < len(blocks):
                    self._fetch(number + RING)

            block.register_forward_pre_hook(wait)
            block.register_forward_hook(follow)

    def _fetch(self, number: int) -> None:
        """Copy a block's bytes over those of the one that has run."""
        if self._stream:
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                self._blocks[number].arrive()
                self._arrived[number % RING].record()
        else:
            self._blocks[number].arrive()
        self._inside[number % RING] = number

    def _wait_for(self, number: int) -> None:
        if self._inside[number % RING] != number:
            raise RuntimeError(f"streamed block {number} runs out of turn: {self._inside} are on the device")
        if self._stream:
            torch.cuda.current_stream().wait_event(self._arrived[number % RING])


@dataclass(frozen=True, slots=True)
class _Run:
    """Memory that some tensors lie in, without a gap."""

    start: int  # address
    nbytes: int
    tensors: list[Tensor]

    @property
    def room(self) -> int:
        """Bytes in a buffer, with those that put the next run on an aligned address."""
        return -(-self.nbytes // ALIGNMENT) * ALIGNMENT

    def content(self) -> Tensor:
        storage = self.tensors[0].untyped_storage()
        bytes = torch.empty(0, dtype=torch.uint8)
        return bytes.set_(storage, self.start - storage.data_ptr(), (self.nbytes,), (1,))


def _runs(tensors: Sequence[Tensor]) -> list[_Run]:
    """Tensors on the CPU, those that overlap together."""
    runs: list[_Run] = []
    for tensor in sorted(tensors, key=lambda t: (t.data_ptr(), -_extent(t))):
        start, end = tensor.data_ptr(), tensor.data_ptr() + _extent(tensor)
        if runs and start < runs[-1].start + runs[-1].nbytes:
            run = runs.pop()
            runs.append(_Run(run.start, max(end - run.start, run.nbytes), [*run.tensors, tensor]))
        else:
            runs.append(_Run(start, end - start, [tensor]))
    return runs


def _extent(tensor: Tensor) -> int:
    """Bytes from a tensor's first element to the end of its last."""
    last = sum((length - 1) * step for length, step in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size() if tensor.numel() else 0


def _tensors(module: nn.Module, *, without: Collection[str] = ()) -> list[Tensor]:
    """All that a module holds: parameters, buffers, and tensors that are plain attributes."""
    left_out = {id(part) for name in without for part in _submodule(module, name).modules()}
    found: dict[int, Tensor] = {}
    for part in module.modules():
        if id(part) not in left_out:
            plain = (value for value in vars(part).values() if isinstance(value, Tensor))
            for tensor in chain(part.parameters(recurse=False), part.buffers(recurse=False), plain):
                found[id(tensor)] = tensor
    return list(found.values())


def _submodule(module: nn.Module, name: str) -> nn.Module:
    """nn.Identity where there is none of that name."""
    try:
        return module.get_submodule(name)
    except AttributeError:
        return nn.Identity()


def _whole_pages(nbytes: int) -> Tensor:
    """Bytes on the host; nothing else lies in their pages, which are what is pinned."""
    pages = mmap.mmap(-1, max(nbytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=torch.uint8)[:nbytes]


def _pin(host: Tensor) -> None:
    """Lock memory where it is, as long as it is there; the allocator for pinned memory would round it up to a power of
    two."""
    if host.numel():
        cudart = torch.cuda.cudart()
        torch.cuda.check_error(int(cudart.cudaHostRegister(host.data_ptr(), host.nbytes, 0)))
        weakref.finalize(host, cudart.cudaHostUnregister, host.data_ptr()).atexit = False
