"""Joint attention over video and prompt: HunyuanVideo and HunyuanVideo 1.5.

Modules are diffusers' `Attention`, whose optional parts its annotations leave open.
"""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from jaxtyping import Bool, Float
from torch import Tensor

from svg2.hooks.families.base import SelfAttention, SVG2Processor
from svg2.hooks.session import BatchPart
from svg2.hooks.ulysses import head_share
from svg2.method.call import TextTokens
from svg2.method.stages import StageClock

Rotary = tuple[Tensor, Tensor]


def self_attentions(transformer: Any) -> list[SelfAttention]:
    """The joint attention modules by layer, dual-stream blocks first."""
    single = getattr(transformer, "single_transformer_blocks", ())
    blocks = (*transformer.transformer_blocks, *single)
    return [SelfAttention(block.attn, i, i == 0) for i, block in enumerate(blocks)]


def patch(transformer: Any) -> tuple[int, int, int]:
    """Frames, rows and columns of latents per token."""
    side = transformer.config.patch_size
    return transformer.config.patch_size_t, side, side


class JointProcessor:
    """Dense joint attention with the output of the stock ones; masked only where a mask is given.

    It stands in for them where tokens are split over processes: each process then has a part of
    the video tokens and all prompt tokens, and the prompt counts once.
    """

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Float[Tensor, "B N inner"],
        encoder_hidden_states: Float[Tensor, "B T inner"],
        attention_mask: Bool[Tensor, "B 1 1 NT"] | None = None,
        image_rotary_emb: Rotary | None = None,
    ) -> tuple[Float[Tensor, "B N inner"], Float[Tensor, "B T inner"]]:
        """Run the layer's attention."""
        share = head_share(self._parallel_config, attn.heads)
        video = video_queries_keys_values(attn, hidden_states, image_rotary_emb)
        text = text_queries_keys_values(attn, encoder_hidden_states)
        n_text = encoder_hidden_states.shape[1]
        if share is not None:
            video = tuple(share.to_heads(x) for x in video)
            text = text.of_heads(share.own)
        q, k, v = (
            torch.cat(both, dim=2).transpose(1, 2)
            for both in zip(video, (text.q, text.k, text.v), strict=True)
        )
        if attention_mask is not None:
            of_text = attention_mask[..., attention_mask.shape[-1] - n_text :]
            attention_mask = F.pad(of_text, (q.shape[1] - n_text, 0), value=True)
        out = dispatch_attention_fn(
            q, k, v, attn_mask=attention_mask, backend=self._attention_backend
        ).transpose(1, 2)
        out, text_out = out.split([out.shape[2] - n_text, n_text], dim=2)
        if share is not None:
            out, text_out = share.to_tokens(out), share.gather(text_out, dim=1)
        return project_out(attn, out, text_out)


class HunyuanVideoSVG2Processor(SVG2Processor):
    """Joint attention of one layer: dense where the gate says so, sparse elsewhere.

    Clusters are of video tokens alone. Padding of the prompt is dropped before either: the stock
    processor masks it, and a mask keeps fast kernels away. The output at the places of the padding
    is zeros, which nothing reads.
    """

    def attend(
        self,
        attn: Any,
        hidden_states: Float[Tensor, "B N inner"],
        encoder_hidden_states: Float[Tensor, "B T inner"],
        attention_mask: Bool[Tensor, "B *masked"] | None = None,
        rotary_emb: Rotary | None = None,
    ) -> tuple[Float[Tensor, "B N inner"], Float[Tensor, "B T inner"]]:
        """Run the layer's attention; prompts of a batch that differ in length go one by one."""
        self._arrive(hidden_states.shape[1], attn.heads)
        batch, n_padded = encoder_hidden_states.shape[:2]
        lengths = self._session.text_lengths(attention_mask, batch, n_padded)
        if len(set(lengths)) == 1:
            prompt = encoder_hidden_states[:, : lengths[0]]
            parts = [(BatchPart(), hidden_states, prompt)]
        else:
            parts = [
                (
                    BatchPart(i, batch),
                    hidden_states[i : i + 1],
                    encoder_hidden_states[i : i + 1, :n_text],
                )
                for i, n_text in enumerate(lengths)
            ]

        if self._session.runs_dense(self._place.depth):
            dense = self._dense_processor()
            outs = self._session.dense(
                self._place.layer,
                lambda: [
                    dense(attn, video, prompt, None, rotary_emb) for _, video, prompt in parts
                ],
            )
        else:
            clock = StageClock(hidden_states.device)
            outs = [
                self._sparse(attn, video, prompt, rotary_emb, clock, part)
                for part, video, prompt in parts
            ]
        if len(outs) == 1:
            return outs[0][0], _padded(outs[0][1], n_padded)
        return (
            torch.cat([out for out, _ in outs]),
            torch.cat([_padded(text_out, n_padded) for _, text_out in outs]),
        )

    def _sparse(
        self,
        attn: Any,
        hidden_states: Float[Tensor, "B N inner"],
        prompt: Float[Tensor, "B T inner"],
        rotary_emb: Rotary | None,
        clock: StageClock,
        part: BatchPart,
    ) -> tuple[Float[Tensor, "B N inner"], Float[Tensor, "B T inner"]]:
        share = head_share(self._parallel_config, attn.heads)
        q, k, v = video_queries_keys_values(attn, hidden_states, rotary_emb)
        text = text_queries_keys_values(attn, prompt)
        if share is not None:
            q, k, v = (share.to_heads(x) for x in (q, k, v))
            text = text.of_heads(share.own)
        clock.mark("other")
        result = self._session.sparse(self._place.layer, q, k, v, clock, text, share, part)
        out, text_out = result.out, result.text_out
        assert text_out is not None
        if share is not None:
            out, text_out = share.to_tokens(out), share.gather(text_out, dim=1)
        out, text_out = project_out(attn, out, text_out)
        clock.mark("other")
        return out, text_out

    def _dense_processor(self) -> Any:
        """The stock processor, or for 1.5, whose own always builds a mask of all pairs, ours."""
        if type(self._original).__name__ != "HunyuanVideo15AttnProcessor2_0":
            return self._original
        dense = JointProcessor()
        dense._attention_backend = self._attention_backend
        return dense


def _padded(text_out: Float[Tensor, "B T inner"], length: int) -> Float[Tensor, "B L inner"]:
    """Zeros at the places of the padding."""
    return F.pad(text_out, (0, 0, 0, length - text_out.shape[1]))


def project_out(
    attn: Any, out: Float[Tensor, "B H N D"], text_out: Float[Tensor, "B H T D"]
) -> tuple[Float[Tensor, "B N inner"], Float[Tensor, "B T inner"]]:
    """Heads put together and projected; a single-stream block does the latter itself, later."""
    out, text_out = (x.transpose(1, 2).flatten(2) for x in (out, text_out))
    if getattr(attn, "to_out", None) is not None:
        out = attn.to_out[1](attn.to_out[0](out))
    if getattr(attn, "to_add_out", None) is not None:
        text_out = attn.to_add_out(text_out)
    return out, text_out


def video_queries_keys_values(
    attn: Any,
    hidden_states: Float[Tensor, "B N inner"],
    rotary_emb: Rotary | None,
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
