"""Blocks at random, the floor that a selection must be above."""

import torch
from jaxtyping import Bool
from torch import Tensor

from svg2.config import SVG2Config
from svg2.method.plan import Routed, Tokens
from svg2.method.selection.budget import heaviest, spend
from svg2.method.selection.top_p import asked_density


def select(tokens: Tokens, routed: Routed, config: SVG2Config) -> Bool[Tensor, "B H Q K"]:
    """Keep random blocks, each as likely as another, up to the budget of all heads.

    Every query cluster keeps its heaviest key cluster.
    """
    generator = torch.Generator().manual_seed(config.seed)
    gain = torch.rand(routed.P.shape, generator=generator).to(routed.P.device)
    always = heaviest(routed.P, tokens.k_clusters.sizes)
    return spend(gain, always, tokens, asked_density(tokens, routed, config))
