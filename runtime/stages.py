"""The table of stages: every model of the repository in the order of the pipeline, and what its surroundings must know.

No torch here: the command line, the memory plan and the pipeline's own process read it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from cosmos_triton.runtime import stage_inputs
from cosmos_triton.runtime.backends.graphs import ONNXRUNTIME, TORCH
from cosmos_triton.runtime.deployments import Deployment
from cosmos_triton.runtime.releases import Release

Mode = Literal["resident", "streamed", "offloaded", "cpu"]
# fp8: products in e4m3, of the diffusion network alone, which is asked for by name; with fp8-attention, attention too.
Precision = Literal["fp32", "bf16", "int8", "fp8", "fp8-attention"]
FP8_PRECISIONS: tuple[Precision, ...] = ("fp8", "fp8-attention")


@dataclass(frozen=True, slots=True)
class StageSpec:
    """One stage, named like its folder in `model_repository/`.

    What the pipeline does with it:
        inputs: what it accepts as each of its inputs in a deployment.
        outputs: tensors that it asks for.
        needs_text: whether only deployments with a text encoder have it.
        reports_progress: whether it writes its progress into the job's file while it works.
        is_entry: whether clients call it; the others are called by the entry models.
        is_fatal: whether requests that its process dies with never end unless the server is restarted.
        parameters: settings that its config.pbtxt or `serve` must set, fields of `StageSettings`.

    How its networks run:
        networks: kinds of network that it loads, as in `PRESET_OF`. Blocks of the first can be streamed.
        graphs: its graphs for ONNX Runtime and TensorRT, as in `export/graphs/graph_specs.py`; none where torch is the
            only backend.
        cpu_backend: the default on a CPU where graphs have been exported: the faster one in every round of
            benchmarks/engines.py, on one thread.
        gpu_precision: on a GPU, without quantisation; on a CPU every network runs in fp32.
        precisions: what its first network can have on a GPU when asked for by name.

    What the memory plan may choose, and the numbers that it predicts seconds from:
        runs_on_cpu: whether its networks may run on the CPU beside a GPU: seconds a clip. A guardrail has a time limit.
        batch_sizes: of the server's dynamic batching, the largest first.
        slots: numbers of KV-cache slots, for a stage that batches its requests itself, step by step.
        runs_sampler: whether its first network runs once for each evaluation of the release's sampler, not once.
        weight_passes: how often one run reads the weights, where it takes its input in several pieces.
        generated_tokens: decoding steps a request, of a network with a KV cache inside of the stage.
        context_mib: memory of its process's CUDA context and loaded kernels, idle or not. Measured on an H200 by
            benchmarks/memory.py; the default was not measured.
    """

    name: str
    inputs: Callable[[Deployment], stage_inputs.Inputs] = stage_inputs.none
    outputs: tuple[str, ...] = ()
    needs_text: bool = False
    reports_progress: bool = False
    is_entry: bool = False
    is_fatal: bool = False
    parameters: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    graphs: tuple[str, ...] = ()
    cpu_backend: str = TORCH
    gpu_precision: Precision = "bf16"
    precisions: tuple[Precision, ...] = ()
    runs_on_cpu: bool = False
    batch_sizes: tuple[int, ...] = (1,)
    slots: tuple[int, ...] = ()
    runs_sampler: bool = False
    weight_passes: int = 1
    generated_tokens: int = 0
    context_mib: int = 800

    def evaluations(self, release: Release) -> int:
        """Runs of the first network a request."""
        return release.evaluations if self.runs_sampler else 1

    def is_in(self, deployment: Deployment) -> bool:
        """Whether the deployment has this stage."""
        return deployment.is_video2world or not self.needs_text


STAGES: dict[str, StageSpec] = {
    spec.name: spec
    for spec in (
        StageSpec("media_decoder", inputs=stage_inputs.media_file, outputs=("frames", "info")),
        StageSpec(
            "text_guardrail",
            inputs=stage_inputs.prompt,
            outputs=("verdict",),
            needs_text=True,
            networks=("aegis",),
            generated_tokens=4,  # until the answer is settled
        ),
        StageSpec(
            "text_encoder",
            inputs=stage_inputs.prompts,
            outputs=("context",),
            needs_text=True,
            networks=("t5",),
            graphs=("text_encoder",),
            cpu_backend=ONNXRUNTIME,
            batch_sizes=(stage_inputs.MAX_PROMPTS, 1),
        ),
        StageSpec(
            "video_tokenizer_encoder",
            inputs=stage_inputs.input_frames,
            outputs=("tokens",),
            networks=("discrete_encoder",),
            graphs=("discrete_encoder",),
            cpu_backend=ONNXRUNTIME,
            runs_on_cpu=True,
            context_mib=680,
        ),
        StageSpec(
            "ar_sampler",
            inputs=stage_inputs.clip_start,
            outputs=("tokens",),
            reports_progress=True,
            parameters=("slots", "window", "max_queue_size"),
            networks=("ar",),
            slots=(8, 4, 2, 1),
            context_mib=870,
        ),
        StageSpec(
            "diffusion_decoder",
            inputs=stage_inputs.clip_and_context,
            outputs=("video", "seconds_per_evaluation"),
            reports_progress=True,
            networks=("diffusion", "continuous_decoder"),
            graphs=("denoising_step", "continuous_decoder"),
            precisions=("bf16", *FP8_PRECISIONS),
            runs_sampler=True,
            context_mib=840,
        ),
        StageSpec(
            "video_tokenizer_decoder",
            inputs=stage_inputs.clip_tokens,
            outputs=("video",),
            networks=("discrete_decoder",),
            graphs=("discrete_decoder",),
            cpu_backend=ONNXRUNTIME,
            runs_on_cpu=True,
            context_mib=680,
        ),
        StageSpec(
            "video_guardrail",
            inputs=stage_inputs.video,
            outputs=("video", "verdict"),
            networks=("siglip", "video_safety", "face_detector"),
            graphs=("content_classifier", "face_detector"),
            cpu_backend=ONNXRUNTIME,
            gpu_precision="fp32",  # as released
            weight_passes=5,  # 33 frames, 8 at a time
            context_mib=790,
        ),
        StageSpec("media_encoder", inputs=stage_inputs.video_and_metadata, outputs=("mp4",)),
        # Both answer from a thread, after `execute` has returned: the server waits for an answer that never comes.
        StageSpec("world_generation", is_entry=True, is_fatal=True, parameters=("max_jobs",)),
        StageSpec("world_generation_stream", is_entry=True, is_fatal=True, parameters=("max_jobs",)),
    )
}

# Stages that have a choice of precision, and what they may have.
PRECISIONS = {name: spec.precisions for name, spec in STAGES.items() if spec.precisions}

# Stages that have a choice of backend, and their graphs.
GRAPHS = {name: spec.graphs for name, spec in STAGES.items() if spec.graphs}
