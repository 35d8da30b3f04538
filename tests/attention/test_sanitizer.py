"""The attention kernels under AddressSanitizer and UndefinedBehaviorSanitizer, in a process of their own."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from longspan.native.build import BuildError, compile_source
from longspan.native.isa import Isa, available_isas

DRIVER = Path(__file__).with_name("sanitizer_driver.cpp")
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
CASES = 60


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Flags of a build with sanitizers; skips where the compiler or its sanitizers' libraries are missing."""
    folder = tmp_path_factory.mktemp("probe")
    (folder / "probe.cpp").write_text("int main() {}\n")
    try:
        compile_source(folder / "probe.cpp", folder / "probe", SANITIZE)
    except BuildError as error:
        pytest.skip(f"no build with sanitizers here: {error}")
    return ("-O1", *SANITIZE)


@pytest.mark.parametrize("isa", available_isas(), ids=lambda isa: isa.label)
def test_no_step_outside_and_nothing_undefined(isa: Isa, sanitized: tuple[str, ...], tmp_path: Path) -> None:
    program = tmp_path / "driver"
    compile_source(DRIVER, program, (*sanitized, *isa.flags, f"-DLONGSPAN_ISA={isa.number}"))
    done = subprocess.run([program, "7", str(CASES)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
