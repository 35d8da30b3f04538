"""The compiled kernels in this process: ctypes signatures, and torch's threads for them to run on."""

from __future__ import annotations

import ctypes
import functools
import logging
import re
from pathlib import Path

import torch

from longspan.native.build import BuildError, built_library, is_built
from longspan.native.isa import Isa, wanted_isas

logger = logging.getLogger(__name__)

_pointer, _int64, _int, _float = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
_OPENMP = re.compile(r"/lib(gomp|omp|iomp5)\b[^/]*$")


class SegmentStruct(ctypes.Structure):
    """`Segment` in csrc/types.h."""

    _fields_ = (("start", _int64), ("stop", _int64), ("keys", _int64), ("slots", _pointer))


class MessageStruct(ctypes.Structure):
    """`Message` in csrc/mail.h."""

    _fields_ = (("rank", _int64), ("outgoing", _int64), ("data", _pointer), ("bytes", _int64), ("posted", _int64))


class MatrixStruct(ctypes.Structure):
    """`Matrix` in csrc/decoder.h."""

    _fields_ = (("packed", _pointer), ("bias", _pointer), ("outputs", _int64), ("inputs", _int64), ("bits", _int64))


class DecoderLayerStruct(ctypes.Structure):
    """`DecoderLayer` in csrc/decoder.h."""

    _fields_ = (
        ("attention_norm", _pointer), ("qkv", MatrixStruct), ("qk_norm", _pointer), ("attention_out", MatrixStruct),
        ("mlp_norm", _pointer), ("gate_up", MatrixStruct), ("down", MatrixStruct), ("k", _pointer), ("v", _pointer),
    )  # fmt: skip


class AsksStruct(ctypes.Structure):
    """`Asks` in csrc/decoder.h."""

    _fields_ = (("rank", _int64), ("rows", _pointer), ("first", _int64), ("count", _int64))


class AnswersStruct(ctypes.Structure):
    """`Answers` in csrc/decoder.h."""

    _fields_ = (("rank", _int64), ("count", _int64), ("segments", _pointer), ("num_segments", _int64))


class DecodeStepStruct(ctypes.Structure):
    """`DecodeStep` in csrc/decoder.h."""

    _fields_ = (
        ("x", _pointer), ("mlp", _pointer), ("cosines", _pointer), ("sines", _pointer), ("slots", _pointer),
        ("segments", _pointer), ("layers", _pointer), ("mail", _pointer), ("asks", _pointer), ("answers", _pointer),
        ("num_asks", _int64), ("num_answers", _int64), ("num_layers", _int64), ("tokens", _int64), ("hidden", _int64),
        ("heads", _int64), ("kv_heads", _int64), ("head_dim", _int64), ("intermediate", _int64),
        ("pool_head", _int64), ("pool_slot", _int64), ("eps", _float), ("scale", _float), ("threads", _int),
    )  # fmt: skip


class Library:
    """Functions of the C interface; each gives up the GIL while it runs. See csrc/library.cpp for what they take."""

    def __init__(self, isa: Isa, path: Path) -> None:
        self.isa = isa
        library = ctypes.CDLL(str(path))
        self.attend = library.longspan_attend
        self.attend.argtypes = [*[_pointer] * 5, *[_int64] * 9, _pointer, _int64, _int, _int, _float, _int]
        self.rms_norm = library.longspan_rms_norm
        self.rms_norm.argtypes = [
            _pointer, _int64, _int64, _pointer, _pointer, _pointer, _int64, _pointer, *[_int64] * 3, _float,
            *[_int] * 3,
        ]  # fmt: skip
        self.rotate = library.longspan_rotate
        self.rotate.argtypes = [_pointer, _int64, _int64, *[_pointer] * 3, *[_int64] * 3, _int, _int]
        self.silu_and_mul = library.longspan_silu_and_mul
        self.silu_and_mul.argtypes = [_pointer, _int64, _pointer, _int64, _int64, _int, _int]
        self.packed_lanes = library.longspan_packed_lanes
        self.packed_lanes.argtypes = [_int64, _int64, _int]
        self.packed_lanes.restype = _int64
        self.pack_linear = library.longspan_pack_linear
        self.pack_linear.argtypes = [_pointer, _pointer, _int64, _int64, _int]
        self.linear = library.longspan_linear
        self.linear.argtypes = [
            _pointer, _int64, _pointer, _pointer, _pointer, _int, _int64, _int64, _int64, _int, _int
        ]  # fmt: skip
        self.quantized_lanes = library.longspan_quantized_lanes
        self.quantized_lanes.argtypes = [_int64, _int64, _int, _int]
        self.quantized_lanes.restype = _int64
        self.pack_quantized = library.longspan_pack_quantized
        self.pack_quantized.argtypes = [*[_pointer] * 4, _int64, _int64, _int, _int]
        self.quantized_linear = library.longspan_quantized_linear
        self.quantized_linear.argtypes = [_pointer, _int64, *[_pointer] * 3, _int, *[_int64] * 3, *[_int] * 3]
        self.write_slots = library.longspan_write_slots
        self.write_slots.argtypes = [_pointer, _int64, _int64, _pointer, _pointer, *[_int64] * 6, _int]
        self.slots_within = library.longspan_slots_within
        self.slots_within.argtypes = [_pointer, _int64, _int64]
        self.decode = library.longspan_decode
        self.decode.argtypes = [_pointer, _int]
        self.merge_rows = library.longspan_merge_rows
        self.merge_rows.argtypes = [*[_pointer] * 5, *[_int64] * 4, _int]
        self.mail_new = library.longspan_mail_new
        self.mail_new.argtypes = [_pointer]
        self.mail_new.restype = _pointer
        self.mail_connect = library.longspan_mail_connect
        self.mail_connect.argtypes = [_pointer, _int64, *[_pointer] * 3, _int64, _int]
        self.mail_connect_socket = library.longspan_mail_connect_socket
        self.mail_connect_socket.argtypes = [_pointer, _int64, _int, _int]
        self.mail_post = library.longspan_mail_post
        self.mail_post.argtypes = [_pointer, _pointer, _int64]
        self.mail_wait = library.longspan_mail_wait
        self.mail_wait.argtypes = [_pointer, _pointer, _int64]
        self.mail_drop = library.longspan_mail_drop
        self.mail_drop.argtypes = [_pointer]
        self.use_openmp = library.longspan_use_openmp
        self.use_openmp.argtypes = [_pointer]
        for function in (self.rms_norm, self.rotate, self.silu_and_mul, self.use_openmp,
                         self.merge_rows, self.mail_connect, self.mail_connect_socket, self.mail_post, self.mail_drop,
                         self.pack_linear, self.linear, self.pack_quantized, self.quantized_linear):  # fmt: skip
            function.restype = None
        self.use_openmp(openmp_parallel())


@functools.cache
def load(isa: Isa) -> Library:
    """Raises BuildError."""
    path = built_library(isa)
    try:
        return Library(isa, path)
    except (OSError, AttributeError) as error:
        raise BuildError(f"{path} cannot be loaded: {error}") from error


@functools.cache
def best_library() -> Library | None:
    """Return the fastest kernels that run here. None: there are none, and the log says why in one line."""
    reason = "they are written for x86-64 with AVX2 or AVX-512"
    for isa in wanted_isas():
        try:
            return load(isa)
        except BuildError as error:
            reason = str(error)
    logger.info("the CPU kernels are not used: %s. torch's own attention serves instead", reason)
    return None


def must_be_built() -> bool:
    """Tell whether `best_library` is going to compile, which takes some seconds."""
    try:
        return any(not is_built(isa) for isa in list(wanted_isas())[:1])
    except BuildError:
        return False


def openmp_parallel() -> int | None:
    """Return the address of GOMP_parallel in the OpenMP runtime that torch itself uses.

    A team of our own would compete with torch's for the same cores, whose threads spin for a while after each operator.
    """
    if "ATen parallel backend: OpenMP" not in torch.__config__.parallel_info():
        return None
    try:
        loaded = {line.split(maxsplit=5)[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    except OSError:
        return None
    torch_folder = str(Path(torch.__file__).parent)
    # The one in torch's wheel first, should another package have brought its own.
    for path in sorted(filter(_OPENMP.search, loaded), key=lambda path: not path.startswith(torch_folder)):
        try:
            return ctypes.cast(ctypes.CDLL(path).GOMP_parallel, _pointer).value
        except (OSError, AttributeError):
            continue
    return None
