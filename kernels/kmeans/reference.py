"""k-means in PyTorch: on a CPU the heads are shared among one-thread workers."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from kernels.cpu import scripted, share_work
from kernels.precision import full_fp32

# Scores that exist at a time: fewer or more were slower, and memory stays bounded at any N.
_SCORES_PER_CHUNK = 1 << 17
# Tokens added up in one go: partial sums keep the fp32 mean of a giant cluster exact.
_RUN = 128


def kmeans(
    x: Float[Tensor, "B H N D"], centroids: Float[Tensor, "B H C D"], iters: int
) -> tuple[Int[Tensor, "B H N"], Float[Tensor, "B H C D"], Int[Tensor, "B H C"]]:
    """Labels, centroids and sizes after `iters` rounds of assign and update, all in fp32."""
    batch, heads, num_tokens, _ = x.shape
    num_clusters = centroids.shape[2]
    tokens = x.flatten(0, 1)
    means = centroids.float().flatten(0, 1).clone()
    labels = torch.empty(batch * heads, num_tokens, dtype=torch.int32, device=x.device)
    sizes = torch.empty(batch * heads, num_clusters, dtype=torch.int32, device=x.device)

    def cluster_heads(take) -> None:
        while (head := take()) is not None:
            x_head = tokens[head].float()
            for _ in range(iters):
                labels[head] = _assign(x_head, means[head])
                means[head], sizes[head] = _update(x_head, labels[head], means[head])

    with full_fp32():
        share_work(range(batch * heads), cluster_heads, x.device)
    return (
        labels.view(batch, heads, num_tokens),
        means.view(batch, heads, num_clusters, -1),
        sizes.view(batch, heads, num_clusters),
    )


def _assign(x: Float[Tensor, "N D"], centroids: Float[Tensor, "C D"]) -> Int[Tensor, " N"]:
    """The nearest centroid of each token; the lowest index among equals."""
    bias = centroids.square().sum(-1, keepdim=True).mul_(-0.5)
    labels = torch.empty(len(x), dtype=torch.int32, device=x.device)
    _assign_chunks(x, centroids, bias, max(1, _SCORES_PER_CHUNK // len(centroids)), labels)
    return labels


@scripted
def _assign_chunks(x: Tensor, centroids: Tensor, bias: Tensor, chunk: int, labels: Tensor) -> None:
    """The nearest of [C, D] to each of [N, D], with bias [C, 1], into labels [N].

    PyTorch vectorises maxima but not their indices, so the index is a product too: of all indices
    with a row of zeros and a one.
    """
    count = len(centroids)
    indices = torch.arange(count, dtype=x.dtype, device=x.device)
    picks = torch.stack([indices, torch.ones_like(indices)])
    scratch = torch.empty(count * min(chunk, len(x)), dtype=x.dtype, device=x.device)
    for start in range(0, len(x), chunk):
        part = x[start : start + chunk]
        scores = scratch[: count * len(part)].view(count, len(part))
        torch.addmm(bias, centroids, part.t(), out=scores)
        is_best = scores.ge_(scores.amax(0))
        found = torch.mm(picks, is_best)
        if bool((found[1] != 1).any()):  # equals, or a token that is not a number
            found[0] = is_best.max(0).indices.to(x.dtype)
        labels[start : start + chunk] = found[0]


def _update(
    x: Float[Tensor, "N D"], labels: Int[Tensor, " N"], centroids: Float[Tensor, "C D"]
) -> tuple[Float[Tensor, "C D"], Int[Tensor, " C"]]:
    """Means and sizes of the clusters, by sums over segments of the sorted tokens.

    The order of every sum is fixed, so the result is the same each time; the segments are cut at
    every _RUN tokens and their sums added in a second pass.
    """
    num_tokens, num_clusters = len(x), len(centroids)
    sorted_labels, perm = labels.sort(stable=True)
    cluster_ids = torch.arange(num_clusters + 1, device=x.device, dtype=labels.dtype)
    starts = torch.searchsorted(sorted_labels, cluster_ids)
    cuts = torch.arange(0, num_tokens, _RUN, device=x.device)
    runs = torch.cat([starts[:-1], cuts]).sort().values
    run_sums = F.embedding_bag(perm, x, runs, mode="sum")
    # The runs of a cluster are those from its own start on; equal cuts before it are empty.
    first_run = torch.searchsorted(runs, starts[:-1])
    sums = F.embedding_bag(
        torch.arange(len(runs), device=x.device), run_sums, first_run, mode="sum"
    )
    sizes = starts.diff()
    means = torch.where(sizes[:, None] > 0, sums / sizes.clamp(min=1)[:, None], centroids)
    return means, sizes
