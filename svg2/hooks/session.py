"""One enabled pipeline at work: dense or sparse, for every self-attention call."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from svg2.config import SVG2Config
from svg2.hooks.stats import StatsRecorder
from svg2.hooks.steps import Position, Tracker
from svg2.hooks.ulysses import HeadShare
from svg2.method.call import CallResult, TextTokens, sparse_call
from svg2.method.call_sample import CallSample
from svg2.method.clustering import CacheKey, CentroidCache
from svg2.method.plan import Plan
from svg2.method.stages import DENSE_STAGE, StageClock

Observer = Callable[[CallSample], None]
_Output = TypeVar("_Output")  # a tensor, or one for the video and one for the text


@dataclass(frozen=True)
class BatchPart:
    """Which part of its batch a sparse attention computes: sample `index` of `count` by itself.

    The whole batch at once is part 0 of 1.
    """

    index: int = 0
    count: int = 1

    @property
    def is_last(self) -> bool:
        return self.index == self.count - 1


WHOLE_BATCH = BatchPart()


class Session:
    """What all processors of one `enable` share, or of one `measure_dense` (no config)."""

    def __init__(
        self,
        config: SVG2Config | None,
        tracker: Tracker,
        recorder: StatsRecorder,
        observer: Observer | None,
    ) -> None:
        self.config = config
        self.tracker = tracker
        self.recorder = recorder
        self.cache = CentroidCache()
        self._observer = observer
        self._position = Position(step=0, num_steps=0, branch=0)
        self._transformer = 0
        self._text_lengths: dict[int, tuple[int, ...]] = {}
        self._parts: list[_Shares] = []  # of the call that runs now

    def text_lengths(
        self, attention_mask: Tensor | None, batch: int, n_text: int
    ) -> tuple[int, ...]:
        """Real prompt tokens of each sample in the current guidance branch.

        `attention_mask` is true for the tokens that count, and its last `n_text` places are the
        text's; None counts all. It is read once per guidance branch of a generation, because
        reading waits for the device.
        """
        branch = self._position.branch
        if attention_mask is None:
            lengths = (n_text,) * batch
        elif branch in self._text_lengths:
            return self._text_lengths[branch]
        else:
            n_others = attention_mask.shape[-1] - n_text
            lengths = tuple((attention_mask.flatten(1).sum(-1) - n_others).tolist())
        self._text_lengths[branch] = lengths
        self.recorder.text(max(lengths))
        return lengths

    def end_generation(self) -> None:
        """Free the centroids; the statistics stay until the next generation begins."""
        self.cache.clear()
        self.tracker.forget()

    def begin_forward(self, transformer: int, n_tokens: int) -> None:
        """Note that a forward of the pipeline's nth transformer begins.

        Raises:
            ConfigError: there are more clusters than tokens.
        """
        before = self._position
        self._position, is_new = self.tracker.begin_forward()
        if is_new:
            self.cache.clear()
            self._text_lengths.clear()
            self.recorder.reset()
        elif self._position.step < before.step:  # the next part of a long video
            self.cache.clear()
        if transformer != self._transformer:
            self.cache.keep_only(transformer)
            self._transformer = transformer
        if self.config is not None:
            self.config.check_tokens(n_tokens)
        self.recorder.forward(self._position.num_steps, n_tokens)

    def runs_dense(self, depth: int) -> bool:
        """Whether a layer of the current forward runs dense: in the warm-up, or for its depth."""
        config, position = self.config, self._position
        if config is None or depth < config.dense_layers:
            return True
        return position.step < config.warmup_steps(position.num_steps)

    def dense(self, layer: int, attend: Callable[[], _Output]) -> _Output:
        """Run the dense self-attention of one layer, with its attention kernel timed.

        `attend` may call the kernel several times, for one sample each: it is one dense call.
        """
        with _AttentionTimer() as timer:
            out = attend()
        self.recorder.dense_call(self._position, layer, timer.clock)
        return out

    def sparse(
        self,
        layer: int,
        q: Float[Tensor, "B H N D"],
        k: Float[Tensor, "B H N D"],
        v: Float[Tensor, "B H N D"],
        clock: StageClock,
        text: TextTokens | None = None,
        share: HeadShare | None = None,
        part: BatchPart = WHOLE_BATCH,
    ) -> CallResult:
        """Sparse attention of one layer, noted in the statistics and shown to the observer.

        Where the samples of a batch attend one by one, each `part` comes here, in order and with
        one clock. They are one call: it is noted after the last of them, with densities averaged,
        and the observer sees the tensors of that last sample.

        With `share` this process has some of the heads, and the numbers noted are of all heads.
        """
        assert self.config is not None
        position = self._position
        heads = None if share is None else (share.own.start, share.own.stop, share.heads)
        place = (self._transformer, layer, position.branch)
        key = CacheKey(*place, tuple(q.shape), part.index, heads)
        result = sparse_call(
            *(q, k, v, self.config, self.cache.entry(key), clock, text),
            grid=self.tracker.grid(q.shape[2]),
            sum_heads=None if share is None else share.sum,
        )
        if part.index == 0:
            self._parts = []
        self._parts.append(_Shares.of(result.plan, share))
        if part.is_last:
            self._note(layer, (q, k, v), result.plan, clock)
        clock.skip()
        return result

    def _note(
        self, layer: int, qkv: tuple[Tensor, Tensor, Tensor], plan: Plan, clock: StageClock
    ) -> None:
        """Add a sparse call to the statistics, and show it to the observer."""
        position, shares = self._position, _Shares.mean(self._parts)
        self.recorder.sparse_call(
            position,
            layer,
            impl=plan.k_clusters.impl,
            density=shares.density,
            compute_density=shares.compute_density,
            overhead_density=shares.overhead_density,
            kept_mass=shares.kept_mass,
            clock=clock,
        )
        self.recorder.cache_bytes(self.cache.nbytes)
        if self._observer is not None and plan.pairs is None:
            started = time.perf_counter()
            self._observer(_call_sample(position, layer, qkv, plan, shares, clock))
            self.recorder.observed(time.perf_counter() - started)


@dataclass(frozen=True)
class _Shares:
    """Shares of one sparse attention per head of the model, means over the batch."""

    density: Float[Tensor, "H"]
    compute_density: Float[Tensor, "H"]
    kept_mass: Float[Tensor, "H"]
    overhead_density: float

    @classmethod
    def of(cls, plan: Plan, share: HeadShare | None) -> "_Shares":
        def by_head(x: Tensor) -> Tensor:
            x = x.mean(0)
            return x if share is None else share.gather(x, dim=0)

        return cls(
            density=by_head(plan.density()),
            compute_density=by_head(plan.compute_density()),
            kept_mass=by_head(plan.kept_mass()),
            overhead_density=plan.overhead_density(),
        )

    @classmethod
    def mean(cls, parts: "list[_Shares]") -> "_Shares":
        def mean(name: str) -> Tensor:
            return torch.stack([getattr(part, name) for part in parts]).mean(0)

        overhead = sum(part.overhead_density for part in parts) / len(parts)
        return cls(mean("density"), mean("compute_density"), mean("kept_mass"), overhead)


def _call_sample(
    position: Position,
    layer: int,
    qkv: tuple[Tensor, Tensor, Tensor],
    plan: Plan,
    shares: _Shares,
    clock: StageClock,
) -> CallSample:
    q, k, v = qkv
    return CallSample(
        step=position.step,
        layer=layer,
        branch=position.branch,
        density=shares.density,
        kept_mass=shares.kept_mass,
        q=q,
        k=k,
        v=v,
        q_labels=plan.q_clusters.labels,
        k_labels=plan.k_clusters.labels,
        q_centroids=plan.q_clusters.centroids,
        k_centroids=plan.k_clusters.centroids,
        q_sizes=plan.q_clusters.sizes,
        k_sizes=plan.k_clusters.sizes,
        P=plan.P,
        kept=plan.kept,
        error=plan.error,
        clock=clock,
    )


class _AttentionTimer(TorchFunctionMode):
    """Times every scaled dot product attention called under it, and changes nothing.

    `clock` holds their sum. It stays None where there was no such call, because the attention
    backend in use is another kernel.
    """

    def __init__(self) -> None:
        super().__init__()
        self.clock: StageClock | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query = args[0] if args else kwargs["query"]
        if self.clock is None:
            self.clock = StageClock(query.device)
        else:
            self.clock.skip()
        out = func(*args, **kwargs)
        self.clock.mark(DENSE_STAGE)
        return out
