#!/usr/bin/env bash
# A venv with llama.cpp, compiled for this machine's processor: setup_llama_cpp.sh FOLDER
set -euo pipefail
folder=${1:?usage: setup_llama_cpp.sh FOLDER}
python3 -m venv "$folder"
CMAKE_ARGS="-DGGML_NATIVE=ON" "$folder/bin/pip" install --disable-pip-version-check "llama-cpp-python>=0.3.16,<0.4" gguf
