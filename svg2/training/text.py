"""Stage `text`: teach the text encoder to read the grammar.

An encoder trained together with the denoiser read each word alone, and two objects exchanged
colours. Training on text alone takes minutes. After it, the embedding of each word of an object
contains all that the prompt says of that object. The encoder is then frozen, as in larger models.
"""

import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

from svg2.models.prompts import (
    CAMERAS,
    COLOURS,
    DIRECTIONS,
    GROUNDS,
    MATERIALS,
    MAX_BODIES,
    MOTIONS,
    SHAPES,
    SKIES,
    SMALL_WORDS,
    Scene,
    held_out,
    random_scene,
    tell,
    training_scene,
)
from svg2.training.data import load_checkpoint, save_checkpoint
from svg2.training.pipeline import TEXT_DIM, build_text_encoder, build_tokenizer

STEPS = 1500
_BATCH = 48
_LR = 1e-3  # T5 does not scale its dot products, so large steps can saturate its softmax
_WARM_STEPS = 100
_STRAY = "perhaps"  # stands for all words outside the grammar
_OF_BODY = {
    "colour": COLOURS,
    "shape": SHAPES,
    "motion": MOTIONS,
    "direction": ("", *DIRECTIONS),
    "material": MATERIALS,
}
_OF_SCENE = {"ground": GROUNDS, "sky": SKIES, "camera": CAMERAS}
_NONE = -100  # cross_entropy ignores these targets
_SIZES = (*map(len, _OF_BODY.values()), MAX_BODIES, *map(len, _OF_SCENE.values()))


def say(scene: Scene, rng: random.Random) -> list[tuple[str, int]]:
    """Words of a scene and the object of each: `tell`, at times with small words left out or a
    stray word added, as people type.
    """
    told = tell(scene, rng)
    if rng.random() < 0.1:
        told = [(word, owner) for word, owner in told if word not in SMALL_WORDS]
    if rng.random() < 0.1:
        told.insert(rng.randrange(len(told) + 1), (_STRAY, -1))
    return told


def write(scene: Scene, rng: random.Random) -> str:
    """The words of `say` as a prompt."""
    return " ".join(word for word, _ in say(scene, rng))


@dataclass(frozen=True)
class Reading:
    """Tokens of prompts, and per token the attributes to predict: an index each, or `_NONE`."""

    input_ids: Int[Tensor, "B L"]
    attention_mask: Int[Tensor, "B L"]
    targets: Int[Tensor, "B L told"]


def read(
    tokenizer: PreTrainedTokenizerFast, said: list[tuple[Scene, list[tuple[str, int]]]]
) -> Reading:
    """Tokens and targets of scenes with their words, as `say` gives them."""
    prompts = [" ".join(word for word, _ in words) for _, words in said]
    tokens = tokenizer(prompts, padding="longest", return_tensors="pt")
    targets = torch.full((*tokens.input_ids.shape, len(_SIZES)), _NONE)
    for row, (scene, words) in zip(targets, said, strict=True):
        whole = [known.index(getattr(scene, name)) for name, known in _OF_SCENE.items()]
        row[: len(words) + 1, -len(whole) :] = torch.tensor(whole)  # and the end of the prompt
        of_body = torch.tensor(
            [
                [*(known.index(getattr(body, name)) for name, known in _OF_BODY.items()), i]
                for i, body in enumerate(scene.bodies)
            ]
        )
        for at, (_, owner) in enumerate(words):
            if owner >= 0:
                row[at, : of_body.shape[1]] = of_body[owner]
    return Reading(tokens.input_ids, tokens.attention_mask, targets)


class Reader(nn.Module):
    """The text encoder, and a linear layer that predicts the attributes of each token."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = build_tokenizer()
        self.text_encoder = build_text_encoder(len(self.tokenizer))
        self.told = nn.Linear(TEXT_DIM, sum(_SIZES))

    def forward(self, reading: Reading) -> list[Float[Tensor, "B L options"]]:
        """Logits per attribute."""
        device = self.told.weight.device
        ids, mask = reading.input_ids.to(device), reading.attention_mask.to(device)
        hidden = self.text_encoder(ids, mask).last_hidden_state
        return list(self.told(hidden).split(_SIZES, dim=-1))

    def loss(self, reading: Reading) -> Float[Tensor, ""]:
        """Sum of the cross-entropies of all attributes."""
        targets = reading.targets.to(self.told.weight.device)
        return torch.stack(
            [
                F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=_NONE)
                for logits, wanted in zip(self(reading), targets.unbind(-1), strict=True)
            ]
        ).sum()

    @torch.no_grad()
    def accuracy(self, scenes: int, seed: int = 0) -> float:
        """Share of right answers on prompts of held-out scenes."""
        rng = random.Random(f"{seed}/reading")
        unseen: list[Scene] = []
        while len(unseen) < scenes:
            unseen += [scene for scene in [random_scene(rng)] if held_out(scene)]
        reading = read(self.tokenizer, [(scene, say(scene, rng)) for scene in unseen])
        answers = torch.stack([logits.argmax(-1).cpu() for logits in self(reading)], dim=-1)
        asked = reading.targets != _NONE
        return float((answers == reading.targets)[asked].float().mean())


def train_text(
    checkpoint: Path,
    *,
    steps: int = STEPS,
    minutes: float = float("inf"),
    seed: int = 0,
    device: str = "cpu",
) -> dict:
    """Train for `steps` steps, or at most `minutes`; write `checkpoint` and return its record.

    The record has the `accuracy` on held-out scenes.
    """
    torch.manual_seed(seed)
    rng, started = random.Random(seed), time.monotonic()
    model = Reader().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LR, weight_decay=0.0)
    record: dict = {"seed": seed, "log": [], "steps": 0}
    while record["steps"] < steps:
        seconds = time.monotonic() - started
        progress = max(record["steps"] / steps, seconds / (60 * minutes))
        if record["steps"] and progress >= 1:
            break
        rate = _LR * min(1.0, (record["steps"] + 1) / _WARM_STEPS) * max(0.02, 1 - progress)
        for group in optimizer.param_groups:
            group["lr"] = rate
        scenes = (training_scene(str(rng.random())) for _ in range(_BATCH))
        said = [(scene, say(scene, wording)) for scene, wording in scenes]
        loss = model.loss(read(model.tokenizer, said))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        record["steps"] += 1
        if record["steps"] % 100 == 0:
            told = float(loss.detach())
            record["log"].append([record["steps"], round(seconds), round(told, 4)])
            print(f"text step {record['steps']} {seconds:.0f} s loss {told:.4f}", flush=True)
    record |= {"seconds": time.monotonic() - started, "accuracy": model.accuracy(500, seed)}
    save_checkpoint(checkpoint, record, model=model.text_encoder.state_dict())
    return record


def load_text_encoder(checkpoint: Path) -> UMT5EncoderModel:
    """The encoder of a checkpoint of `train_text`."""
    encoder = build_text_encoder(len(build_tokenizer()))
    encoder.load_state_dict(load_checkpoint(checkpoint)[0]["model"])
    return encoder
