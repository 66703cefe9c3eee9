"""Decoding on a fixed number of slots: the device-side half of the autoregressive engine.

Every step has the same shape, [slots, window], so a slot's numbers do not depend on its neighbours. Idle slots are
computed too, and their results are discarded.

Speculative decoding is Jacobi decoding (arXiv 2305.10427) with fixed noise. A step feeds each slot its last token
followed by `window - 1` drafts, and draws the next token at each position. The first draw is exact. Each further draw
is exact if all drafts before it equal the tokens drawn in their place. So a step accepts 1 to `window` tokens, the same
ones that plain decoding gives. Draws that were not accepted are the drafts of the next step; a position without a draft
starts with the token at the same place of the previous latent frame. A window of 1 is plain decoding.

Legend: S slots, W window, P positions, V vocabulary, E context length, X context width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cosmos_triton.networks.ar_transformer import NATIVE_KERNELS, ARKernels, ARTransformer
from cosmos_triton.networks.kv_cache import KVCache
from cosmos_triton.runtime.ar.sampling import draw, noise_key, token_keys

PREFILL_CHUNK = 1024  # tokens
KV_LEN_MULTIPLE = 256  # kv_len is rounded up to a multiple: few shapes, and little of the cache read in excess


@dataclass(frozen=True, slots=True)
class ARRequest:
    """Prompt and sampling parameters of one clip.

    Args:
        prompt_tokens: [N] int64 video tokens of the input frames, without the begin-of-video token.
        seed: any int64.
        temperature: 0 is greedy decoding.
        context: [E, X] text embedding, for video2world models.
    """

    prompt_tokens: Tensor
    seed: int = 0
    temperature: float = 1.0
    top_p: float = 0.8
    context: Tensor | None = None


class Decoder:
    """A KV cache of `slots` sequences and the step that advances them all. Not thread-safe: one thread owns it.

    Call it within `torch.inference_mode()`, entered once, not for each step.

    Args:
        window: tokens that a step verifies per slot; 1 is plain decoding.
        kernels: what the network's forward runs on.
        draw: signature of `sampling.draw`.
    """

    def __init__(
        self,
        network: ARTransformer,
        slots: int,
        *,
        window: int = 1,
        kernels: ARKernels = NATIVE_KERNELS,
        draw: Callable[..., Tensor] = draw,
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.config = config = network.config
        self.slots = slots
        self.window = window
        self.kernels = kernels
        self.draw = draw
        weight = network.norm.weight  # has the dtype of activations, whatever the dtype of the linear layers
        self.device = weight.device
        self.cache = KVCache.allocate(config, slots, window=window, device=weight.device, dtype=weight.dtype)

        def per_slot(dtype: torch.dtype, *shape: int) -> Tensor:
            return torch.zeros(slots, *shape, dtype=dtype, device=weight.device)

        # Token ids by position: final ones, then drafts. Has room for a window and its drafts past the end of the clip.
        self.token_ids = per_slot(torch.int64, config.max_seq_len + 2 * window)
        self.num_tokens = per_slot(torch.int64) + 1  # final tokens; 1 in an idle slot
        self.target_len = per_slot(torch.int64)  # tokens of the finished sequence; 0 in an idle slot
        self.noise_keys = per_slot(torch.int64)
        self.token_keys = token_keys(config.vocab_size, weight.device)  # [V]
        self.temperature = per_slot(torch.float32, 1, 1)
        self.top_p = per_slot(torch.float32, 1, 1)

    def load(self) -> None:
        """Allocate what `offload` freed. The weights must be on the device."""
        self.cache.allocate_memory()

    def offload(self) -> None:
        """Free the device memory that is not needed between two clips."""
        self.cache.free_memory()

    def warm_up(self) -> None:
        """A prefill as long as that of an input clip, and a step."""
        config = self.config
        context = torch.zeros(config.context_length, config.context_dim) if config.context_dim else None
        tokens = torch.zeros(2 * config.frame_tokens, dtype=torch.int64)
        with torch.inference_mode():
            for _ in self.prefill(0, ARRequest(tokens, context=context)):
                pass
            self.step()
            self.release(0)

    @property
    def clip_length(self) -> int:
        """Tokens of a finished slot, the begin-of-video token included."""
        return self.config.leading_tokens + self.config.clip_tokens

    def prefill(self, slot: int, request: ARRequest) -> Iterator[None]:
        """Chunked prefill of a free slot: yields after each chunk. Once exhausted, the slot takes part in `step`.

        Chunk sizes do not depend on the load, so the numbers do not either. The last prompt token is left to the first
        step, which draws from its logits; a prefill computes none.

        Raises:
            ValueError: as `validate`.
        """
        self.validate(request)
        bov = torch.full((self.config.leading_tokens,), self.config.bov_token)
        tokens = torch.cat([bov, request.prompt_tokens.cpu()]).to(self.device)
        self.release(slot)
        cache = self.cache.slot(slot)
        if request.context is not None:
            self.network.write_context(request.context.to(self.device, self.cache.k.dtype)[None], cache)
        for start in range(0, len(tokens) - 1, PREFILL_CHUNK):
            chunk = tokens[start : min(start + PREFILL_CHUNK, len(tokens) - 1)]
            starts = torch.full((1,), start, device=self.device)
            kv_len = start + len(chunk)
            self.network.hidden_states(chunk[None], starts, cache, kv_len=kv_len, kernels=self.kernels)
            # Steps between the chunks write position `num_tokens - 1` of this slot: keep it behind the filled part.
            self.num_tokens[slot] = kv_len + 1
            yield
        self.token_ids[slot, : len(tokens)] = tokens
        self._draft_from_previous_frame(slot, len(tokens))
        self.noise_keys[slot] = noise_key(request.seed)
        is_greedy = request.temperature == 0  # the nucleus of top_p 0 is the most likely token
        self.temperature[slot], self.top_p[slot] = (1.0, 0.0) if is_greedy else (request.temperature, request.top_p)
        self.num_tokens[slot], self.target_len[slot] = len(tokens), self.clip_length

    def validate(self, request: ARRequest) -> None:
        """Raises ValueError if the prompt is empty or fills the clip, or the context has not the model's shape."""
        config, count = self.config, len(request.prompt_tokens)
        if not 0 < count < config.clip_tokens:
            raise ValueError(f"prompt has {count} tokens, accepted: 1 to {config.clip_tokens - 1}")
        shape = None if request.context is None else tuple(request.context.shape)
        expected = (config.context_length, config.context_dim) if config.is_video2world else None
        if shape != expected:
            raise ValueError(f"context has shape {shape}, accepted: {expected}")

    def _draft_from_previous_frame(self, slot: int, start: int) -> None:
        positions = torch.arange(start, start + self.window, device=self.device)
        self.token_ids[slot, positions] = self.token_ids[slot, (positions - self.config.frame_tokens).clamp(min=0)]

    def release(self, slot: int) -> None:
        """Make a slot idle; its tokens and keys stay until the next prefill."""
        self.target_len[slot] = 0
        self.num_tokens[slot] = 1

    def tokens(self, slot: int) -> Tensor:
        """Tokens of a finished slot as a grid [T, h, w], on the CPU."""
        tokens = self.token_ids[slot, self.config.leading_tokens : self.clip_length].to("cpu", copy=True)
        return tokens.view(self.config.latent_shape)

    def step(self, *, kv_len: int | None = None) -> None:
        """Advance every active slot by 1 to `window` tokens.

        Args:
            kv_len: cache positions to read, at least max(num_tokens) - 1 + window; the whole cache by default.
        """
        window, starts = self.window, self.num_tokens - 1
        positions = starts[:, None] + torch.arange(window, device=self.device)  # [S, W]
        inputs = self.token_ids.gather(1, positions)
        kv_len = kv_len or self.cache.max_kv_len
        logits = self.network(inputs, starts, self.cache, kv_len=kv_len, kernels=self.kernels)  # [S, W, V]
        noise = (self.noise_keys, positions + 1, self.token_keys)
        drawn = self.draw(logits, *noise, temperature=self.temperature, top_p=self.top_p)  # [S, W]
        self.token_ids.scatter_(1, positions + 1, drawn)
        accepted: Tensor | int = 1
        if window > 1:
            accepted = (inputs[:, 1:] == drawn[:, :-1]).cumprod(dim=1).sum(dim=1) + 1
            undrafted = positions[:, 1:] + window
            previous_frame = (undrafted - self.config.frame_tokens).clamp(min=0)
            self.token_ids.scatter_(1, undrafted, self.token_ids.gather(1, previous_frame))
        self.num_tokens += (self.target_len - self.num_tokens).clamp(min=0).clamp(max=accepted)

    def read_num_tokens(self) -> list[int]:
        """Final tokens of each slot, on the host."""
        return self.num_tokens.tolist()

    def kv_len_for(self, num_tokens: int) -> int:
        """`kv_len` of a step whose longest active slot has `num_tokens`."""
        kv_len = -(-(num_tokens - 1 + self.window) // KV_LEN_MULTIPLE) * KV_LEN_MULTIPLE
        return min(kv_len, self.cache.max_kv_len)
