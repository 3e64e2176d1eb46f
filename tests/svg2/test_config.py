"""Settings: invalid ones are refused in one sentence that names them; text is parsed."""

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from svg2.config import SVG2Config, parse_settings
from svg2.errors import ConfigError

REFUSED = [
    ("top_p", [0, 0.0, -1, 1.5, math.nan, math.inf, "0.9", True, None, 0.5j]),
    ("density", [0, 0.0, -1, 1.5, math.nan, math.inf, "0.9", True, 0.5j]),
    ("num_q_clusters", [0, -1, 2.0, "8", True, None, math.nan, 10**9]),
    ("num_k_clusters", [0, -1, 2.5, "8", False, None, 10**9]),
    ("kmeans_iters_init", [0, -1, 1.0, "2", True, 10**9]),
    ("kmeans_iters_step", [0, -1, 1.0, "2", True, 10**9]),
    ("warmup_fraction", [-0.1, 1.1, math.nan, "0.2", True]),
    ("dense_layers", [-1, 0.5, "1", True]),
    ("min_keep_ratio", [-0.1, 1.1, math.nan, "0.1", False]),
    ("method", ["", "svg9", None, 1, []]),
    ("stand_ins", ["", "pair", None, 1]),
    ("seed", [-1, 2**63, 0.0, "0", True]),
    ("impl", ["", "triton", None, 1]),
]


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in REFUSED for value in values]
)
def test_invalid_settings_are_refused_in_one_sentence_that_names_them(name, value):
    with pytest.raises(ConfigError) as error:
        SVG2Config(**{name: value})
    message = str(error.value)
    assert name in message
    assert "\n" not in message
    assert message.endswith(".")


def test_every_setting_has_refusals():
    assert [name for name, _ in REFUSED] == list(SVG2Config().to_dict())


def test_numpy_numbers_become_plain_ones():
    config = SVG2Config(top_p=np.float32(0.5), num_q_clusters=np.int64(7), warmup_fraction=0)
    assert type(config.top_p) is float
    assert type(config.num_q_clusters) is int
    assert type(config.warmup_fraction) is float


def test_replace_validates_again():
    assert SVG2Config().replace(top_p=0.5).top_p == 0.5
    with pytest.raises(ConfigError, match="top_p"):
        SVG2Config().replace(top_p=2.0)
    with pytest.raises(ConfigError, match="Unknown setting 'sparsity'"):
        SVG2Config().replace(sparsity=0.5)


def test_settings_from_text():
    texts = [" num_k_clusters = 12", "seed=3", "seed=4", "method=svg2-comp"]
    assert parse_settings(texts) == {"num_k_clusters": 12, "seed": 4, "method": "svg2-comp"}
    assert parse_settings([]) == {}
    assert parse_settings(["top_p=7"]) == {"top_p": 7.0}, "parsed here, refused by SVG2Config"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("top_p", "name=value"),
        ("=3", "name=value"),
        ("topp=0.9", "Unknown setting 'topp'"),
        ("top_p=", "top_p must be a number"),
        ("top_p=much", "top_p must be a number"),
        ("seed=1.5", "seed must be a whole number"),
        ("compensate=true", "Unknown setting 'compensate'"),
    ],
)
def test_invalid_text_is_refused(setting, message):
    with pytest.raises(ConfigError, match=message):
        parse_settings([setting])


def test_settings_of_old_traces_are_read():
    config = SVG2Config.from_dict({"top_p": 0.5, "compensate": True})
    assert config == SVG2Config(top_p=0.5)
    assert not config.compensates
    assert SVG2Config.from_dict(SVG2Config(method="svg2-comp").to_dict()).compensates
    with pytest.raises(ConfigError, match="Unknown setting 'budget'"):
        SVG2Config.from_dict({"budget": 1})


def test_more_clusters_than_tokens_are_refused():
    config = SVG2Config(num_q_clusters=10, num_k_clusters=20)
    config.check_tokens(20)
    with pytest.raises(ConfigError, match=r"num_k_clusters is 20.*only 19 tokens"):
        config.check_tokens(19)
    with pytest.raises(ConfigError, match=r"num_q_clusters is 10.*only 9 tokens"):
        config.check_tokens(9)


@given(percent=st.integers(0, 100), steps=st.integers(1, 200))
def test_warmup_steps_are_the_exact_ceiling(percent, steps):
    expected = -(-percent * steps // 100)
    assert SVG2Config(warmup_fraction=percent / 100).warmup_steps(steps) == expected


def test_importing_the_package_loads_no_torch_and_leaves_the_environment_alone():
    """Importing svg2 used to set OMP_WAIT_POLICY for the whole program."""
    code = (
        "import os, sys; before = dict(os.environ)\n"
        "import svg2, svg2.hooks.stats, svg2.trace.records, svg2.runs.run\n"
        "assert 'torch' not in sys.modules\n"
        "assert dict(os.environ) == before"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
