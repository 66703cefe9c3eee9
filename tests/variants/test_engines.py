"""Engines other than torch: what is exported, what serve takes, and that the pipeline makes the same of it."""

from __future__ import annotations

import io
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from cosmos_triton.cli.main import main
from cosmos_triton.export.graphs.graph_specs import SPECS
from cosmos_triton.export.graphs.onnx_export import export_onnx, require_equal, torch_outputs
from cosmos_triton.runtime.backends.backend import open_graph
from cosmos_triton.runtime.backends.graphs import FOLDER, BackendError, ExportedStage
from cosmos_triton.runtime.deployments import DEPLOYMENTS
from cosmos_triton.runtime.releases import COSMOS_1_0, PREDICT1
from cosmos_triton.runtime.stages import GRAPHS, STAGES
from cosmos_triton.serving import backend_choice
from cosmos_triton.serving.backend_choice import choose_backends, parse_backends
from cosmos_triton.serving.run_directory import model_repository, read_config, render
from support.pipeline_server import PROMPT, SERVE, PipelineServer

DEPLOYMENT = DEPLOYMENTS["tiny-video2world"]
STAGE_OF = {graph: stage for stage, graphs in GRAPHS.items() for graph in graphs}
PIXEL_TOLERANCE = 1  # levels of 255
MP4_TOLERANCE = 0.5  # levels of 255, on average
DRAWN_TOKENS = 3 * 10 * 16  # drawn for a clip whose first two latent frames are given
ONNX = dict.fromkeys(GRAPHS, "onnxruntime")


def stage_of(graph: str, folder: Path) -> ExportedStage:
    return ExportedStage.below(folder / FOLDER, STAGE_OF[graph], "onnxruntime")


@pytest.fixture
def tree(exported: Path, tmp_path: Path) -> Path:
    """A copy of the exported tree that a test may damage."""
    shutil.copytree(exported / FOLDER, tmp_path / FOLDER)
    for file in exported.iterdir():
        if file.name != FOLDER:
            (tmp_path / file.name).symlink_to(file)
    return tmp_path


@pytest.mark.parametrize("graph", SPECS)
def test_graph_computes_what_torch_computes_whatever_the_batch(graph: str, exported: Path) -> None:
    """At a size that was neither traced nor compared by the export itself."""
    spec, stage = SPECS[graph], stage_of(graph, exported)
    size = {"discrete_encoder": 17, "denoising_step": 6}.get(graph, 3)
    sample = (spec.served or spec.sample)(exported, DEPLOYMENT, size)
    network = open_graph(stage, graph, None, "cpu")
    outputs = network(*sample)
    found = dict(zip(spec.outputs, outputs if isinstance(outputs, tuple) else (outputs,), strict=True))
    expected = torch_outputs(spec, exported, DEPLOYMENT, torch.float32, [sample], "cpu")
    require_equal(stage.file(graph), expected, [found], spec.tolerance)


@pytest.mark.parametrize("graph", SPECS)
def test_record_says_what_the_graph_is(graph: str, exported: Path) -> None:
    stage = stage_of(graph, exported)
    record, model = stage.record(graph), onnx.load(stage.file(graph))
    assert record.opset == model.opset_import[0].version
    assert list(record.inputs) == [value.name for value in model.graph.input] == list(SPECS[graph].inputs)
    assert list(record.outputs) == [value.name for value in model.graph.output]
    assert record.largest_error is not None
    assert record.largest_error <= SPECS[graph].tolerance
    assert set(record.weights) == set(SPECS[graph].source.files(COSMOS_1_0))
    assert {"torch", "onnx", "onnxruntime"} <= set(record.versions)
    # TensorRT has no sequences of tensors.
    assert not [node.op_type for node in model.graph.node if "Sequence" in node.op_type]


def test_export_fails_where_the_graph_is_not_the_network(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cosmos_triton.export.graphs import onnx_export

    write = onnx_export.export_graph

    def with_one_weight_changed(spec, directory, deployment, dtype, path) -> None:  # type: ignore[no-untyped-def]
        write(spec, directory, deployment, dtype, path)
        model = onnx.load(path)
        weight = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 2)
        values = numpy_helper.to_array(weight).copy()
        values[0] += 1
        weight.CopyFrom(numpy_helper.from_array(values, weight.name))
        onnx.save(model, path)

    monkeypatch.setattr(onnx_export, "export_graph", with_one_weight_changed)
    with pytest.raises(BackendError, match=r"text_encoder\.onnx: hidden_states is .* off what torch computes"):
        export_onnx("text_encoder", DEPLOYMENT, tree, tree / FOLDER)
    with pytest.raises(BackendError, match="no such graph; make it with"):
        choose_backends({"text_encoder": "onnxruntime"}, DEPLOYMENT, tree, device="cpu")


@pytest.mark.parametrize(
    ("option", "accepted"),
    [
        ("text_encoder", "ENGINE of torch, onnxruntime, tensorrt"),
        ("text_encoder=onnx", "ENGINE of torch, onnxruntime, tensorrt"),
        ("ar_sampler=onnxruntime", "STAGE of text_encoder, video_tokenizer_encoder"),
        ("text_encoder=onnxruntime", "cosmos-triton export onnx --stage text_encoder --deployment tiny-video2world"),
        ("text_encoder=tensorrt", "cosmos-triton export tensorrt --stage text_encoder --deployment tiny-video2world"),
    ],
)
def test_engine_that_cannot_run_a_stage_is_one_line_before_the_server_starts(
    option: str, accepted: str, checkpoints: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["serve", "--deployment", DEPLOYMENT.name, "--checkpoint-dir", str(checkpoints), "--engine", option]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert accepted in error
    assert error.count("\n") == 1


def test_a_stage_that_the_deployment_lacks_has_no_engine(exported: Path) -> None:
    with pytest.raises(BackendError, match="a stage that tiny has"):
        choose_backends(ONNX, DEPLOYMENTS["tiny"], exported, device="cpu")


def test_graphs_of_other_weights_or_of_another_size_are_not_taken(tree: Path) -> None:
    stage = stage_of("discrete_encoder", tree)
    record = stage.record("discrete_encoder")
    wanted = {"video_tokenizer_encoder": "onnxruntime"}
    for changes, message in (
        ({"weights": dict.fromkeys(record.weights, "0" * 64)}, "made of other weights"),
        ({"network": "dv8x16x16"}, "made of the network dv8x16x16, and tiny-video2world has tiny-dv"),
    ):
        replace(record, **changes).write(stage.record_file("discrete_encoder"))
        with pytest.raises(BackendError, match=message):
            choose_backends(wanted, DEPLOYMENT, tree, device="cpu")
        assert "video_tokenizer_encoder" not in choose_backends({}, DEPLOYMENT, tree, device="cpu")
    record.write(stage.record_file("discrete_encoder"))
    with pytest.raises(BackendError, match=r"made of Cosmos-1\.0.*not of predict1.* --release predict1 "):
        choose_backends(wanted, DEPLOYMENT.of(PREDICT1), tree, device="cpu")
    stage.record_file("discrete_encoder").write_text("{}")
    with pytest.raises(BackendError, match="not the record of a graph"):
        choose_backends(wanted, DEPLOYMENT, tree, device="cpu")


def test_by_default_a_cpu_takes_the_graphs_that_are_there_and_faster(
    exported: Path, checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faster = {name for name, spec in STAGES.items() if spec.cpu_backend == "onnxruntime"}
    assert faster
    assert set(choose_backends({}, DEPLOYMENT, exported, device="cpu")) == faster
    assert choose_backends(dict.fromkeys(GRAPHS, "torch"), DEPLOYMENT, exported, device="cpu") == {}
    assert choose_backends({}, DEPLOYMENT, exported, device="cuda") == {}
    assert choose_backends({}, DEPLOYMENT, checkpoints, device="cpu") == {}
    monkeypatch.setattr(backend_choice, "find_spec", lambda _: None)
    assert choose_backends({}, DEPLOYMENT, exported, device="cpu") == {}
    with pytest.raises(BackendError, match=r"pip install 'cosmos-triton\[onnx\]'"):
        choose_backends(parse_backends(["text_encoder=onnxruntime"]), DEPLOYMENT, exported, device="cpu")


def test_run_directory_names_the_engine_and_links_its_graphs(exported: Path, tmp_path: Path) -> None:
    chosen = choose_backends({"video_guardrail": "onnxruntime"}, DEPLOYMENT, exported, device="cuda")
    render(model_repository(), tmp_path, parameters={}, exported=chosen)
    model = tmp_path / "video_guardrail"
    assert read_config(model).parameters["engine"].string_value == "onnxruntime"
    assert (model / "graphs" / "face_detector.onnx").samefile(chosen["video_guardrail"].file("face_detector"))
    assert read_config(tmp_path / "text_encoder").parameters["engine"].string_value == "torch"
    render(model_repository(), tmp_path, parameters={})
    assert chosen["video_guardrail"].holds("face_detector"), "rendering again must spare the graphs"


@pytest.fixture(scope="module")
def server(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PipelineServer]:
    """Every stateless stage in ONNX Runtime; the AR sampler, which is not one of them, speculates."""
    serve = [*SERVE, "--speculation=8", *(f"--engine={stage}={engine}" for stage, engine in ONNX.items())]
    server = PipelineServer(DEPLOYMENT.name, exported, tmp_path_factory.mktemp("engines"), serve=serve).start()
    try:
        yield server
    finally:
        server.close()


@pytest.mark.parametrize("disable_diffusion_decoder", [False, True])
def test_pipeline_makes_the_same_clip_with_every_stateless_stage_in_onnx_runtime(
    server: PipelineServer, video2world: PipelineServer, disable_diffusion_decoder: bool
) -> None:
    for stage in GRAPHS:
        config = json.loads(server.request(f"models/{stage}/config").body)
        assert config["parameters"]["engine"]["string_value"] == "onnxruntime"
    ours, theirs = (
        each.generate(seed=5, disable_diffusion_decoder=disable_diffusion_decoder) for each in (server, video2world)
    )
    assert ours.report["tokens_sha256"] == theirs.report["tokens_sha256"]
    assert ours.report["outcome"] == theirs.report["outcome"] == "generated"
    # One level in a pixel is another choice of the mp4's encoder, seen in the pixels around it.
    assert np.abs(frames_of(ours.video) - frames_of(theirs.video)).mean() < MP4_TOLERANCE


def test_speculation_takes_fewer_steps_to_the_same_tokens(server: PipelineServer, video2world: PipelineServer) -> None:
    before = [server.metric(f"cosmos_ar_{counter}") for counter in ("tokens", "slot_steps")]
    ours, theirs = (each.generate(seed=11, disable_diffusion_decoder=True) for each in (server, video2world))
    assert ours.report["tokens_sha256"] == theirs.report["tokens_sha256"]

    def accepted() -> tuple[float, float]:
        after = [server.metric(f"cosmos_ar_{counter}") for counter in ("tokens", "slot_steps")]
        return after[0] - before[0], after[1] - before[1]

    deadline = time.monotonic() + 5  # the metrics follow the engine 20 times a second
    while accepted()[0] < DRAWN_TOKENS and time.monotonic() < deadline:
        time.sleep(0.05)
    tokens, steps = accepted()
    assert tokens == DRAWN_TOKENS
    assert steps < 0.8 * tokens


def test_each_stage_gives_the_same_tensors_in_onnx_runtime(server: PipelineServer, video2world: PipelineServer) -> None:
    generator = np.random.default_rng(0)
    frames = generator.integers(0, 256, (9, 48, 64, 3), dtype=np.uint8)
    tokens = generator.integers(0, 1000, (1, 5, 10, 16), dtype=np.int32)
    prompt = np.array([[PROMPT.encode()]], dtype=np.object_)
    answers: list[dict[str, np.ndarray]] = []
    for each in (server, video2world):
        stage = each.infer_stage
        context = stage("text_encoder", prompt=prompt)["context"]
        video = stage("diffusion_decoder", tokens=tokens, context=context)["video"]
        answers.append(
            {
                "tokens": stage("video_tokenizer_encoder", frames=frames)["tokens"],
                "context": context,
                "coarse video": stage("video_tokenizer_decoder", tokens=tokens[0])["video"],
                "video": video,
                "guarded video": stage("video_guardrail", video=video[0])["video"],
            }
        )
    ours, theirs = answers
    assert np.array_equal(ours.pop("tokens"), theirs.pop("tokens"))
    assert np.allclose(ours.pop("context"), theirs.pop("context"), atol=1e-4)
    for name, pixels in ours.items():
        assert pixels.std() > 1
        assert np.abs(pixels.astype(int) - theirs[name].astype(int)).max() <= PIXEL_TOLERANCE, name


def frames_of(video: bytes) -> np.ndarray:
    with av.open(io.BytesIO(video)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]).astype(np.int16)
