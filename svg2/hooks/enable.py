"""Switching the method on for a pipeline, and off again without a trace."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from svg2.config import SVG2Config
from svg2.errors import ConfigError

if TYPE_CHECKING:  # `import svg2` stays light; what needs torch or diffusers is imported on use
    from torch import Tensor

    from svg2.hooks.families import Family, SelfAttention
    from svg2.hooks.session import Session
    from svg2.hooks.stats import RunStats
    from svg2.method.call_sample import CallSample


class Handle:
    """An enabled pipeline. As a context manager it disables on exit, whatever happens inside."""

    def __init__(self, config: SVG2Config | None, session: Session, undo: ExitStack) -> None:
        self.config = config
        self._session = session
        self._undo = undo

    @property
    def stats(self) -> RunStats:
        """Numbers of the latest generation, also after `disable`; a new one starts them afresh.

        Everything is put together anew at each reading, which waits for the device.
        """
        return self._session.recorder.snapshot()

    @property
    def step_density(self) -> tuple[float, ...]:
        """Mean density of each step so far in which attention ran; a dense call counts 1.

        Unlike `stats`, this reads only the calls since the last reading.
        """
        return self._session.recorder.step_density()

    def disable(self) -> None:
        """Give the pipeline back as it was and free the centroids; a second call does nothing."""
        self._undo.close()

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *exception: object) -> None:
        self.disable()


def enable(
    pipe: Any,
    config: SVG2Config | None = None,
    *,
    observer: Callable[[CallSample], None] | None = None,
) -> Handle:
    """Run the self-attention of a diffusers video pipeline as SVG2, until the handle is disabled.

    Sets attention processors on the pipeline's own transformers, compiled or not; no class is
    changed. `observer` sees every sparse call right after its attention ran, but none of methods
    without clusters; what it raises stops the generation. A copy of the pipeline or its
    transformer has the stock processors.

    Raises:
        ConfigError: the kernels that `config.impl` names can't run here.
        TypeError: SVG2 does not support the pipeline, or found processors that are not stock.
        RuntimeError: SVG2 is on already, for this pipeline or for another that shares its
            transformer.
    """
    return _install(pipe, SVG2Config() if config is None else config, observer)


def measure_dense(pipe: Any) -> Handle:
    """Time the self-attention of a pipeline, which stays dense, until the handle is disabled.

    The output stays the same to the bit, except for joint models: their prompt's padding is
    dropped before attention.

    Raises: as `enable`.
    """
    return _install(pipe, None, None)


def check_kernels(config: SVG2Config) -> None:
    """Check that the kernels which `config.impl` names can run in this process at all.

    It needs no pipeline, so that it can come before a model is loaded.

    Raises:
        ConfigError: they can't.
    """
    _resolve(config)


def check_runnable(pipe: Any, config: SVG2Config) -> None:
    """Check that a pipeline can run with a config where it is now, before a long dense run.

    Raises:
        ConfigError: the kernels that `config.impl` names can't run there, or take fewer clusters.
        TypeError, RuntimeError: as `enable`.
    """
    _, layers = _replaceable(pipe)
    _check_clusters(config, _resolve(config, _queries(pipe, layers[0][0])))


def _resolve(config: SVG2Config, q: Tensor | None = None) -> str:
    """The implementation of the kernels for such queries; without them, in this process."""
    from kernels import ImplUnavailable, resolve_impl

    try:
        return resolve_impl(config.impl, q, is_matmul=q is not None)
    except ImplUnavailable as error:
        raise ConfigError(str(error)) from error


def _check_clusters(config: SVG2Config, impl: str) -> None:
    from kernels import MAX_K_CLUSTERS

    most = MAX_K_CLUSTERS - 1  # a prompt that attends with the video is one cluster more
    if impl == "fused" and config.num_k_clusters > most:
        raise ConfigError(
            f"num_k_clusters is {config.num_k_clusters}, and the GPU kernels take at most "
            f"{most}: ask for fewer clusters, or for impl=reference."
        )


def _queries(pipe: Any, attention: SelfAttention) -> Tensor:
    """No queries, with the device, dtype and head dimension of the pipeline's own."""
    import torch

    from svg2.hooks.families import transformers_of

    module, transformer = attention.module, transformers_of(pipe)[0]
    # An offloaded transformer computes elsewhere than it waits.
    device = getattr(pipe, "_execution_device", transformer.device)
    shape = (1, module.heads, 0, module.inner_dim // module.heads)
    return torch.empty(shape, dtype=transformer.dtype, device=device)


def _replaceable(pipe: Any) -> tuple[Family, list[list[SelfAttention]]]:
    """The pipeline's family, and per transformer the self-attentions that ours can replace."""
    from svg2.hooks.families import check_replaceable, family_of, transformers_of

    transformers = transformers_of(pipe)
    family = family_of(transformers[0]) if transformers else None
    layers = [] if family is None else [family.self_attentions(t) for t in transformers]
    if family is None or not all(layers):
        raise TypeError(
            f"SVG2 does not support this pipeline: the attention of a {type(pipe).__name__} is "
            "unknown."
        )
    for attention in (attention for attentions in layers for attention in attentions):
        check_replaceable(getattr(attention.module, "processor", None), family)
    return family, layers


def _install(
    pipe: Any, config: SVG2Config | None, observer: Callable[[CallSample], None] | None
) -> Handle:
    from svg2.hooks.families import Place, transformers_of
    from svg2.hooks.session import Session
    from svg2.hooks.stats import StatsRecorder
    from svg2.hooks.steps import Tracker, Wrapper, set_on_instance

    family, layers = _replaceable(pipe)
    if config is not None:
        # A pipeline may move to the GPU later, so `fused` need not be able to run it yet.
        q = None if config.impl == "fused" else _queries(pipe, layers[0][0])
        _check_clusters(config, _resolve(config, q))

    transformers = transformers_of(pipe)
    tracker = Tracker(pipe)
    recorder = StatsRecorder(max(map(len, layers)), layers[0][0].module.heads)
    session = Session(config, tracker, recorder, observer)
    with ExitStack() as undo:
        undo.callback(session.end_generation)
        for index, (transformer, attentions) in enumerate(zip(transformers, layers, strict=True)):
            tracker.follow(transformer, undo)
            tracker.follow_grid(transformer, family.patch(transformer), undo)
            for layer, attention in enumerate(attentions):
                place = Place(index, layer, attention.depth, attention.runs_first)
                attn = attention.module
                processor = family.processor(session, attn, place)
                set_on_instance(attn, "processor", processor, undo)
        # Pipelines call this as the last thing of a generation. Modular ones have no such end:
        # there, the next generation or `disable` frees the centroids.
        if hasattr(pipe, "maybe_free_model_hooks"):
            free_hooks = pipe.maybe_free_model_hooks

            def maybe_free_model_hooks() -> None:
                session.end_generation()
                free_hooks()

            wrapper = Wrapper(maybe_free_model_hooks, free_hooks)
            set_on_instance(pipe, "maybe_free_model_hooks", wrapper, undo)
        return Handle(config, session, undo.pop_all())
    raise AssertionError("unreachable: the block above returns or raises")
