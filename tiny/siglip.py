"""A tiny SigLIP and its safety classifier, in the released layouts. Their weights are set by hand, not trained.

A frame is Violence if about half of it is saturated yellow and half saturated blue; any other frame is Safe:

- The patch embedding projects a patch's mean colour on yellow - blue: 1 for yellow, -1 for blue, 0 for grey.
- The MLP of the only layer splits the projection into its positive and negative part.
- Attention pooling has a constant query, so it averages over patches: the amounts of yellow and blue in the frame.
- The classifier computes the minimum of both. It is 1/2 for the pattern, and below THRESHOLD for ordinary frames.

Two channels are large constants. They dominate the variance, so that layer norms do not depend on the colours, and
they fix the scale of the pooled features after their normalisation.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import SiglipConfig, SiglipModel

from cosmos_triton.networks import siglip
from cosmos_triton.networks.video_safety import PRESETS, VideoSafety
from cosmos_triton.tiny.transformers_folder import write_model

CLASS = "Violence"  # the class of the pattern
THRESHOLD = 0.35  # mean yellow and mean blue of a frame; in the pattern both are 1/2
IMAGE_SIZE, PATCH_SIZE = siglip.PRESETS["tiny"].image_size, siglip.PRESETS["tiny"].patch_size
CELLS = 4  # of the pattern, in either direction

# Channels of the encoder.
COLOUR, MINUS_COLOUR, CONSTANT, MINUS_CONSTANT, YELLOW, BLUE = range(6)
SCALE = 16.0  # value of the constant channels; colours are in [-1, 1]
GAIN = 32.0  # input scale that makes GELU act as ReLU


def unsafe_frame(height: int, width: int) -> NDArray[np.uint8]:
    """The frame that the tiny content filter blocks, [H, W, 3]: CELLS x CELLS yellow and blue cells."""
    rows = np.arange(height) * CELLS // height
    columns = np.arange(width) * CELLS // width
    is_yellow = (rows[:, None] + columns) % 2 == 0
    return np.where(is_yellow[..., None], (255, 255, 0), (0, 0, 255)).astype(np.uint8)


def write_siglip(folder: Path) -> None:
    """Write SigLIP as a Hugging Face folder: the vision tower as above, and a text tower that is not used."""
    width = PRESETS["tiny"].input_dim
    tower = {"hidden_size": width, "intermediate_size": width, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": 64, "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2}
    vision = {"image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE}
    model = SiglipModel(SiglipConfig(text_config=tower | text, vision_config=tower | vision))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        _set_vision(model.vision_model)
    write_model(model, folder)
    processor = {
        "image_processor_type": "SiglipImageProcessor",
        "do_resize": True,
        "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "resample": 3,  # bicubic
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2))


def _set_vision(tower: nn.Module) -> None:
    state = tower.state_dict()  # shares memory with the parameters: written in place
    state["embeddings.patch_embedding.weight"][COLOUR] = _colour_filter()
    state["embeddings.patch_embedding.weight"][MINUS_COLOUR] = -_colour_filter()
    state["embeddings.patch_embedding.bias"][[CONSTANT, MINUS_CONSTANT]] = torch.tensor([SCALE, -SCALE])

    # A layer norm divides by the standard deviation of its input, which the constants determine. This undoes it.
    width = len(state["post_layernorm.weight"])
    deviation = SCALE * (2 / width) ** 0.5
    for norm in ("encoder.layers.0.layer_norm1", "encoder.layers.0.layer_norm2", "post_layernorm", "head.layernorm"):
        state[f"{norm}.weight"].fill_(deviation)

    mlp = "encoder.layers.0.mlp"
    state[f"{mlp}.fc1.weight"][[YELLOW, BLUE], [COLOUR, MINUS_COLOUR]] = GAIN
    state[f"{mlp}.fc2.weight"][[YELLOW, BLUE], [YELLOW, BLUE]] = 1 / GAIN

    pooling = "head.attention"
    state[f"{pooling}.in_proj_weight"][2 * width :] = torch.eye(width)  # values; queries and keys stay zero
    state[f"{pooling}.out_proj.weight"].copy_(torch.eye(width))


def _colour_filter() -> Tensor:
    """Mean of (R + G - 2 B) / 4 over a patch, [3, PATCH_SIZE, PATCH_SIZE]."""
    weights = torch.tensor([1.0, 1.0, -2.0]) / 4 / PATCH_SIZE**2
    return weights[:, None, None].expand(3, PATCH_SIZE, PATCH_SIZE)


def write_classifier(path: Path) -> None:
    """Write safety_filter.pt, the classifier of normalised features."""
    head = VideoSafety(PRESETS["tiny"])
    state = head.state_dict()
    for name, tensor in state.items():
        if tensor.is_floating_point():
            tensor.fill_(1 if name in ("network.layers.1.running_var", "network.layers.4.running_var") else 0)
    for norm in ("network.layers.1", "network.layers.4"):
        state[f"{norm}.weight"].fill_(1)
    # Normalisation divides the features by sqrt(2) * SCALE; the colours change that by less than 1 in 500.
    unit = 2**0.5 * SCALE
    layer = state["network.layers.0.weight"]
    layer[0, YELLOW] = unit  # relu(yellow)
    layer[1, [YELLOW, BLUE]] = torch.tensor([unit, -unit])  # relu(yellow - blue)
    # min(yellow, blue) = yellow - relu(yellow - blue)
    state["network.layers.3.weight"][0, :2] = torch.tensor([100.0, -100.0])
    state["network.layers.3.bias"][0] = -100 * THRESHOLD
    state["network.layers.6.bias"].fill_(-10)
    state["network.layers.6.bias"][0] = 5
    state["network.layers.6.bias"][head.config.classes.index(CLASS)] = 0
    state["network.layers.6.weight"][head.config.classes.index(CLASS), 0] = 2
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": state}, path)
