"""The vision tower of SigLIP, which describes frames to the content classifier: the sizes of its presets.

The network is transformers' `SiglipVisionModel`. Its checkpoint has the configuration beside the weights; the presets
are for what needs the sizes without a checkpoint.
"""

from __future__ import annotations

from transformers import SiglipVisionConfig

from cosmos_triton.networks import video_safety

PRESETS: dict[str, SiglipVisionConfig] = {
    "siglip-so400m": SiglipVisionConfig(
        hidden_size=video_safety.PRESETS["siglip-so400m"].input_dim,
        intermediate_size=4304,
        num_hidden_layers=27,
        num_attention_heads=16,
        image_size=384,
        patch_size=14,
    ),
    "tiny": SiglipVisionConfig(
        hidden_size=video_safety.PRESETS["tiny"].input_dim,
        intermediate_size=video_safety.PRESETS["tiny"].input_dim,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=64,
        patch_size=4,
    ),
}
