"""What fits where; what does not is refused, with the numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from longspan.errors import ConfigError
from longspan.simulator.fleet import Fleet
from longspan.simulator.hardware import A40, A800_80G, H200, HARDWARE, known_machine
from longspan.simulator.machine import GIB
from longspan.simulator.models import MODELS, known_model

from .examples import IDEAL, TINY


def test_kv_slots_are_what_memory_holds_beside_the_weights() -> None:
    """0.9 * 80 - 2 GiB for each device; weights of 32 layers, an embedding and a head; 512 KiB of KV for a token."""
    layer = 4 * 4096 * 4096 + 3 * 4096 * 11008
    weights = 2 * (32 * layer + 2 * 4096 * 32000)
    for tp in (1, 2, 8):
        fleet = Fleet(machine=A800_80G, model=MODELS["lwm-1m"], instances=1, tp=tp)
        assert fleet.kv_tokens_that_fit() == (tp * 70 * GIB - weights) // (512 * 1024)


def test_a_tied_head_is_stored_once() -> None:
    tied = MODELS["smollm2-135m"]
    once = replace(tied, tied=False).stored_bytes - tied.stored_bytes
    assert once == 2 * 49152 * 576


def test_the_models_are_as_large_as_their_names_say() -> None:
    sizes = {name: model.stored_bytes / 2e9 for name, model in MODELS.items()}
    assert sizes == pytest.approx(
        {"llama-2-7b": 6.74, "lwm-1m": 6.74, "llama-3-8b": 8.03, "llama-3-70b": 70.55, "qwen2.5-7b": 7.61,
         "smollm2-135m": 0.1345}, rel=0.003,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("machine", "model", "instances", "tp", "message"),
    [
        ("a800-80g", "llama-3-70b", 4, 1, r"131\.4 GiB, but the 1 x a800-80g .* 70\.0 GiB .*raise tp"),
        ("a40", "llama-3-70b", 1, 2, r"does not fit"),
        ("h100", "llama-3-8b", 1, 16, r"tp is 16, but must divide the 32 query heads and 8 KV heads"),
        ("h100", "qwen2.5-7b", 1, 8, r"28 query heads and 4 KV heads of qwen2.5-7b"),
        ("h100", "llama-2-7b", 1, 16, r"nodes of 8 h100"),
        ("h100", "llama-2-7b", 0, 1, r"instances is 0"),
        ("h100", "llama-2-7b", 1, 0, r"tp is 0"),
    ],
)
def test_what_cannot_be_is_refused(machine: str, model: str, instances: int, tp: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Fleet(machine=known_machine(machine), model=known_model(model), instances=instances, tp=tp)


def test_unknown_names_get_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"a100-80g.*sib:FILE"):
        known_machine("abacus")
    with pytest.raises(ConfigError, match="lwm-1m"):
        known_model("abacus")


def test_unlimited_memory_has_no_number_of_slots() -> None:
    with pytest.raises(ConfigError, match="memory of ideal is not known"):
        Fleet(machine=IDEAL, model=TINY, instances=1).kv_tokens_that_fit()


def test_instances_stand_in_nodes_in_order() -> None:
    fleet = Fleet(machine=H200, model=MODELS["llama-3-8b"], instances=6, tp=4)
    assert [fleet.node(instance) for instance in range(6)] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("name", HARDWARE)
def test_every_figure_says_where_it_is_from(name: str) -> None:
    machine = HARDWARE[name]
    assert machine.name == name
    assert all(machine.origins().values())
    for text in (machine.efficiency.origin, machine.overheads.origin):
        assert text.startswith(("fitted", "assumed"))
    assert A40.efficiency.origin != A800_80G.efficiency.origin
