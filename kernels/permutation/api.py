"""Permutation: one stable counting sort of labels, and moving tokens there and back."""

from dataclasses import dataclass

from jaxtyping import Int, Shaped
from torch import Tensor

from kernels.impl import Impl, refuse_gradients, resolve_impl
from kernels.permutation import reference


@dataclass(frozen=True)
class Permutation:
    """The tokens of each head in the order of their clusters.

    Attributes:
        perm: original index of the token in each place, int64.
        offsets: place where each cluster starts, and the end, int32; cluster c holds the places
            from offsets[c] up to offsets[c + 1].
    """

    perm: Int[Tensor, "B H N"]
    offsets: Int[Tensor, "B H C1"]

    @property
    def sizes(self) -> Int[Tensor, "B H C"]:
        """Tokens per cluster."""
        return self.offsets.diff(dim=-1)


def sort_by_label(
    labels: Int[Tensor, "B H N"], num_clusters: int, *, impl: Impl = "auto"
) -> Permutation:
    """Sort tokens by label; tokens of one cluster keep their order. Labels are below num_clusters.

    Raises:
        ImplUnavailable: the implementation asked for cannot run here.
    """
    if resolve_impl(impl, labels) == "fused":
        from kernels.permutation import fused

        return Permutation(*fused.sort_by_label(labels, num_clusters))
    perm, offsets = reference.sort_by_label(labels, num_clusters)
    return Permutation(perm=perm, offsets=offsets)


def permute(
    x: Shaped[Tensor, "B H N D"],
    permutation: Permutation,
    *,
    room: int = 0,
    impl: Impl = "auto",
) -> Shaped[Tensor, "B H R D"]:
    """Tokens from their original order into that of their clusters.

    R is N + `room`. The last `room` rows of each head hold anything: the caller fills them with
    other tokens, which spares a copy of all.

    Raises:
        ValueError: x requires a gradient.
        ImplUnavailable: the implementation asked for cannot run here.
    """
    refuse_gradients("permute", x=x)
    if resolve_impl(impl, x) == "fused":
        from kernels.permutation import fused

        return fused.permute(x, permutation.perm, room)
    return reference.permute(x, permutation.perm, room)


def unpermute(
    x: Shaped[Tensor, "B H N D"], permutation: Permutation, *, impl: Impl = "auto"
) -> Shaped[Tensor, "B H N D"]:
    """Tokens from the order of their clusters back into the original: undoes `permute`.

    Raises:
        ValueError: x requires a gradient.
        ImplUnavailable: the implementation asked for cannot run here.
    """
    refuse_gradients("unpermute", x=x)
    if resolve_impl(impl, x) == "fused":
        from kernels.permutation import fused

        return fused.unpermute(x, permutation.perm)
    return reference.unpermute(x, permutation.perm)
