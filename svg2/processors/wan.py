"""The Wan family (2.1, 2.2): its self-attention modules, their q, k and v, its token grid."""

import torch
from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor
from jaxtyping import Float
from torch import Tensor

from svg2.processors.base import SVG2Processor
from svg2.stats import StageClock

STOCK = WanAttnProcessor


def self_attentions(transformer: torch.nn.Module) -> list[WanAttention]:
    """The self-attention modules of a Wan transformer, by layer; empty for any other model."""
    blocks = getattr(transformer, "blocks", ())
    modules = [getattr(block, "attn1", None) for block in blocks]
    return [module for module in modules if isinstance(module, WanAttention)]


class WanSVG2Processor(SVG2Processor):
    """Self-attention of one Wan layer: stock where the gate says dense, ours elsewhere."""

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: Float[Tensor, "B N inner"],
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Float[Tensor, "B N inner"]:
        """Run the layer's self-attention.

        Raises:
            ConfigError: there are more clusters than tokens.
            RuntimeError: the model splits its tokens over devices, or masks its self-attention.
        """
        session = self._session
        if self._layer == 0:
            session.begin_forward(self._transformer, hidden_states.shape[1])
        if session.runs_dense(self._layer):
            return session.dense(
                self._layer,
                lambda: self._original(
                    attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb
                ),
            )
        if self._parallel_config is not None:
            raise RuntimeError("SVG2 needs all tokens on one device: disable parallelism.")
        if encoder_hidden_states is not None or attention_mask is not None:
            raise RuntimeError("SVG2 replaces plain self-attention: no mask, no other source.")

        clock = StageClock(hidden_states.device)
        q, k, v = queries_keys_values(attn, hidden_states, rotary_emb)
        clock.mark("other")
        out = session.sparse(self._layer, q, k, v, clock).out
        out = attn.to_out[1](attn.to_out[0](out.transpose(1, 2).flatten(2)))
        clock.mark("other")
        return out


def queries_keys_values(
    attn: WanAttention,
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
