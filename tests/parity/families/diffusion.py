"""The diffusion decoder: network, sampler, windows, and tokens to video."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor

from cosmos_triton.networks.diffusion_transformer import (
    BASE_FPS,
    DiffusionConfig,
    DiffusionTransformer,
    rope_angles,
    timestep_embedding,
)
from cosmos_triton.networks.tokenizer import ContinuousDecoder
from cosmos_triton.runtime.diffusion.decoder import DiffusionDecoder
from cosmos_triton.runtime.diffusion.sampler import (
    SIGMA_DATA,
    EulerSampler,
    GuidedOutputs,
    MultistepSampler,
    denoise,
    euler_step,
    scalings,
    unconditional,
)
from cosmos_triton.runtime.diffusion.windows import OVERLAP, join_windows, split_windows
from cosmos_triton.runtime.releases import COSMOS_1_0
from cosmos_triton.runtime.video_tokenizer import LatentStatistics
from parity.case import Case, assert_close
from parity.families import tokenizers

NETWORK = 5e-5
UNUSED_KEYS = ("logvar.", "net.pos_embedder.seq")


def config_from_reference(net: dict[str, Any]) -> DiffusionConfig:
    assert net["mlp_ratio"] == 4
    assert net["patch_spatial"] == 2
    assert net["patch_temporal"] == 1
    assert net["use_adaln_lora"]
    assert net["affline_emb_norm"]
    assert net["concat_padding_mask"]
    return DiffusionConfig(
        dim=net["model_channels"],
        n_blocks=net["num_blocks"],
        n_heads=net["num_heads"],
        context_dim=net["crossattn_emb_channels"],
        modulation_rank=net["adaln_lora_dim"],
        latent_channels=net["in_channels"],
        token_vocab_size=net["diffusion_decoder_token_condition_voc_size"],
        token_dim=net["diffusion_decoder_token_condition_dim"],
        rope_stretch=tuple(float(net[f"rope_{axis}_extrapolation_ratio"]) for axis in "thw"),  # type: ignore[arg-type]
    )


def load_network(config: DiffusionConfig, weights: dict[str, Tensor]) -> DiffusionTransformer:
    network = DiffusionTransformer(config).eval()
    used = {key: tensor for key, tensor in weights.items() if not key.startswith(UNUSED_KEYS)}
    network.load_state_dict({key.removeprefix("net."): tensor for key, tensor in used.items()}, strict=True)
    return network


def check_network(case: Case) -> None:
    config = config_from_reference(case.config["net"])
    network = load_network(config, case.weights())
    x, tokens, context = case["x"], case["tokens"][:, 0], case["t5_text_embeddings"]
    fps = case["fps"].item()
    grid = (tokens.shape[1], tokens.shape[2], tokens.shape[3])
    assert not case["padding_mask"].any()
    case.ignore("rope_emb_bf16_buffers")

    empty_tokens, empty_context = unconditional(tokens, context)
    for branch, (branch_tokens, branch_context) in {
        "cond": (tokens, context),
        "uncond": (empty_tokens, empty_context),
    }.items():
        case.expect_equal(f"{branch}_latent_condition", branch_tokens.int()[:, None])
        case.expect_equal(f"{branch}_crossattn_emb", branch_context)
        case.expect_equal(f"{branch}_crossattn_mask", torch.ones(branch_context.shape[:2]))
        case.expect_equal(f"{branch}_padding_mask", case["padding_mask"])
        for same in ("fps", "image_size", "num_frames"):
            case.expect_equal(f"{branch}_{same}", case[same])
        for i, sigma in enumerate(case["sigmas"].tolist()):
            clean = denoise(partial(network, fps=fps), x, sigma, branch_tokens, branch_context)
            case.expect_close(f"x0_{branch}_{i}", clean, relative=NETWORK)
            _, _, c_in, c_noise = scalings(case["sigmas"][i])
            out = network(c_in * x, branch_tokens, branch_context, c_noise[None], fps=fps)
            case.expect_close(f"net_out_{branch}_{i}", out, relative=NETWORK)
    for i, sigma in enumerate(case["sigmas"]):
        case.expect_close(f"scaling_{i}", torch.stack(scalings(sigma)), relative=1e-6)

    angles = rope_angles(config, grid, fps)
    case.expect_close("rope_emb", angles[:, None, None], relative=1e-6)
    _, _, c_in, c_noise = scalings(case["sigmas"][1])
    other_fps = network(c_in * x, tokens, context, c_noise[None], fps=12)
    case.expect_close("net_out_cond_1_fps12", other_fps, relative=NETWORK)

    case.expect_close("timestep_sinusoid", timestep_embedding(c_noise[None], config.dim), relative=1e-5)
    conditioning = network.condition(c_noise[None], context, grid, fps=fps)
    case.expect_close("affline_emb", conditioning.timestep, relative=1e-5)
    case.expect_close("adaln_lora", conditioning.modulation, relative=1e-5)
    hidden = network.embed(c_in * x, tokens)
    case.expect_close("embedded_x_THWBD", in_reference_order(hidden, grid), relative=1e-5)
    for i, block in enumerate(network.blocks.values()):
        hidden = block(hidden, conditioning)
        case.expect_close(f"after_block_{i}_THWBD", in_reference_order(hidden, grid), relative=NETWORK)


def in_reference_order(hidden: Tensor, grid: tuple[int, int, int]) -> Tensor:
    return rearrange(hidden, "b (t h w) d -> t h w b d", t=grid[0], h=grid[1], w=grid[2])


def check_rope_full_size(case: Case) -> None:
    reference = case.config
    heads = 2
    config = DiffusionConfig(
        dim=heads * reference["head_dim"],
        n_blocks=0,
        n_heads=heads,
        context_dim=1,
        modulation_rank=1,
        latent_channels=1,
        token_vocab_size=1,
        token_dim=1,
        rope_stretch=tuple(float(reference[f"rope_{axis}_extrapolation_ratio"]) for axis in "thw"),  # type: ignore[arg-type]
    )
    grid, positions = tuple(reference["grid_THW"]), case["positions"]
    case.ignore("angles_bf16_buffers")
    angles = rope_angles(config, grid, reference["fps"])
    case.expect_close("angles_fp32", angles[positions], relative=1e-6)
    angles = rope_angles(config, grid, 12)
    case.expect_close("fps12_angles_fp32", angles[positions[::4]], relative=1e-6)


def check_sampling(case: Case) -> None:
    reference = case.config
    network = load_network(config_from_reference(reference["net"]), case.weights(file=reference["weights_from"]))
    case.ignore("image_size", "num_frames", "padding_mask")  # which the network does not read
    if "scaling_sigmas" in case:
        scaled = torch.stack(scalings(case["scaling_sigmas"]), dim=-1)
        case.expect_close("scaling_cskip_cout_cin_cnoise", scaled, relative=1e-6)
    for steps in case.suffixes("bf16_pipeline_sigma_cskip_cout_cin_cnoise_steps"):
        name = f"bf16_pipeline_sigma_cskip_cout_cin_cnoise_steps{steps}"
        sigma = case[name][:, 0]
        case.expect_equal(name, torch.stack([sigma, *scalings(sigma)], dim=-1))
    if "reference_cpu_noise_seed1" in case:
        shape = tuple(case["reference_cpu_noise_seed1"].shape)
        noise = MultistepSampler(sigma_max=reference["sigma_max"]).initial_noise(shape, seeded(COSMOS_1_0.noise_seed))
        case.expect_equal("reference_cpu_noise_seed1", noise)
    for steps in reference["num_steps"]:
        for guidance in reference["guidance"]:
            sampler = MultistepSampler(
                steps=steps,
                guidance=guidance,
                sigma_max=reference["sigma_max"],
                sigma_min=reference["sigma_min"],
                rho=reference["rho"],
            )
            sigmas = torch.tensor(sampler.sigmas, dtype=torch.float64)
            case.expect_close(f"sigmas_steps{steps}", sigmas, relative=1e-12)
            latents = sampler.sample(
                partial(network, fps=case["fps"].item()),
                case["x_sigma_max"],
                case["tokens"][:, 0],
                case["t5_text_embeddings"],
            )
            case.expect_close(f"final_latents_steps{steps}_guidance{guidance}", latents, relative=1e-4)


class ToyNetwork:
    """The network of the Euler cases, in `dtype`. It notes its inputs and what guidance makes of its outputs."""

    def __init__(self, dtype: torch.dtype, guidance: float) -> None:
        self.dtype, self.guidance = dtype, guidance
        self.inputs: list[Tensor] = []
        self.timesteps: list[Tensor] = []
        self.guided_outputs: list[Tensor] = []

    def guided(self, tokens: Tensor, context: Tensor) -> GuidedOutputs:
        return self._outputs

    def _outputs(self, x: Tensor, c_noise: Tensor) -> Tensor:
        t = c_noise.to(self.dtype).float()
        rolled = x.float().roll(1, dims=-1)
        conditional = (0.3 * x.float() * t.cos() + 0.1 * rolled).to(self.dtype)
        unconditioned = (0.2 * x.float() * t.cos() - 0.05 * rolled).to(self.dtype)
        self.inputs.append(x)
        self.timesteps.append(t[0])
        self.guided_outputs.append(conditional + self.guidance * (conditional - unconditioned))
        return torch.cat([conditional, unconditioned])


def check_sampling_euler(case: Case) -> None:
    """fp32 to rounding. In bf16 the reference rounds guided outputs and estimates too: 1 % off its own fp32."""
    reference, schedule = case.config, case.config["scheduler"]
    assert (schedule["sigma_schedule"], schedule["s_churn"], schedule["sigma_data"]) == ("karras", 0, SIGMA_DATA)
    case.ignore("n*_formula_*", "seed*_window*")
    noise, nothing = case["noise"], torch.zeros(0)
    for steps in reference["num_steps"]:
        sampler = EulerSampler(
            steps=steps,
            guidance=reference["guidance"],
            sigma_max=schedule["sigma_max"],
            sigma_min=schedule["sigma_min"],
            rho=schedule["rho"],
        )
        assert sampler.noise_scale == pytest.approx(schedule["init_noise_sigma"], rel=1e-12)
        sigmas = torch.tensor(sampler.sigmas, dtype=torch.float64)
        case.expect_close(f"n{steps}_sigmas", sigmas, relative=1e-6)
        case.expect_close(f"n{steps}_timesteps", scalings(sigmas[:-1])[3], relative=1e-6)
        for name, dtype, relative in (("fp32", torch.float32, 1e-4), ("bf16", torch.bfloat16, 2e-2)):
            run, network = f"n{steps}_{name}", ToyNetwork(dtype, sampler.guidance)
            start = noise * sampler.noise_scale
            # The network itself is a GuidedDenoiser: no tokens and no context are looked at.
            result = sampler.sample(network, start, nothing, nothing.to(dtype))  # type: ignore[arg-type]
            case.expect_close(f"{run}_scaled_input", torch.stack(network.inputs), relative=relative)
            case.expect_close(f"{run}_net_timestep", torch.stack(network.timesteps), relative=1e-6)
            case.expect_close(f"{run}_guided_output", torch.stack(network.guided_outputs), relative=relative)
            estimates = list(sampler.estimates(network.guided(nothing, nothing), start, dtype))
            case.expect_close(f"{run}_x0", torch.stack(estimates), relative=relative)
            states = [start.to(dtype)]
            for i, clean in enumerate(estimates):
                states.append(euler_step(states[-1], sampler.sigmas[i], sampler.sigmas[i + 1], clean))
            case.expect_close(f"{run}_x", torch.stack(states), relative=relative)
            assert torch.equal(result, estimates[-1])
            if f"{run}_x" in case:
                assert_close(f"{run}: result", result.to(dtype), case[f"{run}_x"][-1], relative=relative)


def seeded(seed: int | None) -> torch.Generator:
    assert seed is not None
    return torch.Generator().manual_seed(seed)


def check_end_to_end(case: Case) -> None:
    reference = case.config
    network = load_network(config_from_reference(reference["net"]), case.weights(file=reference["dit_weights_from"]))
    chunk_frames = reference["dd_train_num_video_frames"]
    tokenizer = tokenizers.config_from_reference(reference["cv_tokenizer"], chunk_frames=chunk_frames)
    decoder = ContinuousDecoder(tokenizer)
    tokenizers.load_half(decoder, case.weights("cv_tokenizer."))
    assert (reference["overlap"], reference["fps"], reference["sigma_data"]) == (OVERLAP, BASE_FPS, SIGMA_DATA)
    sampler = MultistepSampler(
        steps=reference["num_steps"],
        guidance=reference["guidance"],
        sigma_max=reference["sigma_max"],
        sigma_min=reference["sigma_min"],
    )
    statistics = LatentStatistics.from_vectors(case["mean_std_mean"], case["mean_std_std"], tokenizer)
    tokens, context, noise = case["indices"][None], case["t5_text_embeddings"], case["x_sigma_max"]
    windows = split_windows(tokens)
    for i, window in enumerate(windows):
        case.expect_equal(f"window{i}_tokens", window[:, None])
        if f"window{i}_latents" in case:
            latents = sampler.sample(network, noise, window, context)
            case.expect_close(f"window{i}_latents", latents, relative=1e-4)
    with pytest.MonkeyPatch.context() as patch:  # the reference's noise for this case, which is not the one of seed 1
        patch.setattr(MultistepSampler, "initial_noise", lambda self, shape, generator: noise.view(shape))
        decode = DiffusionDecoder(network, decoder, statistics, sampler, COSMOS_1_0.noise_seed).decode
        video = decode(tokens, context, frames=reference["num_frames_out"])
    case.expect_close("video", video[0], relative=1e-4)


def check_windows(case: Case) -> None:
    reference = case.config
    for token_case in reference["token_cases"]:
        tokens = case[f"tokens_T{token_case['T']}"][:, 0]
        if "reference_raises" in token_case:
            try:
                split_windows(tokens)
            except ValueError:
                continue
            raise AssertionError(f"{token_case}: split_windows accepts what the reference refuses")
        windows = split_windows(tokens)
        assert len(windows) == token_case["num_chunks"]
        for i, window in enumerate(windows):
            case.expect_equal(f"tokens_T{token_case['T']}_chunk{i}", window[:, None])
    for blend in reference["blend_cases"]:
        name = f"blend{blend['index']}"
        joined = join_windows([case[f"{name}_input{i}"] for i in range(blend["n"])], overlap=blend["D"])
        case.expect_close(f"{name}_output", joined, relative=1e-6)


FAMILIES: dict[str, Callable[[Case], None]] = {
    "dit": check_network,
    "dit_rope_full_size": check_rope_full_size,
    "diffusion_sampling": check_sampling,
    "diffusion_sampling_euler": check_sampling_euler,
    "diffusion_decoder_windows": check_windows,
    "diffusion_decoder_end_to_end": check_end_to_end,
}
