"""Cluster attention in Triton: lists of what is kept, then one online softmax over them.

Three launches, and nothing waits for the device:

1. `lists.list_keys_kernel` merges adjacent kept key clusters into spans and cuts these into *full
   tiles* of BLOCK_N keys and, for what is left of each span, *chunks* of at most CHUNK keys.
   Several chunks share one tile, so a span pays for half a chunk of padding and not for half a
   tile.
2. `lists.list_items_kernel` writes the work list: (query cluster, first query), head by head so
   that the keys of one head stay in the L2 cache, and the longest first within a head.
3. An attend kernel takes the items of that list: full tiles, then tiles of chunks, then virtual
   keys. What is left of a query cluster after whole tiles may go to a second launch with smaller
   tiles.

There are several attend kernels, each a module here. `tiling.ATTEND_VARIANTS` names them, with
their tiles on each chip; What won a race on a chip (`kernels/winners.json`)
runs there where none is asked for, and else the portable one.
"""

from kernels.cluster_attention.fused.launch import (
    attend_with,
    cluster_attention,
    device_config,
    device_variants,
)
from kernels.cluster_attention.fused.tiling import (
    ATTEND_VARIANTS,
    Config,
    Tiling,
    config_for,
    variants_for,
)

__all__ = [
    "ATTEND_VARIANTS",
    "Config",
    "Tiling",
    "attend_with",
    "cluster_attention",
    "config_for",
    "device_config",
    "device_variants",
    "variants_for",
]
