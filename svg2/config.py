"""The settings of the method. A config checks its values when it is made."""

import dataclasses
import math
import numbers
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from svg2.errors import ConfigError
from svg2.method.selection import METHODS, PAPER_METHOD, ROUTED_METHOD

__all__ = ["ROUTED_METHOD", "SVG2Config", "ceil_fraction", "parse_settings"]

ImplChoice = Literal["auto", "reference", "fused"]
StandInChoice = Literal["pairs", "means"]

_MAX_CLUSTERS = 65_535  # labels are stored as uint16 in traces
_MAX_ITERS = 1_000


@dataclass(frozen=True)
class SVG2Config:
    """Settings of the method; the defaults follow the paper's Wan runs.

    Attributes:
        top_p: attention mass that the kept key clusters of each query cluster must reach, in
            (0, 1]. At 1 every key cluster is kept.
        density: share of the query-key pairs that each sparse call keeps, in (0, 1], in place of
            `top_p` and `min_keep_ratio`: it is never passed, but each query cluster keeps at least
            one key cluster. None: `top_p` decides.
        num_q_clusters, num_k_clusters: clusters per head, at most one per token.
        kmeans_iters_init: k-means iterations on a cold start, without earlier centroids. From 10
            on, most of them run on small samples of the tokens, where the video has enough: 20
            iterations then cost as 6 on all tokens do, and are nearly as good as the paper's 50.
        kmeans_iters_step: k-means iterations on each later step.
        warmup_fraction: share of the denoising steps, from the first on, that run dense, in
            [0, 1].
        dense_layers: number of first layers that run dense in every step.
        min_keep_ratio: share of the key clusters that each query cluster keeps whatever their
            mass, in [0, 1].
        method: name of a row of `svg2.METHODS`.
        stand_ins: how routing by error stands for skipped clusters: `pairs`, with a key and a
            value for each pair of clusters, the closest; or `means`, with those of each key
            cluster, which takes little memory.
        seed: seed of the choice of tokens that k-means starts from.
        impl: kernels to run: `auto`, `reference` or `fused`.

    Raises:
        ConfigError: a value of the wrong type or out of range.
    Source: SVG2, arXiv 2505.18875.
    """

    top_p: float = 0.9
    density: float | None = None
    num_q_clusters: int = 100
    num_k_clusters: int = 500
    kmeans_iters_init: int = 20
    kmeans_iters_step: int = 2
    warmup_fraction: float = 0.2
    dense_layers: int = 0
    min_keep_ratio: float = 0.1
    method: str = PAPER_METHOD
    stand_ins: StandInChoice = "pairs"
    seed: int = 0
    impl: ImplChoice = "auto"

    def __post_init__(self) -> None:
        self._real("top_p", 0.0, 1.0, above_low=True)
        if self.density is not None:
            self._real("density", 0.0, 1.0, above_low=True)
        self._integer("num_q_clusters", 1, _MAX_CLUSTERS)
        self._integer("num_k_clusters", 1, _MAX_CLUSTERS)
        self._integer("kmeans_iters_init", 1, _MAX_ITERS)
        self._integer("kmeans_iters_step", 1, _MAX_ITERS)
        self._real("warmup_fraction", 0.0, 1.0)
        self._integer("dense_layers", 0, 100_000)
        self._real("min_keep_ratio", 0.0, 1.0)
        if not isinstance(self.method, str) or self.method not in METHODS:
            raise ConfigError(
                f"Unknown method {self.method!r}: choose one of {', '.join(METHODS)}."
            )
        self._integer("seed", 0, 2**63 - 1)
        self._choice("stand_ins", StandInChoice)
        self._choice("impl", ImplChoice)

    def _choice(self, name: str, kind: Any) -> None:
        if getattr(self, name) not in get_args(kind):
            choices = ", ".join(get_args(kind))
            raise ConfigError(f"{name} must be one of {choices}, not {getattr(self, name)!r}.")

    def _real(self, name: str, low: float, high: float, *, above_low: bool = False) -> None:
        value = getattr(self, name)
        bounds = f"{'above' if above_low else 'at least'} {low:g} and at most {high:g}"
        if (
            not _is_number(value, numbers.Real)
            or not low <= value <= high
            or (above_low and value == low)
        ):
            raise ConfigError(f"{name} must be a number {bounds}, not {value!r}.")
        object.__setattr__(self, name, float(value))

    def _integer(self, name: str, low: int, high: int) -> None:
        value = getattr(self, name)
        if not _is_number(value, numbers.Integral) or not low <= value <= high:
            raise ConfigError(
                f"{name} must be a whole number from {low} to {high}, not {value!r}."
            )
        object.__setattr__(self, name, int(value))

    def replace(self, **changes: Any) -> "SVG2Config":
        """A copy with some settings changed and all of them checked.

        Raises:
            ConfigError: an unknown name, or a value of the wrong type or out of range.
        """
        for name in changes:
            _check_name(name)
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values, by name."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "SVG2Config":
        """Settings from plain values by name, as traces store them.

        Old traces also hold `compensate`. It is ignored, because `method` implies it.

        Raises:
            ConfigError: an unknown name, or a value of the wrong type or out of range.
        """
        return cls().replace(**{k: v for k, v in values.items() if k != "compensate"})

    @property
    def compensates(self) -> bool:
        """Whether something stands for skipped key clusters."""
        return METHODS[self.method].compensates

    @property
    def predicts(self) -> bool:
        """Whether the method predicts the error of skipping a block."""
        return METHODS[self.method].rule == "error"

    def warmup_steps(self, num_steps: int) -> int:
        """Number of dense steps at the start of `num_steps` denoising steps."""
        return ceil_fraction(self.warmup_fraction, num_steps)

    def check_tokens(self, n_tokens: int) -> None:
        """Check the cluster counts against the number of video tokens.

        Raises:
            ConfigError: more clusters than tokens.
        """
        for name in ("num_q_clusters", "num_k_clusters"):
            count = getattr(self, name)
            if count > n_tokens:
                raise ConfigError(
                    f"{name} is {count}, but this video has only {n_tokens} tokens: "
                    "ask for fewer clusters, or a larger or longer video."
                )


def parse_settings(settings: Iterable[str]) -> dict[str, Any]:
    """Parse settings written as `name=value` into values by name.

    The last value of a name wins. Ranges are checked later, by `SVG2Config`.

    Raises:
        ConfigError: a setting that is not of the form `name=value`, an unknown name, or text in
            place of a number.
    """
    defaults = SVG2Config()
    changes: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = (part.strip() for part in setting.partition("="))
        if not equals or not name:
            raise ConfigError(f"A setting is written name=value, not {setting!r}.")
        _check_name(name)
        default = getattr(defaults, name)
        if default is None and text.lower() == "none":
            changes[name] = None
        else:
            changes[name] = _parse(name, text, float if default is None else type(default))
    return changes


def ceil_fraction(fraction: float, count: int) -> int:
    """`ceil(fraction * count)` without floating-point error: 0.07 * 100 gives 7, not 8."""
    return math.ceil(fraction * count - 1e-9)


def _is_number(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _check_name(name: str) -> None:
    names = [field.name for field in dataclasses.fields(SVG2Config)]
    if name not in names:
        raise ConfigError(f"Unknown setting {name!r}: choose one of {', '.join(names)}.")


def _parse(name: str, text: str, kind: type) -> Any:
    try:
        return kind(text)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise ConfigError(f"{name} must be {what}, not {text!r}.") from None
