"""Where a running pipeline is: the generation, step and guidance branch of each forward."""

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

COND, UNCOND, BATCHED = 0, 1, 2

# The names that diffusers' pipelines give to `transformer.cache_context`.
_BRANCHES = {
    "cond": COND,
    "pred_cond": COND,
    "uncond": UNCOND,
    "pred_uncond": UNCOND,
    "cond_uncond": BATCHED,
}
_FIRST_OTHER_BRANCH = 3
_MOST_FORWARDS = 8  # of one step; guidance takes up to four
_UNKNOWN_STEPS = (
    "SVG2 can't follow the steps of this pipeline, because the scheduler that it knows does not "
    "count them: enable SVG2 for the pipeline that you run, and after its scheduler was set."
)


@dataclass(frozen=True)
class Position:
    """The place of one transformer forward: denoising step of `num_steps`, guidance branch."""

    step: int
    num_steps: int
    branch: int


class Tracker:
    """Follows one pipeline by its scheduler; reads Python numbers, so waits for no device.

    The step is `pipe.scheduler.step_index`, None before the first one is done, relative to where
    the schedule was entered. The branch is the name that the pipeline gave to
    `transformer.cache_context`, or, where it gives none, the number of the forward within the
    step. Where `step_index` is missing or stays None, because the pipeline steps copies of its
    scheduler, the forwards of each branch are counted.

    Another pipeline with the same transformer and scheduler, as `from_pipe` makes it, is followed
    by its schedule.
    """

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self._grid: tuple[int, int, int] | None = None
        self._context: str | None = None
        self._other_branches: dict[str, int] = {}
        self._begin()

    def _begin(self) -> None:
        self._timesteps: object = None
        self._last_index: int | None = None
        self._first_index = 0
        self._step: int | None = None
        self._forwards_in_step = 0
        self._forwards_by_branch: dict[int, int] = {}

    def forget(self) -> None:
        """Treat the next forward as the first of a generation."""
        self._begin()

    def follow(self, transformer: Any, undo: ExitStack) -> None:
        """Learn the guidance branch from `transformer.cache_context`, until `undo` is closed."""
        if not hasattr(transformer, "cache_context"):
            return
        original = transformer.cache_context

        def cache_context(name: str, *args: Any, **kwargs: Any) -> AbstractContextManager[Any]:
            return self._within(name, original(name, *args, **kwargs))

        set_on_instance(transformer, "cache_context", Wrapper(cache_context, original), undo)

    def follow_grid(self, transformer: Any, patch: tuple[int, int, int], undo: ExitStack) -> None:
        """Learn the grid of tokens from the latents of each forward, until `undo` is closed.

        Args:
            patch: frames, rows and columns of latents per token.
        """

        def note(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            latents = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            frames, rows, columns = latents.shape[-3:]
            self._grid = (frames // patch[0], rows // patch[1], columns // patch[2])

        hook = Wrapper(note, _no_hook)
        undo.callback(transformer.register_forward_pre_hook(hook, with_kwargs=True).remove)

    def grid(self, n_tokens: int) -> tuple[int, int, int] | None:
        """Frames, rows and columns of the tokens of the current forward; None if not known."""
        if self._grid is None or math.prod(self._grid) != n_tokens:
            return None
        return self._grid

    @contextmanager
    def _within(self, name: str, context: AbstractContextManager[Any]) -> Iterator[Any]:
        outer, self._context = self._context, name
        try:
            with context as entered:
                yield entered
        finally:
            self._context = outer

    def begin_forward(self) -> tuple[Position, bool]:
        """The position of the forward that begins now, and whether it begins a generation.

        Raises:
            RuntimeError: the steps of the pipeline that runs can't be followed.
        """
        scheduler = self._pipe.scheduler
        timesteps = getattr(scheduler, "timesteps", None)
        counts_steps = hasattr(scheduler, "step_index")
        index: int | None = scheduler.step_index if counts_steps else None
        # Every set_timesteps() makes a new tensor. The index alone would miss a new generation
        # after one that was stopped within its first step, or had only one.
        is_new = (
            self._step is None
            or timesteps is not self._timesteps
            or (index is None and self._last_index is not None)
        )
        if is_new:
            self._begin()
            if index is not None and self._is_idle():  # a schedule at its start has no index yet
                raise RuntimeError(_UNKNOWN_STEPS)
        elif index is not None and self._last_index is None:
            self._first_index = index - 1  # above 0 where the schedule was entered midway
        self._timesteps = timesteps
        self._last_index = index

        is_counted = not counts_steps or (index is None and self._context is not None)
        num_steps = self._num_steps(timesteps)
        if is_counted:
            branch = self._branch(0)
            count = self._forwards_by_branch.get(branch, 0)
            self._forwards_by_branch[branch] = count + 1
            if counts_steps and count and getattr(self._pipe, "_current_timestep", None) is None:
                raise RuntimeError(_UNKNOWN_STEPS)
            # A long video is made part by part, each with all steps.
            step = self._step = count % num_steps if counts_steps and num_steps else count
        else:
            step = 0 if index is None else max(0, index - self._first_index)
            if step != self._step:
                self._step, self._forwards_in_step = step, 0
            branch = self._branch(self._forwards_in_step)
            self._forwards_in_step += 1
            if self._forwards_in_step > _MOST_FORWARDS:
                raise RuntimeError(_UNKNOWN_STEPS)
        return Position(step, max(num_steps, step + 1), branch), is_new

    def _is_idle(self) -> bool:
        """Whether this pipeline rests, so that another one runs its transformer."""
        return getattr(self._pipe, "_current_timestep", self) is None

    def _branch(self, nth_forward: int) -> int:
        if self._context is None:
            return nth_forward
        if self._context in _BRANCHES:
            return _BRANCHES[self._context]
        others = self._other_branches
        return others.setdefault(self._context, _FIRST_OTHER_BRANCH + len(others))

    def _num_steps(self, timesteps: Any) -> int:
        num_steps = getattr(self._pipe, "num_timesteps", None)
        if num_steps is None or self._is_idle():
            num_steps = 0 if timesteps is None else len(timesteps) - self._first_index
        return int(num_steps)


class Wrapper:
    """Stands in for a method of one instance; a copy or a pickle of that has its own method."""

    def __init__(self, call: Callable[..., Any], original: Callable[..., Any]) -> None:
        self._call = call
        self._original = original
        functools.update_wrapper(self, original)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return original_of_copy, (self._original,)


def _no_hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """What a copy of a followed transformer has in place of a hook of ours."""


def original_of_copy(original: Any) -> Any:
    """What takes the place of a stand-in of ours in a copy of a model: the copied original."""
    return original


def set_on_instance(target: Any, name: str, value: Any, undo: ExitStack) -> None:
    """Set `target.name` on the instance, and put back what was there when `undo` is closed.

    What someone else has set over it in the meantime is theirs and stays.
    """
    was_set = name in vars(target)
    before = vars(target).get(name)

    def put_back() -> None:
        if vars(target).get(name) is not value:
            return
        if was_set:
            setattr(target, name, before)
        else:
            delattr(target, name)

    setattr(target, name, value)
    undo.callback(put_back)
