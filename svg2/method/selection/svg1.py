"""Sparse VideoGen: each head is spatial or temporal, which a sample of its queries tells."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from svg2.config import SVG2Config
from svg2.method.plan import Routed, Tokens
from svg2.method.selection import masses
from svg2.method.selection.tiles import keep_nearest, offsets
from svg2.method.selection.top_p import asked_density

ROWS = 64
SINK = (False,)

def route(tokens, config):
    routed = masses.route(tokens, config)
    rows = min(ROWS, tokens.q.shape[2])
    return Routed(routed.P, passes=2.0 * rows / routed.P.shape[2])

def select(tokens: Tokens, routed: Routed, config: SVG2Config) -> Bool[Tensor, "B H Q K"]:
    to = offsets(tokens, config)
    density = asked_density(tokens, routed, config)
    num_frames, far = to.frames.max() + 1, to.place.max() + 1
    spatial = to.frames * far + to.place
    temporal = to.place * num_frames + to.frames
    masks = []
    for sink in SINK:
        for d in (spatial, temporal):
            if sink:
                d = torch.where(to.to_first < 0.5, d.min() + 1e-3*d, d)
            masks.append(keep_nearest(d, tokens, density))
    kept = torch.stack(masks)
    best = errors(tokens, kept, config).argmin(0)
    return kept.gather(0, best[None, :, :, None, None].expand(1, *kept.shape[1:]))[0]

def errors(tokens, kept, config):
    n = tokens.q.shape[2]
    generator = torch.Generator().manual_seed(config.seed)
    rows = torch.randperm(n, generator=generator)[:ROWS].to(tokens.q.device)
    q = tokens.q[:, :, rows].float()
    labels = tokens.q_clusters.labels[:, :, rows].long()
    k_labels = tokens.k_clusters.labels.long().gather(2, tokens.k_order.perm)
    w = torch.softmax(q @ tokens.k_sorted.float().mT / math.sqrt(q.shape[-1]), -1)
    v = tokens.v_sorted.float()
    exact = w @ v
    out = []
    for m in kept:
        r = m.gather(2, labels[..., None].expand(-1, -1, -1, m.shape[-1]))
        r = r.gather(3, k_labels[:, :, None].expand(-1, -1, r.shape[2], -1))
        wm = w * r
        out.append(((wm @ v) / wm.sum(-1, keepdim=True).clamp(min=1e-20) - exact).square().mean((-1, -2)))
    return torch.stack(out)
