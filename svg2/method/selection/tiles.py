"""Tiles of the video: clusters by place, for masks that are drawn by place."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kernels import KMeansResult, Permutation, cluster_means, resolve_impl, sort_by_label
from svg2.config import SVG2Config
from svg2.errors import ConfigError
from svg2.method.plan import Tokens
from svg2.method.selection.budget import spend

Grid = tuple[int, int, int]

_GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class Tiling:
    """A grid of T frames, Y rows and X columns cut into boxes whose sides differ by at most one.

    Attributes:
        grid: the sides of the grid.
        counts: tiles along each side.
    """

    grid: Grid
    counts: Grid

    @classmethod
    def of(cls, grid: Grid, most: int) -> "Tiling":
        """At most `most` tiles: of one frame each where there are so many, and nearly square."""
        frames, rows, columns = grid
        per_frame = most // frames
        if per_frame == 0:
            return cls(grid, (most, 1, 1))
        shapes = [(ny, min(per_frame // ny, columns)) for ny in range(1, min(per_frame, rows) + 1)]
        ny, nx = min(shapes, key=lambda n: rows / n[0] + columns / n[1])
        return cls(grid, (frames, ny, nx))

    def labels(self, device: torch.device) -> Int[Tensor, " N"]:
        """The tile of each token."""
        t, y, x = (
            torch.arange(side, device=device) * count // side
            for side, count in zip(self.grid, self.counts, strict=True)
        )
        _, ny, nx = self.counts
        return ((t[:, None, None] * ny + y[:, None]) * nx + x).flatten().int()

    def centres(self, device: torch.device) -> Float[Tensor, "C 3"]:
        """Mean frame, row and column of the tokens of each tile."""
        axes = []
        for side, count in zip(self.grid, self.counts, strict=True):
            # Token i is in tile i·count // side, so a tile starts at the ceiling of its share.
            starts = (torch.arange(count + 1, device=device) * side + count - 1) // count
            axes.append((starts[:-1] + starts[1:] - 1) / 2)
        return torch.cartesian_prod(*axes)


def cluster(
    x: Float[Tensor, "B H N D"], num_clusters: int, config: SVG2Config, grid: Grid | None = None
) -> KMeansResult:
    """Cut the video into at most `num_clusters` tiles, the same ones for all heads.

    Raises:
        ConfigError: the grid is not known, or is not of these tokens.
    """
    tiling = Tiling.of(known(grid, x.shape[2], config), num_clusters)
    labels = tiling.labels(x.device)[None, None]
    count = tiling.counts[0] * tiling.counts[1] * tiling.counts[2]
    order = sort_by_label(labels, count, impl=config.impl)
    batch, heads = x.shape[:2]
    order = Permutation(
        *(part.expand(batch, heads, -1).contiguous() for part in (order.perm, order.offsets))
    )
    return KMeansResult(
        labels=labels.expand(batch, heads, -1).contiguous(),
        centroids=cluster_means(x, order, impl=config.impl),
        sizes=order.sizes,
        impl=resolve_impl(config.impl, x),
        order=order,
    )


def known(grid: Grid | None, num_tokens: int, config: SVG2Config) -> Grid:
    """The grid itself.

    Raises:
        ConfigError: it is not known, or is not of these tokens.
    """
    if grid is None:
        raise ConfigError(
            f"method={config.method} needs the grid of tokens (frames, rows, columns), which is "
            "not known here: pass grid, or choose another method."
        )
    if grid[0] * grid[1] * grid[2] != num_tokens:
        raise ConfigError(
            f"grid={grid} has {grid[0] * grid[1] * grid[2]} tokens, but q has {num_tokens}."
        )
    return grid


@dataclass(frozen=True)
class Offsets:
    """How far query tiles and key tiles are from each other, from centre to centre.

    Attributes:
        frames: in time.
        place: within the frame, in tokens.
        to_first: of key tiles from the first frame.
        side: of a key tile within the frame, in tokens.
    """

    frames: Float[Tensor, "Q K"]
    place: Float[Tensor, "Q K"]
    to_first: Float[Tensor, " K"]
    side: float


def offsets(tokens: Tokens, config: SVG2Config) -> Offsets:
    """The offsets between the tiles of queries and of keys."""
    grid = known(tokens.grid, tokens.q.shape[2], config)
    of_q, of_k = (Tiling.of(grid, n) for n in (config.num_q_clusters, config.num_k_clusters))
    q, k = (tiling.centres(tokens.q.device) for tiling in (of_q, of_k))
    _, rows, columns = grid
    return Offsets(
        frames=(q[:, None, 0] - k[:, 0]).abs(),
        place=torch.cdist(q[:, 1:].float(), k[:, 1:].float()),
        to_first=k[:, 0] - k[:, 0].min(),
        side=(rows / of_k.counts[1] * columns / of_k.counts[2]) ** 0.5,
    )


def keep_nearest(
    distance: Float[Tensor, "Q K"], tokens: Tokens, density: float | Float[Tensor, " B"]
) -> Tensor:
    """Keep the nearest key tiles of each query tile, as many keys for each as the budget allows.

    Rows of tiles whose share ends within a tile round it up or down, so that together they spend
    the budget. All heads keep the same. The nearest is always kept.
    """
    nearest_first = distance.argsort(dim=1, stable=True)
    sizes = tokens.k_clusters.sizes[0, 0].double()[nearest_first]
    rows = torch.arange(len(distance), device=distance.device, dtype=torch.float64)[:, None]
    keys = sizes.cumsum(1) - sizes * (rows * _GOLDEN % 1.0)
    gain = torch.zeros_like(keys).scatter_(1, nearest_first, 1 / (1 + keys))
    always = torch.zeros_like(gain, dtype=torch.bool).scatter_(1, nearest_first[:, :1], True)
    shape = (*tokens.q.shape[:2], -1, -1)
    return spend(gain.expand(shape), always.expand(shape), tokens, density)
