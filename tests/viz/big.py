"""A made-up trace of the size of a real one: Wan at 720p, without a model."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
from numpy import ndarray

from svg2.trace.records import Record, Trace, selection_at
from tests.traces import make_synthetic_trace

GRID = (21, 45, 80)
NUM_Q, NUM_K = 300, 1000
STEPS, LAYERS, HEADS = (2, 5, 9), range(6), range(2)
TOP_P = 0.9


def make_720p_trace() -> Trace:
    """75,600 tokens, 300/1000 ragged clusters, 3 steps × 6 layers × 2 heads of one run."""
    small = make_synthetic_trace(
        (21, 6, 8), 5, 7, steps=10, layers=6, heads=2, runs=(("svg2", TOP_P),)
    )
    run = small.runs[0]
    records = tuple(
        _record(0, step, layer, head) for step in STEPS for layer in LAYERS for head in HEADS
    )
    return replace(
        small,
        grid=GRID,
        n_tokens=int(np.prod(GRID)),
        runs=(replace(run, config=run.config | {"num_q_clusters": NUM_Q}),),
        records=records,
    )


def _record(run: int, step: int, layer: int, head: int) -> Record:
    rng = np.random.default_rng([step, layer, head])
    (q_labels, q_place), (k_labels, k_place) = _voronoi(NUM_Q), _voronoi(NUM_K)
    turn = int(rng.integers(len(q_labels)))  # other clusters in every head, at no cost
    q_labels, k_labels = np.roll(q_labels, turn), np.roll(k_labels, turn)
    sizes = np.bincount(k_labels, minlength=NUM_K)
    far = np.abs(q_place[:, None] - k_place[None]).sum(axis=-1)
    scores = rng.normal(0, 1.5, (NUM_Q, NUM_K)) - 3 * far
    mass = sizes * np.exp(scores)
    draft = Record(
        *(run, step, layer, 0, head),
        q_labels=q_labels,
        k_labels=k_labels,
        P=(mass / mass.sum(axis=1, keepdims=True)).astype(np.float16),
        kept=np.zeros((NUM_Q, NUM_K), bool),
        q_rgb=rng.integers(0, 256, (NUM_Q, 3), np.uint8),
        k_rgb=rng.integers(0, 256, (NUM_K, 3), np.uint8),
        k_near=rng.integers(0, NUM_K, (NUM_K, 4)).astype(np.uint16),
        recall=0.9,
    )
    return replace(draft, kept=selection_at(draft, TOP_P, 0.1))


@cache
def _voronoi(count: int) -> tuple[ndarray, ndarray]:
    """Cells around random places, ragged at their borders, as clusters of tokens are."""
    rng = np.random.default_rng(count)
    places = rng.random((count, 3)).astype(np.float32)
    axes = (np.linspace(0, 1, n, dtype=np.float32) for n in GRID)
    tokens = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    tokens += rng.normal(0, 0.03, tokens.shape).astype(np.float32)
    nearest = tokens @ places.T - (places**2).sum(axis=1) / 2
    return nearest.argmax(axis=1).astype(np.uint16), places
