"""Whatever is wrong with a model's files, loading it ends in one line that says what, or in a model read whole."""

from __future__ import annotations

import json
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType, GGUFValueType
from safetensors.torch import load_file, save_file

from longspan.errors import LongspanError, ModelError, UnsupportedModelError
from longspan.models import gguf_config
from longspan.models.config import load_model_config
from longspan.models.gguf_file import GGUFFile

from .tiny import CONFIGS, load, make_model
from .write_gguf import write_gguf

HOSTILE: list[Any] = [
    None, 0, -1, 1, 2**31, 2**63, 10**400, 0.5, -0.0, float("nan"), float("inf"), True, False, "", "4096", "x" * 100,
    [], [1], [None], {}, {"a": 1}, [[[]]],
]  # fmt: skip


def attempt(path: Path) -> str | None:
    """Load it all. What it says where it cannot; other exceptions go on."""
    try:
        load(path)
    except LongspanError as error:
        message = str(error)
        assert "\n" not in message and len(message) < 700
        return message
    return None


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    config = CONFIGS["llama3-wide-heads"]
    config.architectures = ["LlamaForCausalLM"]
    make_model(config).save_pretrained(folder)
    assert attempt(folder) is None
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "model")


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = write_gguf(make_model(CONFIGS["llama"]), tmp_path_factory.mktemp("gguf") / "model.gguf")
    assert attempt(path) is None
    return path.read_bytes()


# -- config.json ------------------------------------------------------------------------------------------------------


def places(value: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Every field, at any depth."""
    for key, inner in value.items():
        yield value, key
        if isinstance(inner, dict):
            yield from places(inner)


def test_every_field_of_the_config_with_hostile_values(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    outcomes = []
    for table, key in list(places(config)):
        before = table[key]
        for table[key] in HOSTILE:
            path.write_text(json.dumps(config))
            outcomes.append(attempt(folder))
        table[key] = before
    assert len(outcomes) > 500
    refused = [outcome for outcome in outcomes if outcome is not None]
    assert len(refused) > len(outcomes) / 3
    unclear = [message for message in refused if not any(word in message for word in (str(folder), "tensor", "head"))]
    assert not unclear


@pytest.mark.parametrize(("changes", "says"), [
    ({"hidden_size": 0}, "config.json: 'hidden_size' is 0, but must be a whole number"),
    ({"num_attention_heads": 0}, "'num_attention_heads' is 0"),
    ({"num_key_value_heads": -3}, "'num_key_value_heads' is -3"),
    ({"hidden_size": 71, "head_dim": None}, "'hidden_size' is 71, but must be a multiple of the 6"),
    ({"rms_norm_eps": float("nan")}, "'rms_norm_eps' is nan, but must be a finite number"),
    ({"tie_word_embeddings": "false"}, "'tie_word_embeddings' is 'false', but must be true or false"),
    ({"architectures": "LlamaForCausalLM"}, "'architectures' is 'LlamaForCausalLM', but must be a list"),
    ({"eos_token_id": ["</s>"]}, "'eos_token_id' is"),
    ({"rope_parameters": {"rope_type": "llama3", "factor": 0}}, "'factor' is 0"),
    ({"quantization_config": "awq"}, "'quantization_config' is 'awq'"),
    ({"vocab_size": 102}, "shape .* where the config asks for"),
    ({"num_hidden_layers": 4}, "tensor model.layers.3.* is missing"),
])  # fmt: skip
def test_configs_that_cannot_be(folder: Path, changes: dict[str, Any], says: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    (folder / "generation_config.json").unlink()  # it would know the ends of generation
    with pytest.raises(ModelError, match=says):
        load(folder)


def test_a_config_that_is_deep(folder: Path) -> None:
    (folder / "config.json").write_text('{"a":' * 100_000)
    with pytest.raises(ModelError, match=r"config\.json cannot be read as JSON"):
        load(folder)


# -- safetensors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/etc/passwd", "..", ".", "", "sub/x.safetensors", 7, None, "a\0b"]
)
def test_an_index_names_files_of_its_folder_only(folder: Path, name: Any) -> None:
    """Even where there is such a file."""
    stored = folder / "model.safetensors"
    shutil.copy(stored, folder.parent / "outside.safetensors")
    (folder / "sub").mkdir()
    shutil.copy(stored, folder / "sub" / "x.safetensors")
    names = list(load_file(stored))
    for files in (dict.fromkeys(names, name), {**dict.fromkeys(names, stored.name), names[-1]: name}):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
        with pytest.raises(ModelError, match="which is no file of this folder"):
            load(folder)


@pytest.mark.parametrize(
    "index", ["[]", "{", "[1]", '"x"', "{}", '{"weight_map": []}', '{"weight_map": {}}', "[" * 100_000]
)
def test_an_index_of_another_shape(folder: Path, index: str) -> None:
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelError, match=r"model\.safetensors\.index\.json"):
        load(folder)


@pytest.mark.parametrize("dtype", [
    torch.int8, torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2,
])  # fmt: skip
def test_weights_that_are_no_plain_numbers(folder: Path, dtype: torch.dtype) -> None:
    """Codes without their scales: whatever they would be taken for is wrong."""
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"] = torch.ones(70, 72).to(dtype)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(UnsupportedModelError, match=r"mlp\.up_proj\.weight is stored as \w+, but weights of F16"):
        load(folder)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_precisions_are_read(folder: Path, dtype: torch.dtype) -> None:
    path = folder / "model.safetensors"
    save_file({name: weight.to(dtype) for name, weight in load_file(path).items()}, path)
    assert attempt(folder) is None


@pytest.mark.parametrize("shape", [(), (72,), (70,), (1, 1), (70, 71), (71, 72), (2, 35, 72), (0, 72), (72, 70)])
def test_tensors_of_another_shape(folder: Path, shape: tuple[int, ...]) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"] = torch.ones(shape)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight has shape"):
        load(folder)


def test_headers_of_safetensors_with_hostile_values(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    header = {key: header[key] for key in header if key != "__metadata__"}
    draw = random.Random(0)
    for _ in range(200):
        name = draw.choice(list(header))
        before = dict(header[name])
        field = draw.choice(["dtype", "shape", "data_offsets"])
        header[name][field] = draw.choice([*HOSTILE, [2**62, 2**62], [0, 2**60], [5, 1], "F99"])
        changed = json.dumps(header).encode()
        lengths = [len(changed)] * 5 + [0, 2**63, len(changed) + 8, len(changed) - 9]
        path.write_bytes(u64(draw.choice(lengths)) + changed + body)
        assert attempt(folder) is not None or header[name] == before
        header[name] = before
    mutate_bytes(data, 8 + length, path, folder, rounds=200)


def mutate_bytes(data: bytes, header: int, path: Path, model: Path, rounds: int) -> None:
    """Bytes of the header turned, cut out, repeated, and the file cut short."""
    draw = random.Random(1)
    steps: list[Callable[[bytearray, int], None]] = [
        lambda b, at: b.__setitem__(at, draw.randrange(256)),
        lambda b, at: b.__setitem__(slice(at, at + 8), draw.randbytes(8)),
        lambda b, at: b.__setitem__(slice(at, at + 8), b"\xff" * 8),
        lambda b, at: b.__setitem__(slice(at, at + 8), bytes(8)),
        lambda b, at: b.__delitem__(slice(at, at + draw.choice([1, 4, 1000]))),
        lambda b, at: b.__setitem__(slice(at, at), b[at : at + draw.choice([1, 8, 100])]),
        lambda b, at: b.__delitem__(slice(at, None)),
    ]
    for _ in range(rounds):
        changed = bytearray(data)
        draw.choice(steps)(changed, draw.randrange(header))
        path.write_bytes(changed)
        attempt(model)


# -- GGUF -------------------------------------------------------------------------------------------------------------


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def text(value: str) -> bytes:
    return u64(len(value)) + value.encode()


def a_file(
    *values: bytes, tensors: tuple[bytes, ...] = (), num_values: int | None = None, num_tensors: int | None = None
) -> bytes:
    num_values = len(values) if num_values is None else num_values
    counts = u64(len(tensors) if num_tensors is None else num_tensors) + u64(num_values)
    return b"GGUF" + u32(3) + counts + b"".join(values) + b"".join(tensors) + bytes(64)


def a_value(key: str, kind: GGUFValueType, content: bytes) -> bytes:
    return text(key) + u32(kind) + content


def a_tensor(*sizes: int, kind: int = 0, offset: int = 0, dimensions: int | None = None) -> bytes:
    count = len(sizes) if dimensions is None else dimensions
    return text("t") + u32(count) + b"".join(map(u64, sizes)) + u32(kind) + u64(offset)


K = GGUFValueType
BROKEN = {
    "alignment 0": (a_file(a_value("general.alignment", K.UINT32, u32(0))), "alignment is 0, which is no power of two"),
    "alignment 3": (a_file(a_value("general.alignment", K.UINT32, u32(3))), "alignment is 3"),
    "alignment is text": (a_file(a_value("general.alignment", K.STRING, text("32"))), "alignment is 32"),
    "alignment is a list": (
        a_file(a_value("general.alignment", K.ARRAY, u32(K.UINT32) + u64(1) + u32(32))), "alignment is"
    ),
    "2**60 values": (a_file(num_values=2**60), "claims to hold 1152921504606846976 values"),
    "2**60 tensors": (a_file(num_tensors=2**60), "claims to hold 0 values and 1152921504606846976 tensors"),
    "deep arrays": (a_file(a_value("a", K.ARRAY, (u32(K.ARRAY) + u64(1)) * 5000)), "arrays lie 4 deep in each other"),
    "2**61 strings": (a_file(a_value("a", K.ARRAY, u32(K.STRING) + u64(2**61))), "unpack_from requires|ends early"),
    "2**61 numbers": (a_file(a_value("a", K.ARRAY, u32(K.UINT64) + u64(2**61))), "ends early"),
    "a long string": (a_file(a_value("a", K.STRING, u64(2**63))), "ends early"),
    "an unknown type": (a_file(a_value("a", 99, b"")), "99 is not a valid GGUFValueType"),  # type: ignore[arg-type]
    "a key twice": (a_file(a_value("a", K.BOOL, b"\1"), a_value("a", K.BOOL, b"\1")), "says a twice"),
    "no dimensions": (a_file(tensors=(a_tensor(),)), r"tensor t has the shape \(\)"),
    "2**31 dimensions": (a_file(tensors=(a_tensor(dimensions=2**31),)), "2147483648 dimensions"),
    "a size of 0": (a_file(tensors=(a_tensor(8, 0),)), r"tensor t has the shape \(0, 8\)"),
    "sizes beyond 64 bits": (a_file(tensors=(a_tensor(2**32, 2**32, 2**32),)), "tensor t ends beyond the file"),
    "an offset outside": (a_file(tensors=(a_tensor(4, offset=2**40),)), "tensor t ends beyond the file"),
    "an unknown quantisation": (a_file(tensors=(a_tensor(4, kind=77),)), "77 is not a valid GGMLQuantizationType"),
    "half a block": (
        a_file(tensors=(a_tensor(33, kind=GGMLQuantizationType.Q8_0),)), "rows of 33, which Q8_0 cannot store"
    ),
    "a tensor twice": (a_file(tensors=(a_tensor(4), a_tensor(4))), "tensor t is there twice"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "says"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_headers_of_gguf(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(ModelError, match=rf"model\.gguf is no readable GGUF file \(.*{says}.*fetch it again"):
        GGUFFile(tmp_path / "model.gguf")


@pytest.mark.parametrize(("key", "value", "says"), [
    ("llama.attention.head_count", 0, "'attention.head_count' is 0"),
    ("llama.attention.key_length", 2**31, "'attention.key_length' is 2147483648"),
    ("llama.block_count", "three", "'block_count' is 'three'"),
    ("llama.rope.freq_base", 0, "'rope.freq_base' is 0"),
    ("llama.expert_count", "many", "'expert_count' is 'many'"),
    ("general.architecture", 7, "'general.architecture' is 7"),
])  # fmt: skip
def test_metadata_that_cannot_be(tmp_path: Path, key: str, value: Any, says: str) -> None:
    path = write_gguf(make_model(CONFIGS["llama"]), tmp_path / "model.gguf")
    file = GGUFFile(path)
    file.metadata[key] = value
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ModelError, match=says):
        patch.setattr(gguf_config, "GGUFFile", lambda path: file)
        load_model_config(path)


def test_headers_of_gguf_with_bytes_changed(gguf: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf)
    header = min(tensor.offset for tensor in GGUFFile(path).tensors.values())
    mutate_bytes(gguf, header, path, path, rounds=400)
