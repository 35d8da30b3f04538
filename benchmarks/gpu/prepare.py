"""Collects what evidence.py needs beside this working tree, as wheels, for a machine that can fetch nothing.

    .venv/bin/python benchmarks/gpu/prepare.py

The machine has what MACHINE lists; the rest comes as wheels for its Python, into a folder of the working tree that git
ignores. What the wheels need themselves has to be there too. The tree and the wheels together may not be larger than
what can be carried; if they are, the largest files are named and nothing is said to be ready.
"""

from __future__ import annotations

import argparse
import ast
import shutil
import subprocess
import sys
import zipfile
from email.parser import HeaderParser
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

if find_spec("packaging") is None or find_spec("msgspec") is None or find_spec("pip") is None:
    sys.exit("this Python has not the project's packages: .venv/bin/python benchmarks/gpu/prepare.py")

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
# A CUDA image of torch 2.11 with transformers, and what those two bring with them.
MACHINE = (
    "torch", "numpy", "triton", "transformers", "tokenizers", "safetensors", "jinja2", "rich", "filelock", "tqdm",
    "pyyaml", "requests", "packaging", "regex", "huggingface-hub", "typing-extensions", "prometheus-client",
)  # fmt: skip
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux1_x86_64")
LARGEST = 10


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default="3.12", help="of the machine")
    parser.add_argument("--there", nargs="*", default=[], help="packages that the machine has beside the usual ones")
    parser.add_argument("--limit-mib", type=float, default=64.0, help="the most that can be carried")
    parser.add_argument("--folder", type=Path, default=ROOT / ".wheels", help="emptied first; in the working tree")
    options = parser.parse_args()
    options.folder = options.folder.resolve()
    if not options.folder.is_relative_to(ROOT):
        parser.error(f"{options.folder} is not in the working tree, which is what is carried")
    if options.folder.exists() and any(file.suffix != ".whl" for file in options.folder.iterdir()):
        parser.error(f"{options.folder} has more than wheels in it, and would be emptied")
    there = {canonicalize_name(name) for name in (*MACHINE, *options.there)}
    bring = [name for name in needed() if canonicalize_name(name) not in there]
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    wheels = [download(name, options.python, options.folder) for name in bring]
    if missing := uncovered(wheels, there | {canonicalize_name(name) for name in bring}, options.python):
        print(f"not covered: {'; '.join(missing)}; name them with --there if the machine has them")
        return 1
    files = [*travelling(), *wheels]
    size = sum(file.stat().st_size for file in files) / 2**20
    if size > options.limit_mib:
        print(f"{size:.1f} MiB would have to be carried, but {options.limit_mib:.0f} MiB can be; the largest files:")
        for file in sorted(files, key=lambda file: -file.stat().st_size)[:LARGEST]:
            print(f"  {file.stat().st_size / 2**20:6.1f} MiB  {file.relative_to(ROOT)}")
        return 1
    folder = options.folder.relative_to(ROOT)
    print(f"{size:.1f} MiB to carry, and {folder}/ by name, which git may ignore: {', '.join(w.name for w in wheels)}.")
    print("There, SITE is a new folder for the packages, OUT one for the results:")
    print(f"  python3 -m pip install --no-index --no-deps --target SITE {folder}/*.whl; export PYTHONPATH=SITE")
    print("  python3 benchmarks/gpu/evidence.py correctness --out OUT")
    print("  python3 benchmarks/gpu/evidence.py speed --out OUT")
    return 0


def needed() -> list[str]:
    """`NEEDED` of evidence.py, which runs where this file's own imports are not."""
    for statement in ast.parse((HERE / "evidence.py").read_text()).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "NEEDED":
            return list(ast.literal_eval(statement.value))
    raise AssertionError("evidence.py does not say what it needs")


def download(name: str, python: str, folder: Path) -> Path:
    """The version that is installed here. Returns the wheel."""
    before = set(folder.iterdir())
    target = ["--only-binary=:all:", "--python-version", python, "--implementation", "cp"]
    target += [word for platform in PLATFORMS for word in ("--platform", platform)]
    what = ["-q", "--no-deps", "-d", str(folder), f"{name}=={version(name)}"]
    subprocess.run([sys.executable, "-m", "pip", "download", *target, *what], check=True)
    (wheel,) = set(folder.iterdir()) - before
    return wheel


def uncovered(wheels: list[Path], covered: set[str], python: str) -> list[str]:
    """What the wheels need there, extras aside, and nobody brings."""
    environment: dict[str, str] = {
        **{name: str(value) for name, value in default_environment().items()},
        "python_version": python, "python_full_version": f"{python}.0", "extra": "",
    }  # fmt: skip
    missing = []
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
            metadata = HeaderParser().parsestr(archive.read(name).decode())
        for line in metadata.get_all("Requires-Dist", []):
            requirement = Requirement(line)
            if requirement.marker and not requirement.marker.evaluate(environment):
                continue
            if canonicalize_name(requirement.name) not in covered:
                missing.append(f"{wheel.name} needs {requirement.name}")
    return missing


def travelling() -> list[Path]:
    """Files of the working tree that git tracks or does not ignore."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=True,
    ).stdout.decode()  # fmt: skip
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


if __name__ == "__main__":
    sys.exit(main())
