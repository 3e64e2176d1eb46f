"""One video on several processes: diffusers' context parallelism, with plans of our own.

Tokens are split among the processes everywhere but in attention, where `svg2.hooks.ulysses`
swaps them for heads. diffusers 0.42 has a plan for Wan alone, and its `enable_parallelism`
divides by the number of GPUs, of which a CPU has none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig, ParallelConfig
from diffusers.hooks.context_parallel import apply_context_parallel, remove_context_parallel
from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput

from svg2.errors import RequestError
from svg2.hooks.families import Family, SelfAttention, family_of, transformers_of
from svg2.hooks.steps import set_on_instance

_TOKENS = ContextParallelInput(split_dim=1, expected_dims=3)
_ROTARY = ContextParallelInput(split_dim=1, expected_dims=4, split_output=True)
_GATHER = ContextParallelOutput(gather_dim=1, expected_dims=3)

_WAN_PLAN = {
    "": {"timestep": ContextParallelInput(split_dim=1, expected_dims=2)},  # one time per token
    "rope": {0: _ROTARY, 1: _ROTARY},
    "blocks.0": {"hidden_states": _TOKENS},
    "proj_out": _GATHER,
}
_VACE_PLAN = {
    "rope": {0: _ROTARY, 1: _ROTARY},
    "vace_blocks.0": {"hidden_states": _TOKENS, "control_hidden_states": _TOKENS},
    "blocks.0": {"hidden_states": _TOKENS},
    "proj_out": _GATHER,
}
_HUNYUAN_ROTARY = ContextParallelInput(split_dim=0, expected_dims=2, split_output=True)
_HUNYUAN_PLAN = {
    "rope": {0: _HUNYUAN_ROTARY, 1: _HUNYUAN_ROTARY},
    "x_embedder": {0: ContextParallelInput(split_dim=1, expected_dims=3, split_output=True)},
    "proj_out": _GATHER,
}


@contextmanager
def context_parallel(pipe: Any) -> Iterator[None]:
    """Share the work of every forward among the processes of the default group, until it ends.

    All processes make the same call, and each gets the whole result.

    Raises:
        RequestError: SVG2 does not support the pipeline, its model can't be split, or its heads
            can't be shared evenly.
    """
    world = dist.get_world_size()
    transformers = transformers_of(pipe)
    with ExitStack() as undo:
        for transformer in transformers:
            family = family_of(transformer)
            if family is None:
                raise RequestError(
                    "SVG2 does not support this pipeline: the attention of a "
                    f"{type(pipe).__name__} is unknown."
                )
            attentions = family.self_attentions(transformer)
            heads = attentions[0].module.heads
            if heads % world:
                raise RequestError(f"{heads} heads can't be shared among {world} processes.")
            _split(transformer, family, attentions, _parallel_config(transformer.device), undo)
        yield


def _parallel_config(device: torch.device) -> ParallelConfig:
    rank, world = dist.get_rank(), dist.get_world_size()
    config = ParallelConfig(context_parallel_config=ContextParallelConfig(ulysses_degree=world))
    mesh = dist.init_device_mesh(device.type, (1, world), mesh_dim_names=("ring", "ulysses"))
    config.setup(rank, world, device, mesh=mesh)
    return config


def _split(
    transformer: Any,
    family: Family,
    attentions: list[SelfAttention],
    config: ParallelConfig,
    undo: ExitStack,
) -> None:
    plan = _plan(transformer)
    split_processor = family.split_processor
    for attention in attentions:
        module = attention.module
        if split_processor is None:
            set_on_instance(module.processor, "_parallel_config", config, undo)
        else:  # the stock one would count the prompt once per process
            processor: Any = split_processor()
            processor._attention_backend = module.processor._attention_backend
            processor._parallel_config = config
            set_on_instance(module, "processor", processor, undo)
    apply_context_parallel(transformer, config.context_parallel_config, plan)
    undo.callback(remove_context_parallel, transformer, plan)


def _plan(transformer: Any) -> dict[str, Any]:
    config = transformer.config
    if hasattr(transformer, "vace_blocks"):
        return _VACE_PLAN
    if hasattr(transformer, "blocks") and "image_condition_type" not in config:
        return _WAN_PLAN
    replaces_tokens = config.get("image_condition_type") == "token_replace"
    if hasattr(transformer, "single_transformer_blocks") and not replaces_tokens:
        return _HUNYUAN_PLAN
    raise RequestError(
        f"A {type(transformer).__name__} of this kind can't be split over processes: only the "
        "first of them has the tokens of its first frame."
        if replaces_tokens
        else f"A {type(transformer).__name__} can't be split over processes."
    )
