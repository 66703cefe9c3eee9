"""Export for TensorRT. The package's own part is replaced: a plan is the ONNX graph, and ONNX Runtime runs it.

On a machine with a GPU and the package, the last test does without the replacement.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cosmos_triton.cli.main import main
from cosmos_triton.export.checkpoints.safetensors_writer import write_safetensors
from cosmos_triton.export.graphs import tensorrt_builder, tensorrt_export
from cosmos_triton.export.graphs.graph_specs import SPECS
from cosmos_triton.export.graphs.onnx_graph import export_graph
from cosmos_triton.export.graphs.tensorrt_export import export_tensorrt
from cosmos_triton.networks.text_encoder import PRESETS, build_text_encoder
from cosmos_triton.planning.memory_plan import plan_memory
from cosmos_triton.runtime.backends import tensorrt_backend
from cosmos_triton.runtime.backends.backend import open_graph
from cosmos_triton.runtime.backends.graphs import FOLDER, ONNXRUNTIME, TENSORRT, BackendError, ExportedStage, Target
from cosmos_triton.runtime.backends.onnxruntime_backend import OnnxRuntimeBackend
from cosmos_triton.runtime.checkpoints import network_shapes
from cosmos_triton.runtime.deployments import DEPLOYMENTS
from cosmos_triton.runtime.releases import COSMOS_1_0, WEIGHTS
from cosmos_triton.serving.addresses import StartError
from cosmos_triton.serving.backend_choice import choose_backends
from cosmos_triton.serving.serve import require_resident_tensorrt

DEPLOYMENT = DEPLOYMENTS["tiny-video2world"]
HERE = Target(gpu="NVIDIA Toy", compute_capability="9.0", tensorrt="11.0.0")
HAS_TENSORRT = torch.cuda.is_available() and tensorrt_backend.tensorrt is not None


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those of the text encoder alone."""
    folder = tmp_path_factory.mktemp("checkpoints")
    file = folder / COSMOS_1_0.t5_encoder / WEIGHTS
    file.parent.mkdir(parents=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_text_encoder(PRESETS["tiny"])
    state = {name: network.state_dict()[name] for name in network_shapes(network)}
    write_safetensors(file, state, value=lambda _, tensor: tensor, progress=lambda _: None)
    return folder


@pytest.fixture
def toy_tensorrt(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[list[int]]]:
    """Returns the profiles that the last plan was built with."""
    seen: dict[str, list[list[int]]] = {}

    def build_plan(graph: Path, plan_file: Path, profiles: Mapping[str, list[list[int]]], timing_cache: Path) -> None:
        seen.update(profiles)
        timing_cache.write_bytes(b"timings")
        plan_file.write_bytes(graph.read_bytes())

    class Engine(OnnxRuntimeBackend):
        def __init__(self, file: Path) -> None:
            super().__init__(file, threads=1)

    monkeypatch.setattr(tensorrt_builder, "build_plan", build_plan)
    monkeypatch.setattr(tensorrt_backend, "TensorrtBackend", Engine)
    monkeypatch.setattr(tensorrt_backend, "current_target", lambda: HERE)
    monkeypatch.setattr(tensorrt_export, "DEVICE", "cpu")
    return seen


def test_plan_is_built_compared_and_recorded_and_taken_on_the_same_machine_alone(
    checkpoints: Path, toy_tensorrt: dict[str, list[list[int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = checkpoints / FOLDER
    export_tensorrt("text_encoder", DEPLOYMENT, checkpoints, root, precision="fp32")
    stage = ExportedStage.below(root, "text_encoder", TENSORRT)
    record = stage.record("text_encoder")
    assert record.target == HERE
    assert record.precision == "float32"
    assert record.profiles == toy_tensorrt == {name: [[1, 512], [1, 512], [8, 512]] for name in record.inputs}
    assert record.largest_error is not None
    assert (root / "timing.cache").read_bytes() == b"timings"
    assert {file.name for file in stage.folder.iterdir()} == {"text_encoder.plan", "text_encoder.json"}

    wanted = {"text_encoder": "tensorrt"}
    assert choose_backends(wanted, DEPLOYMENT, checkpoints, device="cuda") == {"text_encoder": stage}
    assert choose_backends({}, DEPLOYMENT, checkpoints, device="cuda") == {}
    sample = SPECS["text_encoder"].sample(checkpoints, DEPLOYMENT, 3)
    assert open_graph(stage, "text_encoder", None, "cpu")(*sample).shape == (3, 512, 32)

    for other in (
        Target("NVIDIA Toy", "9.0", "11.1.0"),
        Target("NVIDIA Toy", "8.6", "11.0.0"),
        Target("NVIDIA Other", "9.0", "11.0.0"),
    ):
        monkeypatch.setattr(tensorrt_backend, "current_target", lambda other=other: other)
        with pytest.raises(BackendError, match=r"text_encoder\.plan: built for NVIDIA Toy .*; accepted: ") as caught:
            choose_backends(wanted, DEPLOYMENT, checkpoints, device="cuda")
        assert str(other) in str(caught.value)
        assert "\n" not in str(caught.value)
        with pytest.raises(BackendError, match="accepted"):
            open_graph(stage, "text_encoder", None, "cpu")


@pytest.mark.usefixtures("toy_tensorrt")
def test_plan_that_computes_something_else_has_no_record(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(OnnxRuntimeBackend):
        def __init__(self, file: Path) -> None:
            super().__init__(file, threads=1)

        def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: tensor * 1.1 for name, tensor in super().run(inputs).items()}

    monkeypatch.setattr(tensorrt_backend, "TensorrtBackend", Wrong)
    with pytest.raises(BackendError, match=r"text_encoder\.plan: hidden_states is .* off what torch computes"):
        export_tensorrt("text_encoder", DEPLOYMENT, checkpoints, tmp_path, precision="fp32")
    assert not ExportedStage.below(tmp_path, "text_encoder", TENSORRT).holds("text_encoder")


def test_a_plan_is_refused_where_memory_is_planned_to_move_its_weights(tmp_path: Path) -> None:
    """TensorRT keeps them on the GPU."""
    released = DEPLOYMENTS["4b"]
    graphs = {"diffusion_decoder": ExportedStage(TENSORRT, tmp_path)}
    require_resident_tensorrt(plan_memory(released, 80), graphs)
    with pytest.raises(StartError, match="--engine: value diffusion_decoder=tensorrt; accepted: torch"):
        require_resident_tensorrt(plan_memory(released, 16), graphs)
    require_resident_tensorrt(plan_memory(released, 16), {"diffusion_decoder": ExportedStage(ONNXRUNTIME, tmp_path)})


@pytest.mark.usefixtures("toy_tensorrt")
def test_fp8_is_built_from_quantised_graphs_alone(checkpoints: Path, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="--graphs DIR"):
        export_tensorrt("text_encoder", DEPLOYMENT, checkpoints, tmp_path, precision="fp8")
    with pytest.raises(BackendError, match=r"text_encoder\.onnx: no such graph"):
        export_tensorrt("text_encoder", DEPLOYMENT, checkpoints, tmp_path, precision="fp8", graphs=tmp_path)


def test_without_the_package_the_command_says_what_to_install(
    checkpoints: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_backend, "tensorrt", None)
    command = ["export", "tensorrt", "--stage", "text_encoder", "--deployment", DEPLOYMENT.name]
    assert main([*command, "--checkpoint-dir", str(checkpoints)]) == 1
    assert capsys.readouterr().err == "tensorrt: not installed: pip install 'cosmos-triton[tensorrt]'\n"


def test_profiles_are_the_shapes_that_the_released_models_are_served_in(checkpoints: Path) -> None:
    released = DEPLOYMENTS["13b-video2world"]
    assert SPECS["denoising_step"].profiles(checkpoints, released) == {
        "latents": [[n, 16, 8, 80, 128] for n in (2, 2, 8)],
        "tokens": [[n, 8, 40, 64] for n in (2, 2, 8)],
        "context": [[n, 512, 1024] for n in (2, 2, 8)],
        "noise_level": [[n] for n in (2, 2, 8)],
    }
    assert SPECS["discrete_encoder"].profiles(checkpoints, released) == {
        "video": [[1, 3, n, 640, 1024] for n in (1, 9, 9)]
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_graph_computes_in_the_precision_that_was_asked_for(
    checkpoints: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    """Every weight and the output: TensorRT's networks have the types of their graph."""
    import onnx

    path = tmp_path / "graph.onnx"
    export_graph(SPECS["text_encoder"], checkpoints, DEPLOYMENT, dtype, path)
    graph = onnx.load(path).graph
    expected = {torch.bfloat16: onnx.TensorProto.BFLOAT16, torch.float16: onnx.TensorProto.FLOAT16}[dtype]
    weights = [tensor for tensor in graph.initializer if np.prod(tensor.dims) >= 32 and "weight" in tensor.name]
    assert len(weights) > 10
    assert {tensor.data_type for tensor in weights} == {expected}
    assert graph.output[0].type.tensor_type.elem_type == expected


@pytest.mark.skipif(not HAS_TENSORRT, reason="needs a GPU and the package tensorrt")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_real_plan_computes_what_torch_computes(checkpoints: Path, tmp_path: Path, precision: str) -> None:
    export_tensorrt("text_encoder", DEPLOYMENT, checkpoints, tmp_path, precision=precision)
    stage = ExportedStage.below(tmp_path, "text_encoder", TENSORRT)
    sample = SPECS["text_encoder"].sample(checkpoints, DEPLOYMENT, 3)
    assert open_graph(stage, "text_encoder", None, "cuda")(*sample).isfinite().all()
