"""Write the default model as a folder of bf16 safetensors, for peers that do not read GGUF: `python ... MODEL_DIR`."""

from __future__ import annotations

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from longspan.models.catalog import resolve_model


def main(folder: str) -> None:
    gguf = resolve_model("smollm2-135m").path
    source = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = source.config
    del config.quantization_config  # the weights are plain now, and transformers refuses to save quantised ones
    config.dtype = torch.bfloat16
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(source.state_dict())
    model.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


if __name__ == "__main__":
    main(sys.argv[1])
