"""RoPE scaling: its arithmetic against transformers, how configs spell it, and what a setting may say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from longspan.distributed.tensor_parallel import SingleDevice
from longspan.errors import ConfigError, ModelError, UnsupportedModelError
from longspan.layers.rotary import Rotary
from longspan.models.architecture import ModelConfig
from longspan.models.config import load_model_config

from .test_config import LLAMA, read
from .tiny import CONFIGS, CPU, ORIGINAL, CausalAttention, fresh_rope, hf_logits, load, make_model, our_logits, scaled
from .write_gguf import write_gguf

HEAD_DIM, CONTEXT = 16, 4096  # of LLAMA
HALF = HEAD_DIM // 2
SHORT, LONG = [1.0 + 0.1 * i for i in range(HALF)], [1.0 + 2.5 * i for i in range(HALF)]
LONGROPE = {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG}
SCALINGS: list[dict[str, Any]] = [
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024, "rope_theta": 1e6,
     "beta_fast": 16, "beta_slow": 2, "truncate": False},
    {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 1024, "mscale": 1.0,
     "mscale_all_dim": 0.7},
    {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 1024, "mscale": 0.7,
     "mscale_all_dim": 0},
    {"rope_type": "yarn", "factor": 2.0, "attention_factor": 0.75},
    {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 512},
    {"rope_type": "yarn", "factor": 1.0},
    {"rope_type": "dynamic", "factor": 2.1},
    {"rope_type": "dynamic", "factor": 8.0, "rope_theta": 5e5},
    {**LONGROPE, "original_max_position_embeddings": 512},
    {**LONGROPE, "original_max_position_embeddings": 512, "factor": 4.0},
    {**LONGROPE, "original_max_position_embeddings": 512, "attention_factor": 1.5},
    {**LONGROPE, "factor": 4.0},
]  # fmt: skip
LENGTHS = (5, 512, 513, CONTEXT, CONTEXT + 1, 9000)


def theirs_of(scaling: dict[str, Any]) -> LlamaRotaryEmbedding:
    """transformers' own, new. It fills in what is missing, so that it gets a copy."""
    config = LlamaConfig(
        hidden_size=64, num_attention_heads=4, head_dim=HEAD_DIM, max_position_embeddings=CONTEXT,
        rope_parameters={"rope_theta": 10000.0, **json.loads(json.dumps(scaling))},
    )  # fmt: skip
    return LlamaRotaryEmbedding(config)


def ours_of(folder: Path, raw: dict[str, Any]) -> Rotary:
    config = read(folder, {**LLAMA, **raw})
    return Rotary(config.rope, config.head_dim, CPU)


def require_same_angles(ours: Rotary, scaling: dict[str, Any]) -> None:
    """Of whole sequences, and of the token behind each, as transformers has them one after the other."""
    for length in LENGTHS:
        theirs = theirs_of(scaling)
        for positions in (torch.arange(length), torch.tensor([length])):
            cos, sin = theirs(torch.zeros(1), positions[None])
            lengths = torch.full_like(positions, int(positions.max()) + 1)
            for angles in (ours.angles(positions, lengths), ours.angles(positions)):
                for mine, wanted in zip(angles, (cos, sin), strict=True):
                    torch.testing.assert_close(mine[:, 0], wanted[0, :, :HALF], atol=2e-3, rtol=0)
                near = slice(0, 500)  # where a last digit of the frequency does not count yet
                torch.testing.assert_close(angles[0][near, 0], cos[0, near, :HALF], atol=3e-4, rtol=0)


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
def test_angles_are_those_of_transformers(tmp_path: Path, scaling: dict[str, Any]) -> None:
    require_same_angles(ours_of(tmp_path, {"rope_parameters": scaling}), scaling)


def test_old_spelling_and_the_original_length_beside_it(tmp_path: Path) -> None:
    """Where it stands beside the scaling, as Phi-3 has it, it counts before the one inside."""
    scaling = {**LONGROPE, "original_max_position_embeddings": 512}
    old = {"rope_theta": 10000.0, "original_max_position_embeddings": 512,
           "rope_scaling": {"type": "longrope", "short_factor": SHORT, "long_factor": LONG,
                            "original_max_position_embeddings": 99}}  # fmt: skip
    require_same_angles(ours_of(tmp_path, old), scaling)


def test_frequencies_differ_by_token(tmp_path: Path) -> None:
    """Tokens of requests of several lengths in one batch: each as if alone."""
    positions, lengths = torch.tensor([3, 3, 3, 700]), torch.tensor([512, 513, 9000, 701])
    for scaling in SCALINGS[-6:]:
        ours = ours_of(tmp_path, {"rope_parameters": scaling})
        together = ours.angles(positions, lengths)
        for row in range(len(positions)):
            alone = ours.angles(positions[row : row + 1], lengths[row : row + 1])
            assert all(torch.equal(a[row : row + 1], b) for a, b in zip(together, alone, strict=True))


@pytest.mark.parametrize("tp_size", [1, 2])
@pytest.mark.parametrize("kind", ["yarn", "dynamic", "longrope"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_logits_are_those_of_transformers(tmp_path: Path, name: str, kind: str, tp_size: int) -> None:
    model = make_model(scaled(CONFIGS[name], kind))
    model.save_pretrained(tmp_path)
    tokens = [(7 * i * i + 3 * i) % 101 for i in range(150)]
    for count in (ORIGINAL, len(tokens)):
        fresh_rope(model)
        expected = hf_logits(model, tokens[:count])
        torch.testing.assert_close(our_logits(tmp_path, tokens[:count], tp_size), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_token_by_token(tmp_path: Path, kind: str) -> None:
    """Keys stay as they were rotated when they were new, also beyond the length where frequencies change."""
    model = make_model(scaled(CONFIGS["llama"], kind))
    model.save_pretrained(tmp_path)
    tokens, start = [(7 * i * i + 3 * i) % 101 for i in range(60)], ORIGINAL - 10
    fresh_rope(model)
    ours, attention, cache = load(tmp_path), CausalAttention(), None
    for end in range(start, len(tokens)):
        new = torch.tensor(tokens[start if cache else 0 : end])[-1 if cache else 0 :]
        positions = torch.arange(end - len(new), end)
        with torch.inference_mode():
            out = model(new[None], cache=cache, use_cache=True)
        cache = out.past_key_values
        logits = ours.forward(new, positions, attention, SingleDevice(), torch.tensor([len(new) - 1]))
        torch.testing.assert_close(logits[0], out.logits[0, -1], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("scaling", "limits"), [
    ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}, (16384, 16384)),
    ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}, (4096, 4096)),
    ({"rope_type": "yarn", "factor": 4.0}, (16384, 16384)),
    ({"rope_type": "yarn", "factor": 1e300}, (2**31 - 1, 2**31 - 1)),
    ({"rope_type": "dynamic", "factor": 2.0}, (4096, 8192)),
    ({**LONGROPE, "original_max_position_embeddings": 512}, (4096, 4096)),
    ({**LONGROPE, "original_max_position_embeddings": 512, "factor": 16.0}, (4096, 8192)),
])  # fmt: skip
def test_how_long_requests_may_be(tmp_path: Path, scaling: dict[str, Any], limits: tuple[int, int]) -> None:
    def of(config: ModelConfig) -> tuple[int, int]:
        return config.max_model_len, config.longest_model_len

    assert of(read(tmp_path, {**LLAMA, "rope_scaling": scaling})) == limits
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    longest = max(limits)  # who sets it wants it
    assert of(load_model_config(tmp_path, json.dumps(scaling))) == (longest, longest)


def test_a_setting_goes_before_the_config(tmp_path: Path) -> None:
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
              "original_max_position_embeddings": 64, "rope_theta": 5e5}  # fmt: skip
    raw = {**LLAMA, "rope_parameters": llama3}
    read(tmp_path, raw)
    yarn = {"rope_type": "yarn", "factor": 4.0}
    by_setting = load_model_config(tmp_path, json.dumps(yarn))
    assert by_setting.rope == read(tmp_path, {**LLAMA, "rope_theta": 5e5, "rope_scaling": yarn}).rope
    plain = load_model_config(tmp_path, '{"rope_theta": 7.0}')
    assert (plain.rope.kind, plain.rope.theta, plain.max_model_len) == ("default", 7.0, 4096)


@pytest.mark.parametrize(("text", "reason"), [
    ("{", "which is not valid JSON"), ("[" * 100_000, "which is not valid JSON"),
    ("4", "but must be a JSON object such as"), ("null", "but must be a JSON object such as"),
    ('{"rope_type": "ntk"}', "'ntk' is not known; these are: default, linear, dynamic, yarn, longrope, llama3"),
    ('{"rope_type": 4}', "'rope_type' is 4, but must be text"),
    ('{"rope_type": "yarn", "factors": 4}', "yarn has no 'factors'; these are known: rope_theta, factor, original"),
    ('{"rope_type": "dynamic"}', "does not say 'factor'"), ('{"rope_type": "yarn"}', "does not say 'factor'"),
    ('{"rope_type": "linear", "factor": -1}', "'factor' is -1, but must be a finite number above 0"),
    ('{"rope_type": "yarn", "factor": NaN}', "'factor' is nan, but must be a finite number"),
    ('{"rope_type": "yarn", "factor": 2, "beta_fast": 1, "beta_slow": 2}', "'beta_fast' is 1, but must be at least"),
    ('{"rope_type": "yarn", "factor": 2, "rope_theta": 1}', "'rope_theta' is 1, but must be above 1"),
    ('{"rope_type": "longrope", "short_factor": [1], "long_factor": [1]}', "a list of 8 numbers"),
    ('{"rope_type": "longrope", "short_factor": [true]}', "a list of finite numbers"),
    (json.dumps({**LONGROPE, "original_max_position_embeddings": 1}), "at least 2"),
])  # fmt: skip
def test_settings_that_cannot_be(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    with pytest.raises(ConfigError, match=f"rope_scaling.*{reason}"):
        load_model_config(tmp_path, text)


def test_configs_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config.json: 'long_factor' is \[1.0\], but must be a list of 8 numbers"):
        read(tmp_path, {**LLAMA, "rope_scaling": {**LONGROPE, "long_factor": [1.0]}})
    with pytest.raises(ModelError, match="'type' is 'dynamic', but must be another with a head_dim of 2"):
        read(tmp_path, {**LLAMA, "head_dim": 2, "rope_scaling": {"type": "dynamic", "factor": 2.0}})
    with pytest.raises(UnsupportedModelError, match="the RoPE scaling 'proportional'"):
        read(tmp_path, {**LLAMA, "rope_scaling": {"type": "proportional", "factor": 2.0}})


def test_yarn_in_gguf(tmp_path: Path) -> None:
    """What llama.cpp's converter writes for it."""
    model = make_model(scaled(CONFIGS["llama"], "yarn"))
    path = write_gguf(model, tmp_path / "model.gguf")
    model.save_pretrained(tmp_path)
    assert load_model_config(path).rope == load_model_config(tmp_path).rope
    doubled = write_gguf(model, tmp_path / "d.gguf", more={"llama.rope.scaling.yarn_attn_factor": 2.0})
    assert load_model_config(doubled).rope.attention_factor == 2 * load_model_config(path).rope.attention_factor
    tokens = [(7 * i * i + 3 * i) % 101 for i in range(150)]
    torch.testing.assert_close(our_logits(path, tokens), hf_logits(model, tokens), atol=1e-4, rtol=0)
    by_setting = load_model_config(path, '{"rope_type": "linear", "factor": 2.0}')
    assert by_setting.rope.kind == "linear"
