"""The Wan processor beside the stock one: what reaches attention, what diffusers sets."""

import pytest
import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import svg2
from svg2.hooks.families.wan import queries_keys_values

CONFIG = svg2.SVG2Config(num_q_clusters=8, num_k_clusters=16, warmup_fraction=0.0)


class AttentionInputs(TorchFunctionMode):
    """Keeps the q, k and v of the last call of the stock attention."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            self.qkv = [kwargs[name] for name in ("query", "key", "value")]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("with_rope", [True, False])
@torch.no_grad()
def test_queries_keys_and_values_are_those_of_the_stock_attention(
    tiny_pipeline, dtype, fused, with_rope
):
    transformer = tiny_pipeline.transformer.to(dtype)
    if fused:
        transformer.fuse_qkv_projections()
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 8, 3, 8, 8, generator=generator)
    attn = transformer.blocks[1].attn1
    torch.nn.init.uniform_(attn.norm_q.weight, 0.5, 2, generator=generator)
    hidden_states = torch.randn(2, 192, 128, generator=generator).to(dtype)
    rope = transformer.rope(latents) if with_rope else None
    with AttentionInputs() as stock:
        attn(hidden_states, rotary_emb=rope)
    for ours, theirs in zip(
        queries_keys_values(attn, hidden_states, rope), stock.qkv, strict=True
    ):
        assert ours.dtype == dtype
        assert ours.is_contiguous()
        assert torch.equal(ours, theirs)


@torch.no_grad()
def test_the_whole_budget_gives_the_stock_output(tiny_pipeline):
    attn = tiny_pipeline.transformer.blocks[0].attn1
    generator = torch.Generator().manual_seed(0)
    hidden_states = torch.randn(2, 192, 128, generator=generator)
    rope = tiny_pipeline.transformer.rope(torch.empty(2, 8, 3, 8, 8))
    stock = attn(hidden_states, rotary_emb=rope)
    with svg2.enable(tiny_pipeline, CONFIG.replace(top_p=1.0)) as run:
        ours = attn(hidden_states, rotary_emb=rope)
    assert run.stats.sparse_calls == 1
    torch.testing.assert_close(ours, stock, rtol=0, atol=1e-6)


def test_an_attention_backend_set_on_the_model_is_kept(tiny_pipeline):
    transformer = tiny_pipeline.transformer
    attn = transformer.blocks[0].attn1
    transformer.set_attention_backend("_native_math")
    original = attn.processor
    backend = original._attention_backend
    with svg2.enable(tiny_pipeline, CONFIG):
        assert attn.processor is not original
        assert attn.processor._attention_backend is backend
        transformer.reset_attention_backend()
        assert original._attention_backend is None
        transformer.set_attention_backend("native")
    assert attn.processor is original
    assert original._attention_backend.value == "native"
    transformer.reset_attention_backend()


@torch.no_grad()
def test_refuses_what_it_cannot_replace(tiny_pipeline):
    attn = tiny_pipeline.transformer.blocks[0].attn1
    hidden_states = torch.zeros(1, 192, 128)
    with svg2.enable(tiny_pipeline, CONFIG):
        with pytest.raises(RuntimeError, match="no mask"):
            attn(hidden_states, attention_mask=torch.zeros(1, 1, 192, 192))
        attn.processor._parallel_config = object()
        with pytest.raises(RuntimeError, match="Ulysses alone"):
            attn(hidden_states)
    assert attn.processor._parallel_config is not None
