"""What stands for key clusters that a query cluster skips."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class StandIns:
    """One virtual key for each key cluster that a query cluster skips.

    Attributes:
        keys, values: `[B, H, K, D]`, or `[B, H, Q, K, D]` where each pair of clusters has its own.
        log_weights: what is added to the logit of a virtual key, `[B, H, K]` or `[B, H, Q, K]`;
            None is the logarithm of the number of keys of the cluster. -inf takes one out.

    Source: after the centroid compensation of SVG-EAR, arXiv 2603.08982.
    """

    keys: Float[Tensor, "B H ... D"]
    values: Float[Tensor, "B H ... D"]
    log_weights: Float[Tensor, "B H ..."] | None = None
