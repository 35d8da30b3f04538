"""Every layer against its plain twin, or against transformers."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
)

from longspan.layers.activation import silu_and_mul
from longspan.layers.embedding import embed, embed_share
from longspan.layers.linear import Linear, PackedLinear, PlainLinear, _can_pack
from longspan.layers.logits import settle_near_ties_
from longspan.layers.norm import rms_norm
from longspan.layers.rope_config import RopeConfig
from longspan.layers.rotary import inverse_frequencies, rotary_angles, rotate
from longspan.native.build import BuildError
from longspan.native.isa import Isa, available_isas
from longspan.native.library import load
from longspan.native.linear import NativeLinear, covers

LLAMA3 = {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}  # fmt: skip
YARN = {"factor": 4.0, "original_max_position_embeddings": 32768}
ROPES = {
    "default": (RopeConfig(theta=10000.0), {}),
    "linear": (RopeConfig(theta=10000.0, kind="linear", factor=4.0), {"factor": 4.0}),
    "llama3": (RopeConfig(theta=500000.0, kind="llama3", **LLAMA3), LLAMA3),  # type: ignore[arg-type]
    "yarn": (RopeConfig(theta=1e6, kind="yarn", attention_factor=0.1 * math.log(4.0) + 1.0, **YARN), YARN),  # type: ignore[arg-type]
}


def hf_rotary(kind: str) -> LlamaRotaryEmbedding:
    rope, scaling = ROPES[kind]
    return LlamaRotaryEmbedding(LlamaConfig(
        head_dim=64, max_position_embeddings=131072,
        rope_parameters={"rope_type": kind, "rope_theta": rope.theta, **scaling},
    ))  # fmt: skip


@pytest.mark.parametrize("kind", ROPES)
def test_rotary_frequencies_are_exactly_those_of_transformers(kind: str) -> None:
    ours = inverse_frequencies(ROPES[kind][0], 64)
    torch.testing.assert_close(ours, hf_rotary(kind).inv_freq, rtol=1e-7, atol=0)


@pytest.mark.parametrize("kind", ROPES)
def test_rotation_up_to_a_million_tokens(kind: str) -> None:
    positions_T = torch.tensor([0, 1, 2, 77, 8191, 131_071, 1_000_000])
    q_THK, k_TGK = torch.randn(7, 6, 64), torch.randn(7, 2, 64)
    cos, sin = hf_rotary(kind)(q_THK, positions_T[None])
    heads_first = (q_THK.transpose(0, 1)[None], k_TGK.transpose(0, 1)[None])
    expected_q, expected_k = apply_rotary_pos_emb(*heads_first, cos, sin)
    angles = rotary_angles(positions_T, hf_rotary(kind).inv_freq, ROPES[kind][0].attention_factor)
    torch.testing.assert_close(rotate(q_THK, *angles), expected_q[0].transpose(0, 1), atol=1e-5, rtol=0)
    torch.testing.assert_close(rotate(k_TGK, *angles), expected_k[0].transpose(0, 1), atol=1e-5, rtol=0)


def test_per_frequency_divisors() -> None:
    scaled = inverse_frequencies(RopeConfig(kind="per_frequency", divisors=(1.0, 2.0, 4.0, 8.0)), 8)
    torch.testing.assert_close(scaled * torch.tensor([1.0, 2, 4, 8]), inverse_frequencies(RopeConfig(), 8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm(dtype: torch.dtype) -> None:
    """Rounded once, at the end; Hugging Face rounds before the weight too."""
    norm = LlamaRMSNorm(96, eps=1e-5)
    norm.weight.data.normal_()
    norm = norm.to(dtype).float()
    x_TD = torch.randn(5, 96).to(dtype)
    weight_D = norm.weight.to(dtype)
    torch.testing.assert_close(rms_norm(x_TD, weight_D, 1e-5), norm(x_TD.float()).to(dtype), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(rms_norm(x_TD.float(), weight_D, 1e-5), rms_norm(x_TD, weight_D, 1e-5), atol=0, rtol=0)


def test_near_ties_are_settled() -> None:
    """In bf16 many tokens share the best logit; after settling the order is that of fp32."""
    draw = torch.Generator().manual_seed(0)
    x_ED, weight_VD = torch.randn(400, 64, generator=draw), torch.randn(5000, 64, generator=draw).bfloat16()
    exact_EV = x_ED @ weight_VD.float().T
    short_EV = (x_ED.bfloat16() @ weight_VD.T).float()
    settled_EV = settle_near_ties_(short_EV.clone(), x_ED, weight_VD)
    assert (settled_EV.argmax(-1) == exact_EV.argmax(-1)).all()
    assert not (short_EV.argmax(-1) == exact_EV.argmax(-1)).all()
    changed_EV = settled_EV != short_EV
    torch.testing.assert_close(settled_EV[changed_EV], exact_EV[changed_EV], atol=1e-4, rtol=1e-5)


def test_silu_and_mul() -> None:
    x = torch.randn(4, 10)
    torch.testing.assert_close(silu_and_mul(x), F.silu(x[:, :5]) * x[:, 5:])


TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
PACKED = [
    (dtype, kind) for dtype in TOLERANCES for kind in ("onednn", *available_isas())
    if dtype == torch.float32 or kind in ("onednn", Isa.AVX512_BF16)
]  # fmt: skip
"""What multiplies packed weights here: of instruction sets, one has products of bf16."""


@pytest.mark.parametrize(("dtype", "kind"), PACKED, ids=str)
@pytest.mark.parametrize(("outputs", "inputs"), [(192, 64), (101, 38), (64, 130)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_packed_weights_agree_with_plain_ones(
    dtype: torch.dtype, kind: str | Isa, outputs: int, inputs: int, with_bias: bool
) -> None:
    weight_OI = torch.randn(outputs, inputs).to(dtype)
    bias_O = torch.randn(outputs).to(dtype) if with_bias else None
    plain = PlainLinear(weight_OI, bias_O)
    packed: Linear
    if isinstance(kind, str):
        if not _can_pack(weight_OI):
            pytest.skip("oneDNN packs no weights of this dtype here")
        packed = PackedLinear(weight_OI, bias_O)
    else:
        try:
            library = load(kind)
        except BuildError as error:
            pytest.skip(str(error))
        assert covers(library, weight_OI)
        packed = NativeLinear(library, weight_OI, bias_O)
    tolerance = TOLERANCES[dtype]
    for rows in (0, 1, 3, 32, 65, 200):
        x_TI = torch.randn(rows, 2 * inputs).to(dtype)[:, :inputs]  # strided, as some callers pass it
        for result in (None, torch.float32):
            got, expected = packed(x_TI, result), plain(x_TI, result)
            assert got.dtype == (result or dtype)
            torch.testing.assert_close(got, expected, atol=tolerance * inputs**0.5, rtol=tolerance)


def test_shares_of_an_embedding_add_up() -> None:
    weight_VD, token_ids_T = torch.randn(11, 4), torch.tensor([0, 10, 3, 4, 4, 7])
    shares = [embed_share(token_ids_T, weight_VD[a:b], a) for a, b in ((0, 4), (4, 8), (8, 11))]
    torch.testing.assert_close(sum(shares[1:], shares[0]), embed(token_ids_T, weight_VD))
