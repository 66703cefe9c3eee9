"""Decoding on fixed slots: the device-side half of the autoregressive engine.

Every step runs the same shapes, [slots, window], whoever is there: what a slot computes does not depend on its
neighbours. An idle slot computes too, and its result is dropped.

One step feeds each slot its last known token and, behind it, drafts of the next ones. The logits say what plain
decoding would draw at each position *if* the tokens before it are right. The first draw is always right; each further
one is when the draft before it equals what was drawn. So a step accepts between 1 and `window` tokens, the same tokens
that steps of one would give. The draws past the accepted ones are the next step's drafts (Jacobi iteration, arXiv
2305.10427), drawn with the same noise at a position each time; positions never tried start as the token at the same
place of the previous latent frame. A window of 1 is plain decoding.

Legend: S slots, W window, P positions, V vocabulary, E context length, X context width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cosmos_triton.networks.ar_transformer import ARTransformer
from cosmos_triton.networks.kv_cache import KVCache
from cosmos_triton.runtime.ar.sampling import draw, noise_key, token_keys

PREFILL_CHUNK = 1024
LENGTH_STEP = 256  # cache rows are read in multiples of this: few shapes, and little read in vain


@dataclass(frozen=True, slots=True)
class Prompt:
    """What one clip is generated from.

    Args:
        tokens: [N] int64 video tokens of the input frames, without the begin-of-video token.
        context: [E, X] text embedding, for video2world models.
        seed: any int64.
    """

    tokens: Tensor
    seed: int = 0
    temperature: float = 1.0
    top_p: float = 0.8
    context: Tensor | None = None


class Decoder:
    """Slots of one KV cache and the step that advances them all. Not thread-safe: one thread owns it.

    Call it within `torch.inference_mode()`, entered once, not for each step.

    Args:
        windows: lengths that `step` will be called with.
    """

    def __init__(self, network: ARTransformer, slots: int, *, windows: tuple[int, ...] = (1,)) -> None:
        self.network = network.eval().requires_grad_(False)
        self.config = config = network.config
        self.slots = slots
        self.windows = windows
        self.max_window = max_window = max(windows)
        weight = network.norm.weight  # of the activations' dtype, whatever the products are stored in
        self.device = weight.device
        self.draw = draw
        self.cache = KVCache.allocate(config, slots, window=max_window, device=weight.device, dtype=weight.dtype)

        def per_slot(dtype: torch.dtype, *shape: int) -> Tensor:
            return torch.zeros(slots, *shape, dtype=dtype, device=weight.device)

        # Tokens by position; from `known` on they are drafts. Wide enough for a window, and its drafts, past the end.
        self.history = per_slot(torch.int64, config.positions + 2 * max_window)
        self.known = per_slot(torch.int64) + 1  # tokens that are right; 1 in an idle slot
        self.goal = per_slot(torch.int64)  # tokens to reach; 0 in an idle slot
        self.noise_keys = per_slot(torch.int64)
        self.token_keys = token_keys(config.vocab_size, weight.device)  # [V]
        self.temperature = per_slot(torch.float32, 1, 1)
        self.top_p = per_slot(torch.float32, 1, 1)

    def bring_in(self) -> None:
        """Get ready to work, the network's weights being there."""
        self.cache.allocate_memory()

    def send_away(self) -> None:
        """Let go of the memory that nothing needs between two clips."""
        self.cache.free_memory()

    @property
    def clip_length(self) -> int:
        """Tokens of a finished slot, the begin-of-video token included."""
        return self.config.leading_tokens + self.config.clip_tokens

    def prefill(self, slot: int, prompt: Prompt) -> Iterator[None]:
        """Fill a free slot, a chunk of the prompt at a time; after the last the slot takes part in `step`.

        Chunks are the same whatever else is running, so the numbers are too. The prompt's last token is left to the
        first step, which draws from it: a prefill computes no logits.

        Raises:
            ValueError: as `check`.
        """
        self.check(prompt)
        bov = torch.full((self.config.leading_tokens,), self.config.bov_token)
        tokens = torch.cat([bov, prompt.tokens.cpu()]).to(self.device)
        self.release(slot)
        cache = self.cache.slot(slot)
        if prompt.context is not None:
            self.network.read_context(prompt.context.to(self.device, self.cache.k.dtype)[None], cache)
        for start in range(0, len(tokens) - 1, PREFILL_CHUNK):
            chunk = tokens[start : min(start + PREFILL_CHUNK, len(tokens) - 1)]
            starts = torch.full((1,), start, device=self.device)
            self.network.advance(chunk[None], starts, cache, length=start + len(chunk))
            # Steps taken meanwhile write this slot's row `known - 1` too: keep that behind what is filled.
            self.known[slot] = start + len(chunk) + 1
            yield
        self.history[slot, : len(tokens)] = tokens
        self._draft_from_previous_frame(slot, len(tokens))
        self.noise_keys[slot] = noise_key(prompt.seed)
        greedy = prompt.temperature == 0  # the nucleus of top_p 0 is the most likely token
        self.temperature[slot], self.top_p[slot] = (1.0, 0.0) if greedy else (prompt.temperature, prompt.top_p)
        self.known[slot], self.goal[slot] = len(tokens), self.clip_length

    def check(self, prompt: Prompt) -> None:
        """Raises ValueError when the prompt is empty, fills the clip, or has a context where the model takes none."""
        config = self.config
        if not 0 < len(prompt.tokens) < config.clip_tokens:
            raise ValueError(f"prompt has {len(prompt.tokens)} tokens, accepted: 1 to {config.clip_tokens - 1}")
        shape = None if prompt.context is None else tuple(prompt.context.shape)
        wanted = (config.context_length, config.context_dim) if config.is_video2world else None
        if shape != wanted:
            raise ValueError(f"context has shape {shape}, accepted: {wanted}")

    def _draft_from_previous_frame(self, slot: int, known: int) -> None:
        ahead = torch.arange(known, known + self.max_window, device=self.device)
        self.history[slot, ahead] = self.history[slot, (ahead - self.config.frame_tokens).clamp(min=0)]

    def release(self, slot: int) -> None:
        """Make a slot idle; its tokens and keys stay until the next prefill."""
        self.goal[slot] = 0
        self.known[slot] = 1

    def tokens(self, slot: int) -> Tensor:
        """Tokens of a finished slot as a grid [T, h, w], on the CPU."""
        tokens = self.history[slot, self.config.leading_tokens : self.clip_length].to("cpu", copy=True)
        return tokens.view(self.config.latent_shape)

    def step(self, window: int, *, length: int | None = None) -> None:
        """Advance every active slot by 1 to `window` tokens.

        Args:
            length: cache rows that are read, at least max(known) - 1 + window; all of them by default.
        """
        starts = self.known - 1
        rows = starts[:, None] + torch.arange(window, device=self.device)  # [S, W]
        fed = self.history.gather(1, rows)
        logits = self.network(fed, starts, self.cache, length=length or self.cache.k.shape[3])  # [S, W, V]
        place = (self.noise_keys, rows + 1, self.token_keys)
        drawn = self.draw(logits, *place, temperature=self.temperature, top_p=self.top_p)  # [S, W]
        self.history.scatter_(1, rows + 1, drawn)
        right: Tensor | int = 1
        if window > 1:
            right = (fed[:, 1:] == drawn[:, :-1]).cumprod(dim=1).sum(dim=1) + 1
            untried = rows[:, 1:] + window
            earlier = (untried - self.config.frame_tokens).clamp(min=0)
            self.history.scatter_(1, untried, self.history.gather(1, earlier))
        self.known += (self.goal - self.known).clamp(min=0).clamp(max=right)

    def read_known(self) -> list[int]:
        """How many tokens of each slot are right."""
        return self.known.tolist()

    def length_for(self, known: int, window: int) -> int:
        """Cache rows a step must read when the longest active slot has `known` tokens, rounded up."""
        return min(-(-(known - 1 + window) // LENGTH_STEP) * LENGTH_STEP, self.cache.k.shape[3])
