"""What each network takes: the numbers that the plan of GPU memory is made from.

The table is printed by `python -m cosmos_triton.planning.footprint_count`, which runs every network on shapes alone. A
test holds it to that and to the released files. It stands here in numbers so that a plan needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from cosmos_triton.runtime.deployments import Deployment


@dataclass(frozen=True, slots=True)
class Network:
    """Bytes of one network in the precision that it has on a GPU, and the work of one run.

    weights: parameters and tables.
    block: the largest of the `blocks` that can be streamed.
    activations: alive at once in one run, beside the weights: for one clip or prompt (33 frames in the guardrails).
    flops: of that run.
    kv_slot: of the KV cache, for one clip of `clip_tokens`.
    weights_8bit, block_8bit, activations_8bit: with 8-bit weights, for networks that have this form. A product of many
        rows brings one matrix at a time back to bf16.
    """

    weights: int
    activations: int
    flops: float
    block: int = 0
    blocks: int = 0
    kv_slot: int = 0
    clip_tokens: int = 0
    weights_8bit: int = 0
    block_8bit: int = 0
    activations_8bit: int = 0


NETWORKS: dict[str, Network] = {
    "ar 4b": Network(
        weights=8034729984,
        activations=177324096,
        flops=8532074168320,
        block=436224512,
        blocks=16,
        kv_slot=838860800,
        clip_tokens=12800,
        weights_8bit=4284429312,
        block_8bit=218206720,
        activations_8bit=273793088,
    ),
    "discrete_encoder dv8x16x16": Network(weights=91074316, activations=646184960, flops=1628174745600),
    "discrete_decoder dv8x16x16": Network(weights=130722272, activations=1594449920, flops=9645229178880),
    "diffusion 7b-decoder": Network(
        weights=14474514432,
        activations=3402350632,
        flops=933780462239744,
        block=511706112,
        blocks=28,
        weights_8bit=7315732480,
        block_8bit=256035328,
        activations_8bit=3402350632,
    ),
    "continuous_decoder cv8x8x8": Network(weights=125477664, activations=2613577216, flops=21276571729920),
    "siglip siglip-so400m": Network(
        weights=1712908232, activations=387339264, flops=22121432847360, block=60958016, blocks=27
    ),
    "video_safety siglip-so400m": Network(weights=2906156, activations=110592, flops=11563008),
    "face_detector resnet50": Network(weights=109406920, activations=1637746688, flops=4674347335680),
    "ar 12b": Network(
        weights=23128504320,
        activations=183615552,
        flops=25800658124800,
        block=545280512,
        blocks=40,
        kv_slot=2097152000,
        clip_tokens=12800,
        weights_8bit=11899366400,
        block_8bit=272740864,
        activations_8bit=311541824,
    ),
    "ar 5b-video2world": Network(
        weights=9281658880,
        activations=185713216,
        flops=9770249486336,
        block=507536384,
        blocks=16,
        kv_slot=876609536,
        clip_tokens=12800,
        weights_8bit=4961260544,
        block_8bit=253887488,
        activations_8bit=282182208,
    ),
    "text_encoder t5-11b": Network(
        weights=9729583104, activations=205524992, flops=5360119185408, block=402665472, blocks=24
    ),
    "aegis llamaguard-7b": Network(
        weights=13476831488, activations=2492033472, flops=60128336281600, block=404766720, blocks=32
    ),
    "ar 13b-video2world": Network(
        weights=26784565248,
        activations=194101824,
        flops=29583962275840,
        block=633371648,
        blocks=40,
        kv_slot=2191523840,
        clip_tokens=12800,
        weights_8bit=13794720768,
        block_8bit=316814336,
        activations_8bit=322028096,
    ),
    "ar tiny": Network(
        weights=457472,
        activations=636800,
        flops=100316160,
        block=74048,
        blocks=2,
        kv_slot=212992,
        clip_tokens=800,
        weights_8bit=323792,
        block_8bit=38208,
        activations_8bit=636800,
    ),
    "discrete_encoder tiny-dv": Network(weights=396488, activations=25804800, flops=599941120),
    "discrete_decoder tiny-dv": Network(weights=798208, activations=58280320, flops=8632852480),
    "diffusion tiny": Network(
        weights=343552,
        activations=5498664,
        flops=3006650368,
        block=135296,
        blocks=2,
        weights_8bit=214112,
        block_8bit=70576,
        activations_8bit=5498664,
    ),
    "continuous_decoder tiny-cv": Network(weights=777984, activations=97895936, flops=15697182720),
    "siglip tiny": Network(weights=92928, activations=9953280, flops=442540032, block=25856, blocks=1),
    "video_safety tiny": Network(weights=3308, activations=3200, flops=11136),
    "face_detector tiny": Network(weights=775816, activations=19783936, flops=3103964160),
    "ar tiny-video2world": Network(
        weights=608384,
        activations=677760,
        flops=194982912,
        block=94720,
        blocks=2,
        kv_slot=344064,
        clip_tokens=800,
        weights_8bit=454992,
        block_8bit=49024,
        activations_8bit=677760,
    ),
    "text_encoder tiny": Network(weights=66112, activations=13053952, flops=83886080, block=16768, blocks=2),
    "aegis tiny": Network(weights=106848, activations=3900096, flops=4251521024, block=20608, blocks=2),
}


def key_of(deployment: Deployment, kind: str) -> str:
    """Where the table has the network that is a deployment's `kind`."""
    presets = {
        "ar": deployment.ar_preset,
        "discrete_encoder": deployment.discrete_tokenizer,
        "discrete_decoder": deployment.discrete_tokenizer,
        "diffusion": deployment.diffusion_decoder,
        "continuous_decoder": deployment.continuous_tokenizer,
        "siglip": deployment.video_safety,
        "video_safety": deployment.video_safety,
        "face_detector": deployment.face_detector,
        "text_encoder": deployment.text_encoder,
        "aegis": "tiny" if deployment.is_tiny else "llamaguard-7b",
    }
    return f"{kind} {presets[kind]}"
