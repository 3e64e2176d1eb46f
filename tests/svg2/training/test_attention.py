"""Attention written out for training: its values, its gradients, its place in a Wan block."""

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch.nn import functional as F

from svg2.training.attention import WrittenOutProcessor, attention


def _run(attend, tensors, dtype):
    """Output and the three gradients, in fp32."""
    leaves = [t.clone().requires_grad_() for t in tensors]
    out = attend(*(t.to(dtype) for t in leaves)).float()
    weight = torch.randn(out.shape, generator=torch.manual_seed(1))
    (out * weight).sum().backward()
    return [out.detach(), *(t.grad for t in leaves)]


@pytest.mark.parametrize("num_tokens", [63, 576, 577])
def test_errs_no_more_than_twice_what_bf16_attention_errs(num_tokens):
    generator = torch.manual_seed(0)
    tensors = [torch.randn((2, 2, num_tokens, 64), generator=generator) for _ in range(3)]
    exact = _run(F.scaled_dot_product_attention, tensors, torch.float32)
    low = _run(F.scaled_dot_product_attention, tensors, torch.bfloat16)
    ours = _run(attention, tensors, torch.bfloat16)
    for truth, theirs, mine in zip(exact, low, ours, strict=True):
        assert (mine - truth).norm() <= 2 * (theirs - truth).norm()


def test_a_wan_transformer_computes_and_learns_as_with_its_own_processor():
    torch.manual_seed(0)
    model = WanTransformer3DModel(
        patch_size=(1, 1, 1),
        num_attention_heads=2,
        attention_head_dim=64,
        in_channels=4,
        out_channels=4,
        text_dim=8,
        freq_dim=32,
        ffn_dim=64,
        num_layers=2,
    )
    video, text = torch.randn(2, 4, 3, 6, 5), torch.randn(2, 7, 8)

    def gradient(dtype):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            out = model(video, torch.tensor([300.0, 700.0]), text, return_dict=False)[0]
        out.float().square().mean().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    exact, low = gradient(torch.float32), gradient(torch.bfloat16)
    for block in model.blocks:
        block.attn1.set_processor(WrittenOutProcessor())
        block.attn2.set_processor(WrittenOutProcessor())
    ours = gradient(torch.bfloat16)
    assert (ours - exact).norm() <= 2 * (low - exact).norm()
