"""The kernels that cluster attention is compared with on a GPU: dense and block-sparse ones.

Each takes the tokens sorted by cluster and returns the output in the same order. A dense kernel
attends to all keys, a sparse one to those of the kept clusters.
"""

import importlib
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from kernels import Impl, cluster_attention
from svg2.bench.workload import ClusteredWorkload

Attend = Callable[[], Float[Tensor, "B H N D"]]

_FLEX_BLOCK = 128


class BaselineUnavailable(RuntimeError):
    """Baseline that can't run here. The message says why."""


def dense_baselines(clustered: ClusteredWorkload, impl: Impl) -> dict[str, Attend]:
    """Dense attention by name: PyTorch's kernels, and ours (`dense_ours`).

    `dense_ours` is our kernel with all tokens in one cluster. Against PyTorch's kernels it shows
    the cost of our inner loop alone, without the cost of clusters of different sizes.

    Args:
        impl: kernels that `dense_ours` uses.
    """
    q, k, v = clustered.q_sorted, clustered.k_sorted, clustered.v_sorted
    whole = clustered.q_offsets[..., [0, -1]].contiguous()
    everything = torch.ones(*whole.shape[:2], 1, 1, dtype=torch.bool, device=q.device)

    def sdpa(backend: SDPBackend) -> Attend:
        def attend() -> Tensor:
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v)

        return attend

    ours: dict[str, Attend] = {
        "dense_ours": lambda: cluster_attention(q, k, v, whole, whole, everything, impl=impl)
    }
    if not q.is_cuda:
        return {"sdpa_default": lambda: F.scaled_dot_product_attention(q, k, v)} | ours
    return {
        "sdpa_flash": sdpa(SDPBackend.FLASH_ATTENTION),
        "sdpa_cudnn": sdpa(SDPBackend.CUDNN_ATTENTION),
    } | ours


def flash_attention_4(clustered: ClusteredWorkload) -> Attend:
    """Dense attention of the package flash-attn-4.

    Raises:
        BaselineUnavailable: the package can't be imported.
    """
    try:
        attention = importlib.import_module("flash_attn.cute").flash_attn_func
    except (ImportError, AttributeError) as error:
        raise BaselineUnavailable(f"flash-attn-4 can't be imported: {error}") from error
    # It takes [B, N, H, D].
    q, k, v = (
        x.transpose(1, 2) for x in (clustered.q_sorted, clustered.k_sorted, clustered.v_sorted)
    )

    def attend() -> Tensor:
        out = attention(q, k, v)
        return (out[0] if isinstance(out, tuple) else out).transpose(1, 2)

    return attend


def flex_padded(clustered: ClusteredWorkload, kept: Bool[Tensor, "B H Q K"]) -> Attend:
    """`flex_attention` over clusters that are padded to whole blocks of 128 tokens; batch 1.

    The tokens are padded here, so a race does not time the padding: a permutation could write
    padded tokens at no extra cost.
    """
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    q, q_owner, q_place, _ = _padded(clustered.q_sorted, clustered.q_offsets)
    k, k_owner, k_place, k_real = _padded(clustered.k_sorted, clustered.k_offsets)
    v = _spread_out(clustered.v_sorted, k_place, k.shape[2])
    heads = torch.arange(q.shape[1], device=q.device)[:, None, None]
    # Blocks after the last cluster of a head belong to no cluster and attend to nothing.
    pairs = kept[0][heads, q_owner[:, :, None].clamp(min=0), k_owner[:, None, :].clamp(min=0)]
    pairs &= (q_owner >= 0)[:, :, None] & (k_owner >= 0)[:, None, :]
    is_full = k_real.unflatten(1, (-1, _FLEX_BLOCK)).all(-1)[:, None, :]

    def listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
        order = blocks.int().argsort(dim=-1, descending=True, stable=True).int()
        return blocks.sum(-1, dtype=torch.int32)[None], order[None]

    def is_token(b: Tensor, h: Tensor, q_index: Tensor, k_index: Tensor) -> Tensor:
        return k_real[h, k_index]

    def is_kept_token(b: Tensor, h: Tensor, q_index: Tensor, k_index: Tensor) -> Tensor:
        return k_real[h, k_index] & pairs[h, q_index // _FLEX_BLOCK, k_index // _FLEX_BLOCK]

    partial, full = listed(pairs & ~is_full), listed(pairs & is_full)
    mask = BlockMask.from_kv_blocks(
        *partial,
        *full,
        BLOCK_SIZE=_FLEX_BLOCK,
        # Without compilation `flex_attention` ignores the blocks and calls the mask per pair.
        mask_mod=is_token if q.is_cuda else is_kept_token,
        seq_lengths=(q.shape[2], k.shape[2]),
    )
    compiled = torch.compile(flex_attention) if q.is_cuda else flex_attention
    place = q_place[None, :, :, None].expand(*clustered.q_sorted.shape)

    def attend() -> Tensor:
        return compiled(q, k, v, block_mask=mask)

    return lambda: attend().gather(2, place)


def flashinfer_blocks(clustered: ClusteredWorkload, kept: Bool[Tensor, "B H Q K"]) -> Attend:
    """FlashInfer's kernel for blocks of variable size; batch 1.

    Its plan is made here, so a race does not time it.

    Raises:
        BaselineUnavailable: the package can't be imported.
    """
    try:
        sparse = importlib.import_module("flashinfer.sparse")
    except ImportError as error:
        raise BaselineUnavailable(f"flashinfer can't be imported: {error}") from error
    q, k, v = clustered.q_sorted, clustered.k_sorted, clustered.v_sorted
    workspace = torch.empty(1 << 30, dtype=torch.uint8, device=q.device)
    wrapper = sparse.VariableBlockSparseAttentionWrapper(workspace, backend="auto")
    wrapper.plan(
        block_mask_map=kept[0],
        block_row_sz=clustered.q_offsets[0].diff(dim=-1),
        block_col_sz=clustered.k_offsets[0].diff(dim=-1),
        num_qo_heads=q.shape[1],
        num_kv_heads=k.shape[1],
        head_dim=q.shape[-1],
        q_data_type=q.dtype,
    )
    return lambda: wrapper.run(q[0], k[0], v[0])[None]


def _padded(x: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pad each cluster to whole blocks; batch 1.

    Returns:
        The padded tokens; the cluster of each block, -1 if none; the padded place of each token;
        and whether each padded place holds a token.
    """
    sizes = offsets[0].diff(dim=-1).long()
    blocks = -(-sizes // _FLEX_BLOCK)
    block_ends = blocks.cumsum(-1)
    num_blocks = int(block_ends[:, -1].max())
    numbers = torch.arange(num_blocks, device=x.device).expand(len(sizes), -1).contiguous()
    owner = torch.searchsorted(block_ends, numbers, right=True)
    owner = torch.where(owner < sizes.shape[1], owner, -1)

    tokens = torch.arange(x.shape[2], device=x.device).expand(len(sizes), -1).contiguous()
    cluster = torch.searchsorted(offsets[0][:, 1:].long().contiguous(), tokens, right=True)
    shift = (block_ends - blocks) * _FLEX_BLOCK - offsets[0][:, :-1]
    place = tokens + shift.gather(1, cluster)
    real = torch.zeros(len(sizes), num_blocks * _FLEX_BLOCK, dtype=torch.bool, device=x.device)
    real.scatter_(1, place, True)
    return _spread_out(x, place, num_blocks * _FLEX_BLOCK), owner, place, real


def _spread_out(x: Tensor, place: Tensor, length: int) -> Tensor:
    out = x.new_zeros(*x.shape[:2], length, x.shape[-1])
    return out.scatter_(2, place[None, :, :, None].expand(x.shape), x)
