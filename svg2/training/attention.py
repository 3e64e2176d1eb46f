"""Attention as bf16 matrix products with a backward pass, for CPUs that multiply in bf16.

On a core with AMX, torch's fused kernel took 1.2 times as long for one clip of 5,184 tokens, and
1.7 times as long for six clips of 576. Most of the difference is in the backward pass.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

_ROWS = 576  # queries at once


@torch.library.custom_op("svg2_training::attend", mutates_args=())
def _attend(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Output [G, N, D], and the weights [G, N, M] for the backward pass; q is already scaled."""
    weights = q.new_empty((len(q), q.shape[1], k.shape[1]))
    out = torch.empty_like(q)
    for g in range(len(q)):
        keys = k[g].t()
        for rows in _chunks(q.shape[1]):
            torch.softmax(q[g, rows] @ keys, -1, out=weights[g, rows])
            torch.mm(weights[g, rows], v[g], out=out[g, rows])
    return out, weights


@_attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), q.new_empty((len(q), q.shape[1], k.shape[1]))


@torch.library.custom_op("svg2_training::attend_backward", mutates_args=())
def _attend_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    d_q, d_k, d_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    for g in range(len(q)):
        values = v[g].t()
        of_keys, of_values = (torch.zeros_like(x[g], dtype=torch.float32) for x in (k, v))
        for rows in _chunks(q.shape[1]):
            weight = weights[g, rows]
            d_scores = torch._softmax_backward_data(grad[g, rows] @ values, weight, -1, q.dtype)
            torch.mm(d_scores, k[g], out=d_q[g, rows])
            of_keys += d_scores.t() @ q[g, rows]
            of_values += weight.t() @ grad[g, rows]
        d_k[g], d_v[g] = of_keys, of_values
    return d_q, d_k, d_v


@_attend_backward.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(
        False
    )  # or autograd makes zeros for the unused gradient of the weights
    ctx.save_for_backward(*inputs, output[1])


def _back(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _attend_backward(grad.contiguous(), *ctx.saved_tensors)


_attend.register_autograd(_back, setup_context=_keep)


def _chunks(total: int) -> list[slice]:
    return [slice(start, start + _ROWS) for start in range(0, total, _ROWS)]


def attention(
    q: Float[Tensor, "B H N D"], k: Float[Tensor, "B H M D"], v: Float[Tensor, "B H M D"]
) -> Float[Tensor, "B H N D"]:
    """Exact softmax attention in bf16. For the backward pass, it keeps 2 N M bytes per head."""
    scale = q.shape[-1] ** -0.5
    folded = (x.bfloat16().flatten(0, 1).contiguous() for x in (q * scale, k, v))
    return _attend(*folded)[0].unflatten(0, q.shape[:2])


class WrittenOutProcessor:
    """Attention processor of diffusers that computes Wan's self- and cross-attention in bf16."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Float[Tensor, "B N inner"],
        encoder_hidden_states: Float[Tensor, "B L inner"] | None = None,
        attention_mask: None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Float[Tensor, "B N inner"]:
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k = (
            _projected(rows, to, norm, None if rotary_emb is None else attn.heads)
            for rows, to, norm in (
                (hidden_states, attn.to_q, attn.norm_q),
                (source, attn.to_k, attn.norm_k),
            )
        )
        v = attn.to_v(source)
        q, k, v = (x.unflatten(2, (attn.heads, -1)).transpose(1, 2) for x in (q, k, v))
        if rotary_emb is not None:
            cos, sin = (table.transpose(1, 2)[..., ::2] for table in rotary_emb)
            q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        out = attention(q, k, v).transpose(1, 2).flatten(2)
        return attn.to_out[1](attn.to_out[0](out))


def _projected(
    rows: Float[Tensor, "B N inner"], to: nn.Linear, norm: nn.RMSNorm, heads: int | None
) -> Float[Tensor, "B N inner"]:
    """Normalised queries or keys. With `heads`, each head has its even dimensions before its odd.

    Rotary embedding rotates pairs of dimensions, and rotating halves is six times as fast as
    rotating alternate dimensions. The small weights are reordered in place of the tokens.
    """
    weight, bias, scale = to.weight, to.bias, norm.weight
    if heads is not None:
        order = torch.arange(len(weight), device=weight.device)
        order = order.view(heads, -1, 2).transpose(1, 2).flatten()
        weight, bias, scale = weight[order], bias[order], scale[order]
    projected = F.linear(rows, weight, bias)
    return F.rms_norm(projected, norm.normalized_shape, scale, norm.eps)


def _rotate(
    x: Float[Tensor, "B H N D"], cos: Float[Tensor, "B 1 N half"], sin: Float[Tensor, "B 1 N half"]
) -> Float[Tensor, "B H N D"]:
    even, odd = x.chunk(2, dim=-1)
    return torch.cat([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
