"""Switching the method on for a pipeline, and off again without a trace."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from svg2.config import SVG2Config
from svg2.errors import ConfigError

if TYPE_CHECKING:  # `import svg2` stays light; what needs torch or diffusers is imported on use
    from svg2.hooks.session import Session
    from svg2.hooks.stats import RunStats
    from svg2.method.sample import CallSample


class Handle:
    """An enabled pipeline. As a context manager it disables on exit, whatever happens inside."""

    def __init__(self, config: SVG2Config | None, session: Session, undo: ExitStack) -> None:
        self.config = config
        self._session = session
        self._undo = undo

    @property
    def stats(self) -> RunStats:
        """Numbers of the latest generation, also after `disable`; a new one starts them afresh."""
        return self._session.recorder.snapshot()

    def disable(self) -> None:
        """Give the pipeline back as it was and free all memory; a second call does nothing."""
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

    Sets attention processors on the pipeline's own transformers; no class is changed. `observer`
    sees every sparse call right after it ran; what it raises stops the generation.

    Raises:
        ConfigError: the kernels that `config.impl` names can't run here.
        TypeError: the pipeline is none that SVG2 runs on.
        RuntimeError: SVG2 is on already, for this pipeline or for another that shares its
            transformer.
    """
    return _install(pipe, SVG2Config() if config is None else config, observer)


def measure_dense(pipe: Any) -> Handle:
    """Time the self-attention of a pipeline.

    Its output stays the same to the bit, but for joint models, whose text padding is dropped.

    Raises: as `enable`.
    """
    return _install(pipe, None, None)


def _install(
    pipe: Any, config: SVG2Config | None, observer: Callable[[CallSample], None] | None
) -> Handle:
    from kernels import ImplUnavailable, resolve_impl
    from svg2.hooks.families import Place, check_replaceable, family_of, transformers_of
    from svg2.hooks.session import Session
    from svg2.hooks.stats import StatsRecorder
    from svg2.hooks.steps import Tracker, set_on_instance

    if config is not None:
        try:
            resolve_impl(config.impl)
        except ImplUnavailable as error:
            raise ConfigError(str(error)) from error

    transformers = transformers_of(pipe)
    family = family_of(transformers[0]) if transformers else None
    layers = [] if family is None else [family.self_attentions(t) for t in transformers]
    if family is None or not all(layers):
        raise TypeError(f"SVG2 does not know the attention of a {type(pipe).__name__}.")
    for attention in (attention for attentions in layers for attention in attentions):
        check_replaceable(attention.module.processor, family)

    tracker = Tracker(pipe)
    recorder = StatsRecorder(max(map(len, layers)), layers[0][0].module.heads)
    session = Session(config, tracker, recorder, observer)
    with ExitStack() as undo:
        undo.callback(session.end_generation)
        for index, (transformer, attentions) in enumerate(zip(transformers, layers, strict=True)):
            tracker.follow(transformer, undo)
            for layer, attention in enumerate(attentions):
                place = Place(index, layer, attention.depth, attention.runs_first)
                attn = attention.module
                processor = family.processor(session, attn, place)
                set_on_instance(attn, "processor", processor, undo)
        # Every diffusers pipeline calls this as the last thing of a generation.
        set_on_instance(pipe, "maybe_free_model_hooks", _after_generation(pipe, session), undo)
        return Handle(config, session, undo.pop_all())
    raise AssertionError("unreachable: the block above returns or raises")


def _after_generation(pipe: Any, session: Session) -> Callable[[], None]:
    original = pipe.maybe_free_model_hooks

    def maybe_free_model_hooks() -> None:
        session.end_generation()
        original()

    return maybe_free_model_hooks
