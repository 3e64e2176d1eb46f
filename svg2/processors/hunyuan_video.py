"""HunyuanVideo: video and prompt tokens attend jointly; its modules, their q, k and v.

Modules are diffusers' `Attention`, whose optional parts its annotations leave open.
"""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_hunyuan_video import (
    HunyuanVideoAttnProcessor2_0,
    HunyuanVideoTransformer3DModel,
)
from jaxtyping import Bool, Float
from torch import Tensor

from svg2.attention import TextTokens
from svg2.processors.base import SVG2Processor
from svg2.stats import StageClock

STOCK = HunyuanVideoAttnProcessor2_0


def self_attentions(transformer: torch.nn.Module) -> list[Any]:
    """The joint attention modules by layer, dual-stream blocks first; empty for other models."""
    if not isinstance(transformer, HunyuanVideoTransformer3DModel):
        return []
    blocks = (*transformer.transformer_blocks, *transformer.single_transformer_blocks)
    return [block.attn for block in blocks]


class HunyuanVideoSVG2Processor(SVG2Processor):
    """Joint attention of one layer: the stock processor where the gate says dense, else ours.

    Clusters are of video tokens alone. Padding of the prompt is dropped before either: the stock
    path masks it, and a mask keeps fast kernels away. What that leaves at its places nothing
    reads.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Float[Tensor, "B N inner"],
        encoder_hidden_states: Float[Tensor, "B T inner"],
        attention_mask: Bool[Tensor, "B 1 1 NT"] | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Float[Tensor, "B N inner"], Float[Tensor, "B T inner"]]:
        """Run the layer's attention.

        Raises:
            ConfigError: there are more clusters than video tokens.
            RuntimeError: the model splits its tokens over devices, or the prompts of a batch
                differ in length.
        """
        session = self._session
        n_video, n_padded = hidden_states.shape[1], encoder_hidden_states.shape[1]
        if self._layer == 0:
            session.begin_forward(self._transformer, n_video)
        n_text = session.text_length(attention_mask, n_video, n_padded)
        prompt, padding = encoder_hidden_states[:, :n_text], (0, 0, 0, n_padded - n_text)
        if session.runs_dense(self._layer):
            out, text_out = session.dense(
                self._layer,
                lambda: self._original(attn, hidden_states, prompt, None, image_rotary_emb),
            )
            return out, F.pad(text_out, padding)
        if self._parallel_config is not None:
            raise RuntimeError("SVG2 needs all tokens on one device: disable parallelism.")

        clock = StageClock(hidden_states.device)
        q, k, v = video_queries_keys_values(attn, hidden_states, image_rotary_emb)
        text = text_queries_keys_values(attn, prompt)
        clock.mark("other")
        result = session.sparse(self._layer, q, k, v, clock, text)
        assert result.text_out is not None
        out = result.out.transpose(1, 2).flatten(2)
        text_out = result.text_out.transpose(1, 2).flatten(2)
        text_out = F.pad(text_out, padding)
        # A single-stream block projects both later, together.
        if getattr(attn, "to_out", None) is not None:
            out = attn.to_out[1](attn.to_out[0](out))
        if getattr(attn, "to_add_out", None) is not None:
            text_out = attn.to_add_out(text_out)
        clock.mark("other")
        return out, text_out


def video_queries_keys_values(
    attn: Any,
    hidden_states: Float[Tensor, "B N inner"],
    rotary_emb: tuple[Tensor, Tensor] | None,
) -> tuple[Float[Tensor, "B H N D"], Float[Tensor, "B H N D"], Float[Tensor, "B H N D"]]:
    """The video's q, k and v as the stock processor hands them to its attention, by head."""
    q, k, v = (
        to(hidden_states).unflatten(2, (attn.heads, -1))
        for to in (attn.to_q, attn.to_k, attn.to_v)
    )
    q, k = _normed(attn.norm_q, q), _normed(attn.norm_k, k)
    if rotary_emb is not None:
        q, k = (apply_rotary_emb(x, rotary_emb, sequence_dim=1) for x in (q, k))
    return _by_head(q), _by_head(k), _by_head(v)


def text_queries_keys_values(
    attn: Any, encoder_hidden_states: Float[Tensor, "B T inner"]
) -> TextTokens:
    """The prompt's q, k and v; a single-stream block projects them as the video's."""
    if attn.add_q_proj is None:
        projections = (attn.to_q, attn.to_k, attn.to_v)
        norms = (attn.norm_q, attn.norm_k)
    else:
        projections = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
        norms = (attn.norm_added_q, attn.norm_added_k)
    q, k, v = (to(encoder_hidden_states).unflatten(2, (attn.heads, -1)) for to in projections)
    return TextTokens(_by_head(_normed(norms[0], q)), _by_head(_normed(norms[1], k)), _by_head(v))


def _normed(norm: torch.nn.Module | None, x: Tensor) -> Tensor:
    return x if norm is None else norm(x)


def _by_head(x: Float[Tensor, "B N H D"]) -> Float[Tensor, "B H N D"]:
    return x.transpose(1, 2).contiguous()
