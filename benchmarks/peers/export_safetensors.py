"""Write the default model as a folder of bf16 safetensors, for peers that do not read GGUF: `python ... MODEL_DIR`."""

from __future__ import annotations

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from longspan.models.catalog import resolve_model


def main(folder: str) -> None:
    model = resolve_model("smollm2-135m")
    source = {"pretrained_model_name_or_path": model.path.parent, "gguf_file": model.path.name}
    AutoModelForCausalLM.from_pretrained(**source, dtype=torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)


if __name__ == "__main__":
    main(sys.argv[1])
