"""Self-attention over the video alone: Wan (2.1, 2.2, VACE) and SkyReels-V2."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from svg2.hooks.families.base import SelfAttention, SVG2Processor
from svg2.method.stages import StageClock


def self_attentions(transformer: Any) -> list[SelfAttention]:
    """The self-attention modules by layer, VACE's control blocks last; empty without any."""
    blocks = [getattr(block, "attn1", None) for block in getattr(transformer, "blocks", ())]
    if None in blocks:
        return []
    control = [block.attn1 for block in getattr(transformer, "vace_blocks", ())]
    depths = transformer.config.vace_layers if control else ()
    return [
        *(SelfAttention(attn, i, i == 0 and not control) for i, attn in enumerate(blocks)),
        # They run before all others; each feeds the layer whose number it has.
        *(
            SelfAttention(attn, depth, i == 0)
            for i, (attn, depth) in enumerate(zip(control, depths, strict=True))
        ),
    ]


def patch(transformer: Any) -> tuple[int, int, int]:
    """Frames, rows and columns of latents per token."""
    frames, rows, columns = transformer.config.patch_size
    return frames, rows, columns


class WanSVG2Processor(SVG2Processor):
    """Self-attention of one layer: dense where the gate says so, sparse elsewhere."""

    def attend(
        self,
        attn: Any,
        hidden_states: Float[Tensor, "B N inner"],
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Float[Tensor, "B N inner"]:
        """Run the layer's self-attention."""
        session = self._session
        share = self._arrive(hidden_states.shape[1], attn.heads)
        is_plain = encoder_hidden_states is None and attention_mask is None
        if session.config is not None and not is_plain:  # said before the dense warm-up
            raise RuntimeError("SVG2 supports plain self-attention: no mask, no other source.")
        if session.runs_dense(self._place.depth):
            return session.dense(
                self._place.layer,
                lambda: self._original(
                    attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb
                ),
            )

        clock = StageClock(hidden_states.device)
        q, k, v = queries_keys_values(attn, hidden_states, rotary_emb)
        if share is not None:
            q, k, v = (share.to_heads(x) for x in (q, k, v))
        clock.mark("other")
        out = session.sparse(self._place.layer, q, k, v, clock, share=share).out
        if share is not None:
            out = share.to_tokens(out)
        out = attn.to_out[1](attn.to_out[0](out.transpose(1, 2).flatten(2)))
        clock.mark("other")
        return out


def queries_keys_values(
    attn: Any,
    hidden_states: Float[Tensor, "B N inner"],
    rotary_emb: tuple[Tensor, Tensor] | None,
) -> tuple[Float[Tensor, "B H N D"], Float[Tensor, "B H N D"], Float[Tensor, "B H N D"]]:
    """What the stock processor hands to its attention, bit for bit, laid out by head."""
    if attn.fused_projections:
        q, k, v = attn.to_qkv(hidden_states).chunk(3, dim=-1)
    else:
        q, k, v = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
    q, k, v = (_by_head(x, attn.heads) for x in (attn.norm_q(q), attn.norm_k(k), v))
    if rotary_emb is not None:
        # [1, N, 1, D], each angle twice; by head, each once.
        cos, sin = (table.transpose(1, 2)[..., ::2] for table in rotary_emb)
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
    return q.contiguous(), k.contiguous(), v.contiguous()


def _by_head(x: Float[Tensor, "B N inner"], heads: int) -> Float[Tensor, "B H N D"]:
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def _rotate(
    x: Float[Tensor, "B H N D"], cos: Float[Tensor, "1 1 N half"], sin: Float[Tensor, "1 1 N half"]
) -> Float[Tensor, "B H N D"]:
    """Rotate each pair of neighbouring channels by the angle of its token."""
    if x.dtype is torch.float32:  # the same to the bit, in one pass over memory
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
        rotated = torch.empty(pairs.shape, dtype=pairs.dtype, device=x.device)
        torch.mul(pairs, torch.complex(cos, sin), out=rotated)
        return torch.view_as_real(rotated).flatten(-2)
    even, odd = x[..., ::2], x[..., 1::2]
    rotated = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rotated[..., ::2] = even * cos - odd * sin
    rotated[..., 1::2] = even * sin + odd * cos
    return rotated
