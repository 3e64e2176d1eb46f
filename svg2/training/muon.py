"""Muon, with orthogonalisation in the fastest precision of the hardware.

torch.optim.Muon orthogonalises in bf16. A CPU without bf16 units is hundreds of times slower in
bf16 than in fp32.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kernels import bf16_is_native
from svg2.training.ranks import shared

# Keller Jordan's quintic: five steps bring singular values near 1.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(update: Float[Tensor, "n rows cols"], steps: int = 5) -> Tensor:
    """Approximate the nearest semi-orthogonal matrices by Newton-Schulz iteration."""
    a, b, c = _COEFFICIENTS
    tall = update.shape[1] > update.shape[2]
    x = update.mT if tall else update
    if x.device.type == "cpu" and bf16_is_native():
        x = x.bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(update.dtype)


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum, scaled to the step size of AdamW.

    Source: arXiv 2502.16982.
    """

    def __init__(self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.01):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        """Update. Matrices of one shape are one batch; a convolution is outputs times the rest."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            for shape, params in by_shape.items():
                updates = []
                for p in params:
                    state = self.state[p]
                    buffer = state.setdefault("momentum", torch.zeros_like(p))
                    buffer.lerp_(p.grad, 1 - group["momentum"])
                    updates.append(p.grad.lerp(buffer, group["momentum"]).flatten(1))
                stack = torch.stack(updates)
                scale = 0.2 * max(stack.shape[1:]) ** 0.5
                for p, update in zip(params, shared(orthogonalise, stack), strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(update.view(shape), alpha=-group["lr"] * scale)


def build_optimizers(
    model: nn.Module, lr: float, is_matrix: Callable[[str, nn.Parameter], bool]
) -> list[torch.optim.Optimizer]:
    """Muon for the parameters that `is_matrix` selects, and AdamW for all others."""
    matrices, others = [], []
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        (matrices if is_matrix(name, p) else others).append(p)
    optimizers = [
        Muon(matrices, lr=lr),
        torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = lr
    return optimizers


def set_rate(optimizers: list[torch.optim.Optimizer], share: float) -> None:
    """Set every learning rate to `share` of its initial value."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * share
