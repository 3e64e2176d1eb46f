"""Rows of fused attention against fp64: of the first call on a chip, and before one is timed."""

import itertools

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kernels.cluster_attention.stand_ins import StandIns
from kernels.impl import ImplUnavailable

ERROR_BUDGET = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}
"""Largest relative error, in norm, of a right result; by the dtype of q, k and v."""

_CHECKED_ROWS = 64
_MARGIN = 2  # on a model's own tokens, which are no random numbers

_faults: dict[tuple[object, ...], str | None] = {}


def some_rows(num_tokens: int, device: torch.device) -> Int[Tensor, "R"]:
    """Rows all over, with the first and the last, where an error at an edge would show."""
    spread = torch.linspace(0, num_tokens - 1, min(num_tokens, _CHECKED_ROWS))
    return spread.round().long().to(device)


def exact_rows(
    queries: Float[Tensor, "R D"],
    k: Float[Tensor, "B H S D"],
    v: Float[Tensor, "B H S D"],
    q_offsets: Int[Tensor, "B H Q1"],
    k_offsets: Int[Tensor, "B H K1"],
    kept: Bool[Tensor, "B H Q K"] | None,
    scale: float,
    stand_ins: StandIns | None,
    at: tuple[int, int],
    rows: Int[Tensor, "R"],
) -> Float[Tensor, "R D"]:
    """What `cluster_attention` gives for some rows of one head, in fp64.

    Args:
        queries: those of the rows. kept: None keeps everything.
        at: which sample of the batch, and which head.
        rows: their places in the order of the query clusters, ascending.
    """
    dtype = queries.dtype
    queries, keys, values = queries.double(), k[at].double(), v[at].double()
    scores = queries @ keys.t() * scale
    if kept is None:
        return scores.softmax(-1) @ values
    cluster = torch.searchsorted(q_offsets[at][1:].long().contiguous(), rows, right=True)
    sizes = k_offsets[at].diff().long()
    is_kept = kept[at][cluster]
    of_keys = is_kept.repeat_interleave(sizes, dim=-1, output_size=len(keys))
    scores = scores.masked_fill(~of_keys, -torch.inf)
    if stand_ins is None:
        return scores.softmax(-1).nan_to_num() @ values  # a row that keeps nothing is zeros

    def of_rows(x: Tensor, shared_dims: int) -> Tensor:
        """[R, K, ...] of what each query cluster has, or all have."""
        x = x[at].to(dtype).double() if shared_dims == 2 else x[at].double()
        return x[cluster] if x.ndim > shared_dims else x.expand(len(rows), *x.shape)

    weights = sizes.double().log().expand(len(rows), -1)
    if stand_ins.log_weights is not None:
        weights = of_rows(stand_ins.log_weights, 1)
    virtual = (of_rows(stand_ins.keys, 2) @ queries[:, :, None])[..., 0] * scale + weights
    virtual = virtual.masked_fill(is_kept | (sizes == 0), -torch.inf)
    shares = torch.cat([scores, virtual], dim=-1).softmax(-1).nan_to_num()
    real, rest = shares.split([len(keys), len(sizes)], dim=-1)
    return real @ values + (rest[:, None] @ of_rows(stand_ins.values, 2))[:, 0]


def relative_error(some: Float[Tensor, "..."], exact: Float[Tensor, "..."]) -> float:
    """Error in norm; nan where a value is not finite, 0 where both are zeros."""
    error, size = (some.double() - exact).norm(), exact.norm()
    return (error / size).item() if size > 0 else error.item()


def check_first_call(
    out: Float[Tensor, "B H N D"],
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H S D"],
    v: Float[Tensor, "B H S D"],
    q_offsets: Int[Tensor, "B H Q1"],
    k_offsets: Int[Tensor, "B H K1"],
    kept: Bool[Tensor, "B H Q K"],
    scale: float,
    stand_ins: StandIns | None,
    q_perm: Int[Tensor, "B H N"] | None,
    variant: str | None = None,
) -> None:
    """Check rows of a fused result, once in a process for each chip and kind of call.

    Kinds differ in dtype, head dimension, attend kernel, stand-ins (none, shared by all query
    clusters, for each) and whether queries are permuted within the kernel: other code is compiled
    for each. A chip that failed stays refused. The first time waits for the device.

    Raises:
        ImplUnavailable: the result was wrong.
    """
    if q.dtype not in (torch.float16, torch.bfloat16) or torch.compiler.is_compiling():
        return
    stands = stand_ins and (stand_ins.keys.ndim, stand_ins.log_weights is not None)
    kind = (q.device, q.dtype, q.shape[-1], stands, q_perm is not None, variant)
    if kind not in _faults:
        if q.is_cuda and torch.cuda.is_current_stream_capturing():
            return
        rows = some_rows(q.shape[2], q.device)
        found, exact = [], []
        heads = sorted({0, q.shape[1] // 2, q.shape[1] - 1})
        for at in itertools.product(range(len(q)), heads):
            places = rows if q_perm is None else q_perm[at][rows].long()
            where = (q_offsets, k_offsets, kept, scale, stand_ins, at, rows)
            exact.append(exact_rows(q[at][places], k, v, *where))
            found.append(out[at][places])
        error = relative_error(torch.stack(found), torch.stack(exact))
        most = _MARGIN * ERROR_BUDGET[q.dtype]
        _faults[kind] = None if error <= most else _sentence(q, error, most)
    fault = _faults[kind]
    if fault is not None:
        raise ImplUnavailable(fault)


def _sentence(q: Tensor, error: float, most: float) -> str:
    chip = torch.cuda.get_device_name(q.device) if q.is_cuda else "this CPU"
    dtype = str(q.dtype).removeprefix("torch.")
    return (
        f"The fused kernels give wrong attention on {chip} in {dtype}: rows of their first result "
        f"are off by {error:.1%}, where at most {most:.1%} is rounding. Set impl to reference."
    )
