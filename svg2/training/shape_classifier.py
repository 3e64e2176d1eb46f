"""A small classifier of a body's shape, trained on crops of rendered frames."""

import random
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray
from torch import Tensor, nn

from svg2.models.prompts import SHAPES, Scene, random_scene
from svg2.training.clip_reader import HUES, object_mask
from svg2.training.data import AT_ONCE
from svg2.training.placement import Placement, place
from svg2.training.render import render

_SIDE = 40
_FRAME = 144  # pixels of the rendered frames that crops are taken from
_VIEWS = 5  # frames of a clip that vote


def crop(
    frame: UInt8[ndarray, "H W 3"], mask: Bool[ndarray, "H W"]
) -> Float[ndarray, "2 S S"] | None:
    """Brightness within `mask`, and the mask, at a fixed scale; None if it is nearly empty."""
    ys, xs = np.nonzero(mask)
    if len(xs) < 12:
        return None
    side = 1.15 * max(np.ptp(xs) + 1, np.ptp(ys) + 1) / _SIDE
    middle_x, middle_y = (xs.min() + xs.max()) / 2, (ys.min() + ys.max()) / 2
    matrix = np.array(
        [[side, 0, middle_x - side * _SIDE / 2], [0, side, middle_y - side * _SIDE / 2]]
    )
    gray = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    gray = gray / max(float(gray[mask].mean()), 1e-3) * mask
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    both = [cv2.warpAffine(a, matrix, (_SIDE, _SIDE), flags=flags) for a in (gray, mask * 1.0)]
    return np.stack(both).astype(np.float32)


class ShapeNet(nn.Module):
    """A convolutional classifier with about 42,000 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(2, 24, 3, 2, 1), nn.SiLU()),
            *(nn.Conv2d(24, 40, 3, 2, 1), nn.SiLU()),
            *(nn.Conv2d(40, 64, 3, 2, 1), nn.SiLU()),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(64 * 25, len(SHAPES)),
        )

    def forward(self, crops: Float[Tensor, "B 2 S S"]) -> Float[Tensor, "B shapes"]:
        return self.body(crops)

    def shape_of(
        self, frames: UInt8[ndarray, "F H W 3"], masks: Bool[ndarray, "F H W"]
    ) -> str | None:
        """The shape of a body by a vote of the frames that show most of it; None without any."""
        largest = np.argsort(-masks.sum(axis=(1, 2)), kind="stable")[:_VIEWS]
        crops = [crop(frames[i], masks[i]) for i in sorted(largest)]
        crops = [c for c in crops if c is not None]
        if not crops:
            return None
        with torch.no_grad():
            votes = self(torch.from_numpy(np.stack(crops))).log_softmax(-1).mean(0)
        return SHAPES[int(votes.argmax())]


def load_or_train(path: Path, device: str = "cpu", crops: int = 6000) -> tuple[ShapeNet, float]:
    """The classifier of a file, and its share of right answers on unseen frames.

    Without the file, the classifier is trained and saved there.

    Args:
        crops: number of crops to train on.
    """
    net = ShapeNet()
    if path.exists():
        saved = torch.load(path, map_location="cpu", weights_only=True)
        net.load_state_dict(saved["model"])
        return net.eval(), float(saved["accuracy"])
    accuracy = train(net, *rendered_crops(crops, "shapes", device))
    part = path.with_suffix(".part")
    torch.save({"model": net.state_dict(), "accuracy": accuracy}, part)
    part.replace(path)
    return net, accuracy


def rendered_crops(count: int, seed: str, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Crops `[count, 2, S, S]` of single rendered frames, and the index of each one's shape."""
    crops, labels, drawn = [], [], 0
    at_once = 8 * AT_ONCE[torch.device(device).type]
    while len(crops) < count:
        scenes, placements = [], []
        for i in range(drawn, drawn + at_once):
            scene, placement = _one_frame(random.Random(f"{seed}/{i}"))
            scenes.append(scene)
            placements.append(placement)
        drawn += at_once
        frames = render(scenes, placements, _FRAME, _FRAME, device=device).frames[:, 0]
        for scene, frame in zip(scenes, frames.cpu().numpy(), strict=True):
            for body in scene.bodies:
                found = crop(frame, object_mask(frame, body.colour))
                if found is not None:
                    crops.append(found)
                    labels.append(SHAPES.index(body.shape))
    return torch.from_numpy(np.stack(crops[:count])), torch.tensor(labels[:count])


def _one_frame(rng: random.Random) -> tuple[Scene, Placement]:
    """One frame of a random scene without white bodies, which the judge cannot see."""
    scene = random_scene(rng)
    while any(body.colour not in HUES for body in scene.bodies):
        scene = random_scene(rng)
    whole = place(scene, 17, rng)
    at = slice(rng.randrange(17), None)
    only = slice(at.start, at.start + 1)
    return scene, Placement(
        whole.sizes,
        whole.centres[:, only],
        whole.turns[:, only],
        whole.light,
        whole.eye[only],
        whole.yaw[only],
    )


def train(net: ShapeNet, crops: Tensor, labels: Tensor, epochs: int = 30) -> float:
    """Train on all crops but the last tenth; return the share of right answers on that tenth."""
    torch.manual_seed(0)
    net.apply(lambda m: m.reset_parameters() if hasattr(m, "reset_parameters") else None)
    unseen = max(1, len(crops) // 10)
    seen, answers = crops[:-unseen], labels[:-unseen]
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.02)
    steps = epochs * (len(seen) // 64 + 1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    net.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(seen)).split(64):
            loss = nn.functional.cross_entropy(
                net(_varied(seen[batch])), answers[batch], label_smoothing=0.05
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    net.eval()
    with torch.no_grad():
        return float((net(crops[-unseen:]).argmax(-1) == labels[-unseen:]).float().mean())


def _varied(crops: Tensor) -> Tensor:
    """Crops mirrored, blurred, with noise or partly hidden at random, as generated bodies are."""
    out = crops.clone()
    flip = torch.rand(len(out)) < 0.5
    out[flip] = out[flip].flip(-1)
    blur = torch.rand(len(out)) < 0.4
    out[blur] = nn.functional.avg_pool2d(out[blur], 3, 1, 1)
    for i in (torch.rand(len(out)) < 0.15).nonzero()[:, 0].tolist():
        at = int(torch.randint(4, 12, ()))
        out[i, :, :, :at] = 0  # another body before it
    out[:, 0] += 0.06 * torch.randn_like(out[:, 0]) * out[:, 1]
    return out
