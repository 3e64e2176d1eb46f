"""The catalogue's numbers against the models themselves, built on the meta device."""

import weakref

import diffusers
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from svg2.config import SVG2Config
from svg2.hooks.families import family_of
from svg2.models.catalogue import PUBLISHED
from svg2.models.finding import model_spec
from svg2.models.memory_estimate import TransformerShape, memory_need

WAN_SMALL = {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}
CONFIGS = {
    "wan2.1-1.3b": WAN_SMALL,
    "wan2.1-14b": {},
    "wan2.1-i2v-480p": {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120},
    "wan2.1-i2v-720p": {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120},
    "wan2.1-vace-1.3b": {**WAN_SMALL, "vace_layers": list(range(0, 30, 2))},
    "wan2.1-vace-14b": {},
    "wan2.2-t2v-a14b": {},
    "wan2.2-i2v-a14b": {"in_channels": 36},
    "wan2.2-ti2v-5b": {
        **{"num_attention_heads": 24, "ffn_dim": 14336, "num_layers": 30},
        **{"in_channels": 48, "out_channels": 48},
    },
    "hunyuanvideo": {},
    "hunyuanvideo-i2v": {"image_condition_type": "token_replace"},
}


def transformer_class(name):
    if name.startswith("hunyuan"):
        return diffusers.HunyuanVideoTransformer3DModel
    if "vace" in name:
        return diffusers.WanVACETransformer3DModel
    return diffusers.WanTransformer3DModel


@pytest.mark.parametrize("name", PUBLISHED)
def test_shapes_are_those_of_the_models(name):
    with torch.device("meta"):
        transformer = transformer_class(name)(**CONFIGS[name])
    shape = PUBLISHED[name].shape
    assert sum(p.numel() for p in transformer.parameters()) == shape.parameters
    attentions = family_of(transformer).self_attentions(transformer)
    assert len(attentions) == shape.layers
    assert attentions[0].module.heads == shape.heads
    assert attentions[0].module.to_q.in_features == shape.width
    block = transformer.single_transformer_blocks[0] if shape.joint_text else transformer.blocks[0]
    mlp = block.proj_mlp if shape.joint_text else block.ffn.net[0].proj
    assert mlp.out_features == shape.mlp_dim


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_method_adds_at_most_a_tenth_at_720p(name):
    spec = model_spec(name)
    size = (spec.num_frames, 720 // spec.size_multiple * spec.size_multiple, 1280)
    others = ({"method": "svg2-comp"}, {"method": "svg2-routed", "stand_ins": "means"})
    for config in (spec.config, *(spec.config.replace(**other) for other in others)):
        frames, rows, columns = spec.grid(*size)
        need = memory_need(spec.published.shape, frames * rows * columns, config)
        assert 0 < need.centroids <= need.added
        assert need.added_share <= 0.1
    assert spec.memory(*size).dense_peak > need.weights


def test_estimated_centroids_are_those_of_a_run(tiny_pipeline, generate_tiny):
    import svg2

    config = svg2.SVG2Config(
        num_q_clusters=8, num_k_clusters=16, dense_layers=1, warmup_fraction=0.0
    )
    tiny_pipeline.transformer.to(torch.bfloat16)
    with svg2.enable(tiny_pipeline, config) as run:
        generate_tiny(tiny_pipeline, num_inference_steps=2)
    shape = TransformerShape(layers=3, heads=2, head_dim=64, mlp_dim=128, parameters=0)
    assert memory_need(shape, 192, config).centroids == run.stats.cache_bytes


def test_stand_ins_of_each_pair_of_clusters_are_counted():
    spec = model_spec("wan2.1-14b")
    means = spec.config.replace(
        method="svg2-routed", stand_ins="means", num_q_clusters=300, num_k_clusters=1000
    )
    shape = spec.published.shape
    added, with_pairs = (
        memory_need(shape, 75_600, config).added
        for config in (means, means.replace(stand_ins="pairs"))
    )
    # A little of it fits into what a dense step holds.
    stand_ins = 2 * 2 * 300 * 1000 * shape.width
    assert 0.9 * stand_ins < with_pairs - added < stand_ins


def test_larger_videos_need_more():
    spec = model_spec("wan2.1-14b")
    small, large = spec.memory(81, 480, 832), spec.memory(81, 720, 1280)
    assert small.weights == large.weights
    assert small.activations < large.activations
    assert small.centroids == large.centroids


class LiveBytes(TorchDispatchMode):
    """Peak bytes of all tensors that operations make, without parameters and buffers."""

    def __init__(self, model) -> None:
        super().__init__()
        parts = (*model.parameters(), *model.buffers())
        self._known = {part.untyped_storage()._cdata for part in parts}
        self._live: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor):
                self._watch(tensor.untyped_storage())
        return out

    def _watch(self, storage) -> None:
        key = storage._cdata
        if key in self._known or key in self._live:
            return
        self._live[key] = storage.nbytes()
        self.peak = max(self.peak, sum(self._live.values()))
        weakref.finalize(storage, self._live.pop, key, None)


@pytest.mark.parametrize("joint", [False, True])
@torch.no_grad()
def test_a_dense_forward_holds_the_estimate_and_not_much_more(joint):
    heads, frames, rows, columns = 4, 4, 12, 16
    sizes = {"num_attention_heads": heads, "attention_head_dim": 128, "num_layers": 1}
    latents = torch.randn(1, 16, frames, rows, columns).bfloat16()
    inputs = {"hidden_states": latents, "timestep": torch.tensor([500.0])}
    if joint:
        model = diffusers.HunyuanVideoTransformer3DModel(
            **sizes,
            num_single_layers=1,
            patch_size=1,
            num_refiner_layers=1,
            text_embed_dim=16,
            pooled_projection_dim=8,
        )
        inputs |= {
            "encoder_hidden_states": torch.randn(1, 4, 16).bfloat16(),
            "encoder_attention_mask": torch.ones(1, 4),
            "pooled_projections": torch.randn(1, 8).bfloat16(),
            "guidance": torch.tensor([6000.0]).bfloat16(),
        }
    else:
        model = diffusers.WanTransformer3DModel(
            **sizes, patch_size=(1, 1, 1), text_dim=16, freq_dim=16, ffn_dim=1382
        )
        inputs |= {"encoder_hidden_states": torch.randn(1, 4, 16).bfloat16()}
    model = model.bfloat16().eval()
    with LiveBytes(model) as live:
        model(**inputs)
    shape = TransformerShape(1, heads, 128, 2048 if joint else 1382, 0, joint_text=joint)
    estimate = memory_need(shape, frames * rows * columns, SVG2Config()).activations
    assert 0.6 * live.peak < estimate <= live.peak
