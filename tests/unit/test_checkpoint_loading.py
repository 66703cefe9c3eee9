"""Networks from safetensors files: what is loaded, how it is refused, and where its memory is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cosmos_triton.networks.ar_config import PRESETS
from cosmos_triton.networks.ar_transformer import ARTransformer
from cosmos_triton.networks.text_encoder import PRESETS as TEXT_PRESETS
from cosmos_triton.networks.text_encoder import build_text_encoder
from cosmos_triton.runtime.checkpoints import load_network, network_shapes
from cosmos_triton.runtime.errors import CheckpointError
from cosmos_triton.runtime.mapped_file import SafetensorsFile


@dataclass(frozen=True)
class Size:
    dim: int
    builds_its_table: bool = True


class Net(nn.Module):
    """One of each: a parameter, two names of one parameter, persistent buffers, and a table that is computed."""

    table: Tensor

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.embedding = nn.Embedding(3, size.dim)
        self.output = nn.Linear(size.dim, 3, bias=False)
        self.output.weight = self.embedding.weight
        self.norm = nn.BatchNorm1d(size.dim)
        table = torch.arange(4.0, device="cpu" if size.builds_its_table else None)
        self.register_buffer("table", table, persistent=False)


def random_state(network: nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in network_shapes(network).items()}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    state = random_state(Net(Size(5))) | {"norm.num_batches_tracked": torch.tensor(7)}
    save_file(state, tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


def test_a_loaded_network_has_the_files_values_and_its_own_tables(saved: Path) -> None:
    network = load_network(Net, Size(5), saved, dtype=torch.float32)
    for name, expected in load_file(saved).items():
        assert torch.equal(network.state_dict()[name], expected), name
    assert network.norm.num_batches_tracked.dtype == torch.int64
    assert torch.equal(network.table, torch.arange(4.0))
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_tied_weights_stay_one_tensor(saved: Path) -> None:
    network = load_network(Net, Size(5), saved, dtype=torch.bfloat16)
    assert network.output.weight is network.embedding.weight
    assert "output.weight" not in SafetensorsFile(saved).shapes


def test_floats_take_the_dtype_asked_for_and_integers_keep_theirs(saved: Path) -> None:
    network = load_network(Net, Size(5), saved, dtype=torch.bfloat16)
    assert {t.dtype for t in (network.embedding.weight, network.norm.running_var, network.table)} == {torch.bfloat16}
    assert network.norm.num_batches_tracked.item() == 7


def test_weights_in_the_files_dtype_are_the_mapped_file_itself(saved: Path) -> None:
    network = load_network(Net, Size(5), saved, dtype=torch.float32)
    address = network.embedding.weight.data_ptr()
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(saved))]
    spans = [[int(bound, 16) for bound in line.split()[0].split("-")] for line in lines]
    assert any(start <= address < end for start, end in spans)


def test_writing_to_a_mapped_weight_leaves_the_file_alone(saved: Path) -> None:
    before = saved.read_bytes()
    load_network(Net, Size(5), saved, dtype=torch.float32).embedding.weight.zero_()
    assert saved.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm.weight": torch.zeros(4)}, r"norm\.weight: shape \[4\], expected \[5\]"),
        ({"norm.weight": None}, r"norm\.weight: missing"),
        ({"extra": torch.zeros(1)}, r"extra: the network has no such tensor"),
    ],
)
def test_keys_and_shapes_are_strict(saved: Path, change: dict[str, Tensor | None], message: str) -> None:
    state = {name: tensor for name, tensor in (load_file(saved) | change).items() if tensor is not None}
    other = saved.with_name("other.safetensors")
    save_file(state, other)
    with pytest.raises(CheckpointError, match=rf"other\.safetensors: {message}"):
        load_network(Net, Size(5), other, dtype=torch.float32)


def test_a_table_that_nobody_fills_is_an_error_and_not_garbage(saved: Path) -> None:
    with pytest.raises(RuntimeError, match="buffer table"):
        load_network(Net, Size(5, builds_its_table=False), saved, dtype=torch.float32)


@pytest.mark.parametrize("content", [b"", b"12345", b"\x00" * 64, b"\x02" + b"\x00" * 7 + b"[]", b"\xff" * 64])
def test_what_is_no_safetensors_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"broken\.safetensors: not a safetensors file"):
        SafetensorsFile(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"absent\.safetensors: no such file"):
        load_network(Net, Size(5), tmp_path / "absent.safetensors", dtype=torch.float32)


def test_a_file_cut_short_is_noticed_at_any_length(saved: Path) -> None:
    content = saved.read_bytes()
    for length in range(0, len(content), 7):
        saved.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=str(saved)):
            SafetensorsFile(saved)


def test_a_file_larger_than_the_machines_memory_can_be_opened(tmp_path: Path) -> None:
    memory = 1024 * sum(
        int(line.split()[1])
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith(("MemT", "SwapT"))
    )
    count = memory + 2**30
    header = f'{{"w":{{"dtype":"U8","shape":[{count}],"data_offsets":[0,{count}]}}}}'.encode()
    path = tmp_path / "large.safetensors"
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + count)  # sparse: takes no room on disk
    assert SafetensorsFile(path).tensor("w")[-3:].tolist() == [0, 0, 0]


@pytest.mark.parametrize("preset", ["tiny", "tiny-video2world"])
def test_the_transformer_loads_with_working_tables(tmp_path: Path, preset: str) -> None:
    torch.manual_seed(0)
    original = ARTransformer(PRESETS[preset])
    save_file(original.state_dict(), tmp_path / "model.safetensors")
    loaded = load_network(ARTransformer, PRESETS[preset], tmp_path / "model.safetensors", dtype=torch.float32)
    for name, buffer in original.named_buffers():
        assert torch.equal(dict(loaded.named_buffers())[name].to(buffer.dtype), buffer), name


def test_the_text_encoder_loads_and_computes_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    original = build_text_encoder(TEXT_PRESETS["tiny"])
    state = {name: original.state_dict()[name] for name in network_shapes(original)}
    save_file(state, tmp_path / "model.safetensors")
    loaded = load_network(build_text_encoder, TEXT_PRESETS["tiny"], tmp_path / "model.safetensors", dtype=torch.float32)
    ids = torch.arange(12)[None]
    with torch.inference_mode():
        assert torch.equal(loaded(ids, torch.ones_like(ids)), original(ids, torch.ones_like(ids)))
