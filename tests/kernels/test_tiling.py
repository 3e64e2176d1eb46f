"""Which attend kernel runs where, and what tiles it takes."""

import importlib.util
from dataclasses import replace

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

import kernels
from kernels import winners
from kernels.cluster_attention.fused import (
    Config,
    Tiling,
    attend_with,
    config_for,
    launch,
    tiling,
)
from kernels.cluster_attention.fused.tiling import AttendVariant, Row
from tests.kernels.cases import make_case

MAIN = Tiling(128, 128, 8, 2)


@pytest.mark.parametrize("chunk", [0, 64, 128])
def test_a_chunk_must_fit_its_code(chunk):
    says = (
        f"chunk must be from 1 to the 63 keys that 6 bits of a chunk's code can count, not {chunk}"
    )
    with pytest.raises(ValueError, match=says):
        Tiling(128, 128, 8, 2, chunk=chunk)


def test_the_longest_chunk_that_fits():
    assert Tiling(128, 128, 8, 2, chunk=32).chunk == 32


def test_a_chunk_must_divide_a_tile():
    with pytest.raises(ValueError, match="chunk must divide block_n = 64, not be 24"):
        Tiling(64, 64, 4, 2, chunk=24)


@pytest.mark.parametrize("block_c", [0, 48, 256])
def test_tiles_of_virtual_keys_must_divide_a_row_of_biases(block_c):
    with pytest.raises(ValueError, match=f"block_c must divide 128, not be {block_c}"):
        Tiling(64, 64, 4, 2, block_c=block_c)


@pytest.mark.parametrize("change", [{"block_n": 96}, {"chunk": 8}, {"block_m": 128}])
def test_a_tail_must_fit_the_lists_of_the_main_tiles(change):
    tail = Tiling(64, 64, 4, 2)
    assert Config(MAIN, tail).tilings == {"main": MAIN, "tail": tail}
    with pytest.raises(ValueError, match="the tail must have fewer queries"):
        Config(MAIN, replace(tail, **change))


@pytest.mark.parametrize(
    ("chip", "head_dim", "tile"),
    [
        *(("sm_90", 64, (128, 128)), ("sm_90", 128, (128, 128)), ("sm_103", 128, (128, 64))),
        *(("sm_121", 64, (64, 64)), ("sm_86", 64, (128, 64)), ("sm_86", 128, (64, 64))),
        ("gfx942", 128, (128, 64)),
    ],
)
def test_the_first_row_that_fits_a_chip_counts(chip, head_dim, tile):
    main = config_for(chip, head_dim, "portable").main
    assert (main.block_m, main.block_n) == tile


def test_what_no_row_fits():
    with pytest.raises(ValueError, match="no attend kernel for head dimension 96 on 'sm_90'"):
        config_for("sm_90", 96)


def test_a_row_names_another_attend_kernel(monkeypatch, tmp_path):
    launched = []

    class Other:
        @staticmethod
        def launch(problem, lists, config, processors):
            launched.append((config, tuple(problem.q.shape)))
            problem.out.fill_(7)

    other = Config(MAIN, attend="other")
    monkeypatch.setitem(
        tiling.ATTEND_VARIANTS, "other", AttendVariant((Row("sm_90", (64,), other),))
    )
    path = tmp_path / "winners.json"
    path.write_text('{"sm_90": {"attend D64": {"choice": {"variant": "other"}}}}')
    monkeypatch.setattr(winners, "PATH", path)
    monkeypatch.setattr(launch, "attend_kernel", {"other": Other}.get)
    monkeypatch.setattr(launch, "make_lists", lambda *_: None)
    monkeypatch.setattr(launch, "_num_processors", lambda _: 1)
    q, *rest = _arguments(make_case(n=20, dim=64))
    out = attend_with(q, *rest, 0.125, None, None, config_for("sm_90", 64))
    assert launched == [(other, (1, 2, 20, 64))]
    assert (out == 7).all()
    assert config_for("sm_90", 64, "other") == other
    # The portable one where no other won.
    for chip, head_dim in (("sm_90", 128), ("sm_80", 64)):
        assert config_for(chip, head_dim) == config_for(chip, head_dim, "portable")
        assert "other" not in tiling.variants_for(chip, head_dim)


@pytest.mark.parametrize("variant", ["fastest", "", "Portable"])
def test_a_variant_that_does_not_run_is_refused(variant):
    with pytest.raises(ValueError, match=rf"one of portable.* on 'gfx942', not '{variant}'"):
        config_for("gfx942", 64, variant)


def test_the_reference_has_no_variants():
    arguments = _arguments(make_case(n=20, dim=64))
    with pytest.raises(ValueError, match=r"variant='portable' names .* leave variant out"):
        kernels.cluster_attention(*arguments, impl="reference", variant="portable")


@pytest.mark.parametrize(
    ("num_k", "scale", "says"),
    [
        (2049, 0.125, "at most 2048 key clusters, not 2049: take fewer clusters, or impl='ref"),
        (11, 0.0, "need a positive scale, not 0.0"),
    ],
)
def test_what_the_kernels_cannot_do_is_refused_before_anything_is_launched(num_k, scale, says):
    arguments = _arguments(make_case(n=20, dim=64, num_k=num_k))
    with pytest.raises(ValueError, match=says):
        attend_with(*arguments, scale, None, None, Config(MAIN))


def test_more_keys_than_an_int32_can_point_to_are_refused():
    k = torch.empty(1, device="meta").expand(1, 1, 1 << 24, 64)
    q, _, _, q_offsets, k_offsets, kept = _arguments(make_case(n=20, dim=64, heads=1))
    with pytest.raises(ValueError, match="fewer than 16777216 keys, not 16777216"):
        attend_with(q, k, k, q_offsets, k_offsets, kept, 1.0, None, None, Config(MAIN))


def _arguments(case):
    offsets = [
        kernels.sort_by_label(labels, num).offsets
        for labels, num in zip((case.q_labels, case.k_labels), case.kept.shape[-2:], strict=True)
    ]
    return case.q, case.k, case.v, *offsets, case.kept
