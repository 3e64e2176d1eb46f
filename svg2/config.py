"""The settings of the method, validated once, where they are made."""

import dataclasses
import math
import numbers
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

METHODS: Mapping[str, str] = {
    "svg2": "semantic clusters, top-p key selection, nothing for the skipped keys",
    "svg2-comp": "the same selection; skipped clusters count through their centroids",
}
"""Method name to one line of what it does, in the order in which they are shown."""

ImplChoice = Literal["auto", "reference", "fused"]

_MAX_CLUSTERS = 65_535  # labels are stored as uint16 in traces
_MAX_ITERS = 1_000


class ConfigError(ValueError):
    """A setting that cannot work; the message is one sentence fit to show to a person."""


@dataclass(frozen=True)
class SVG2Config:
    """Settings of SVG2; names and defaults as in the paper's Wan runs.

    Attributes:
        top_p: attention mass that the kept key clusters of each query cluster reach, in (0, 1]; 1
            keeps all.
        num_q_clusters, num_k_clusters: clusters per head; at most one per token.
        kmeans_iters_init, kmeans_iters_step: k-means iterations on a cold start and on later
            steps.
        warmup_fraction: share of the denoising steps that run dense at the start, in [0, 1].
        dense_layers: number of first layers that always run dense.
        min_keep_ratio: share of the key clusters kept whatever their mass, in [0, 1].
        compensate: let skipped clusters count through their centroids (method `svg2-comp`).
        seed: of the tokens that k-means starts from.
        impl: which kernels run: `auto`, `reference` or `fused`.

    Raises:
        ConfigError: a value has the wrong type or is out of range.
    Source: SVG2, arXiv 2505.18875; compensation after SVG-EAR, arXiv 2603.08982.
    """

    top_p: float = 0.9
    num_q_clusters: int = 100
    num_k_clusters: int = 500
    kmeans_iters_init: int = 50
    kmeans_iters_step: int = 2
    warmup_fraction: float = 0.2
    dense_layers: int = 0
    min_keep_ratio: float = 0.1
    compensate: bool = False
    seed: int = 0
    impl: ImplChoice = "auto"

    def __post_init__(self) -> None:
        self._real("top_p", 0.0, 1.0, above_low=True)
        self._integer("num_q_clusters", 1, _MAX_CLUSTERS)
        self._integer("num_k_clusters", 1, _MAX_CLUSTERS)
        self._integer("kmeans_iters_init", 1, _MAX_ITERS)
        self._integer("kmeans_iters_step", 1, _MAX_ITERS)
        self._real("warmup_fraction", 0.0, 1.0)
        self._integer("dense_layers", 0, 100_000)
        self._real("min_keep_ratio", 0.0, 1.0)
        if not isinstance(self.compensate, bool):
            raise ConfigError(f"compensate must be true or false, not {self.compensate!r}.")
        self._integer("seed", 0, 2**63 - 1)
        if self.impl not in get_args(ImplChoice):
            raise ConfigError(
                f"impl must be one of {', '.join(get_args(ImplChoice))}, not {self.impl!r}."
            )

    def _real(self, name: str, low: float, high: float, *, above_low: bool = False) -> None:
        value = getattr(self, name)
        bounds = f"{'above' if above_low else 'at least'} {low:g} and at most {high:g}"
        if (
            not _is(value, numbers.Real)
            or not low <= value <= high
            or (above_low and value == low)
        ):
            raise ConfigError(f"{name} must be a number {bounds}, not {value!r}.")
        object.__setattr__(self, name, float(value))

    def _integer(self, name: str, low: int, high: int) -> None:
        value = getattr(self, name)
        if not _is(value, numbers.Integral) or not low <= value <= high:
            raise ConfigError(
                f"{name} must be a whole number from {low} to {high}, not {value!r}."
            )
        object.__setattr__(self, name, int(value))

    def replace(self, **changes: Any) -> "SVG2Config":
        """A copy with some settings changed, validated again.

        Raises:
            ConfigError: a name is unknown or a value cannot work.
        """
        for name in changes:
            _check_name(name)
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values, by name."""
        return dataclasses.asdict(self)

    @classmethod
    def from_settings(
        cls, settings: Iterable[str], base: "SVG2Config | None" = None
    ) -> "SVG2Config":
        """Settings written as `name=value`, laid over `base`; the last of a name wins.

        Raises:
            ConfigError: a setting is no `name=value`, its name is unknown, or its value cannot
                work.
        """
        base = cls() if base is None else base
        changes: dict[str, Any] = {}
        for setting in settings:
            name, equals, text = (part.strip() for part in setting.partition("="))
            if not equals or not name:
                raise ConfigError(f"A setting is written name=value, not {setting!r}.")
            _check_name(name)
            if name == "compensate":
                raise ConfigError("compensate is decided by the method: svg2 or svg2-comp.")
            changes[name] = _parse(name, text, type(getattr(base, name)))
        return base.replace(**changes)

    def warmup_steps(self, num_steps: int) -> int:
        """How many of `num_steps` denoising steps run dense at the start."""
        return ceil_fraction(self.warmup_fraction, num_steps)

    def check_tokens(self, n_tokens: int) -> None:
        """Check the cluster counts against the number of video tokens.

        Raises:
            ConfigError: more clusters than tokens are asked for.
        """
        for name in ("num_q_clusters", "num_k_clusters"):
            count = getattr(self, name)
            if count > n_tokens:
                raise ConfigError(
                    f"{name} is {count}, but this video has only {n_tokens} tokens: "
                    "ask for fewer clusters, or a larger or longer video."
                )


def method_config(method: str, config: SVG2Config) -> SVG2Config:
    """`config` as `method` runs it; the method decides `compensate`.

    Raises:
        ConfigError: the method is unknown.
    """
    if method not in METHODS:
        raise ConfigError(f"Unknown method {method!r}: choose one of {', '.join(METHODS)}.")
    return config.replace(compensate=method == "svg2-comp")


def ceil_fraction(fraction: float, count: int) -> int:
    """`ceil(fraction * count)`, blind to the rounding of the product: 0.07 * 100 gives 7."""
    return math.ceil(fraction * count - 1e-9)


def _is(value: object, kind: type) -> bool:
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
