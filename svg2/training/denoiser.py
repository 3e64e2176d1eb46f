"""The denoiser in training: transformer, frozen text encoder, and their checkpoints."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from diffusers import WanTransformer3DModel
from jaxtyping import Float
from torch import Tensor, nn
from transformers import UMT5EncoderModel

from svg2.models.prompts import rule, vocabulary
from svg2.training.data import TrainingError, load_checkpoint
from svg2.training.layout import Guide
from svg2.training.pipeline import (
    SIZES,
    build_text_encoder,
    build_tokenizer,
    build_transformer,
    words_of,
)
from svg2.training.views import Places


class Denoiser(nn.Module):
    """Transformer, its frozen text encoder for a vocabulary, and the guide of the training."""

    def __init__(
        self,
        words: Sequence[str] = vocabulary(),
        transformer: WanTransformer3DModel | None = None,
    ) -> None:
        super().__init__()
        self.words = tuple(words)
        self.tokenizer = build_tokenizer(self.words)
        self.text_encoder = build_text_encoder(len(self.tokenizer)).requires_grad_(False)
        self.transformer = transformer or build_transformer()
        config = self.transformer.config
        self.guide = Guide(config.num_attention_heads * config.attention_head_dim)

    @property
    def record(self) -> dict:
        """What a checkpoint stores in order to build the model again."""
        config = self.transformer.config
        return {"words": list(self.words), "sizes": {name: config[name] for name in SIZES}}

    def encode(self, prompts: list[str], length: int) -> Float[Tensor, "B length text"]:
        """Embeddings as in `WanPipeline`: zeros after the end of each prompt."""
        tokens = self.tokenizer(prompts, padding="longest", return_tensors="pt")
        mask = tokens.attention_mask.to(self.transformer.device)
        ids = tokens.input_ids.to(self.transformer.device)
        hidden = self.text_encoder(ids, mask).last_hidden_state * mask[:, :, None]
        return nn.functional.pad(hidden, (0, 0, 0, length - hidden.shape[1]))

    def forward(
        self, noisy: Tensor, sigma: Tensor, prompts: list[str], places: Places, length: int
    ) -> tuple[Tensor, Tensor]:
        """Velocity at `places`, and the hidden tokens `[B, N, inner]` that the guide reads."""
        with positions(self.transformer, places), _tap(self.transformer) as inside:
            velocity = self.transformer(
                noisy, sigma * 1000, self.encode(prompts, length), return_dict=False
            )[0]
        return velocity, inside[0]


@contextmanager
def positions(transformer: WanTransformer3DModel, places: Places) -> Iterator[None]:
    """Give a transformer's rotary embedding the true positions of the tokens at `places`."""
    rope = transformer.rope

    def at_places(hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        whole = hidden_states.new_empty((1, 1, *places.grid))
        index = places.index.to(hidden_states.device)
        cos, sin = (table[0][index] for table in type(rope).forward(rope, whole))
        return cos, sin

    rope.forward = at_places
    try:
        yield
    finally:
        del rope.forward


@contextmanager
def _tap(transformer: WanTransformer3DModel) -> Iterator[list[Tensor]]:
    """A list that receives the output of the first half of the blocks."""
    tokens: list[Tensor] = []
    block = transformer.blocks[len(transformer.blocks) // 2]
    handle = block.register_forward_pre_hook(lambda _, args: tokens.append(args[0]))
    try:
        yield tokens
    finally:
        handle.remove()


def load_shipped(folder: Path) -> Denoiser:
    """The model of a shipped pipeline, in fp32."""
    transformer = WanTransformer3DModel.from_pretrained(folder, subfolder="transformer")
    model = Denoiser(words_of(folder), transformer.float())
    text_encoder = UMT5EncoderModel.from_pretrained(folder, subfolder="text_encoder")
    model.text_encoder.load_state_dict(text_encoder.state_dict())
    return model


def open_denoiser(source: Path) -> tuple[Denoiser, dict]:
    """The model of a shipped pipeline's folder or of a checkpoint, and what either notes of it.

    Raises:
        TrainingError: other words or other held-out combinations than those of today.
    """
    if source.is_dir():
        model, record = load_shipped(source), json.loads((source / "lab.json").read_text())
    else:
        model, record = load_denoiser(source)
    check_rule(source, model.words, record.get("rule"))
    return model, record


def check_rule(source: Path, words: Sequence[str], trained_by: str | None) -> None:
    """Check that weights were trained on the words and the held-out combinations of today.

    Raises:
        TrainingError: they use other words, or other combinations were held out.
    """
    if set(words) != set(vocabulary()):
        problem = "knows other words than the grammar"
    elif trained_by != rule():
        problem = "was trained with other combinations held out"
    else:
        return
    raise TrainingError(f"{source} {problem}, so it can't be continued: train from the start.")


def load_training(checkpoint: Path) -> tuple[Denoiser, dict, dict[str, Tensor]]:
    """Model, record and averaged weights of a checkpoint, to continue its training."""
    states, record = load_checkpoint(checkpoint)
    model = Denoiser(record["words"], build_transformer(**record.get("sizes", SIZES)))
    model.load_state_dict(states["model"])
    return model, record, states["ema"]


def load_denoiser(checkpoint: Path) -> tuple[Denoiser, dict]:
    """The model with the averaged weights of a checkpoint, and its record."""
    model, record, averages = load_training(checkpoint)
    for name, p in model.named_parameters():
        p.data.copy_(averages[name])
    return model.eval(), record
