"""Write the default model as a bf16 GGUF, for llama.cpp beside its Q4_1 original: `python export_bf16_gguf.py FILE`.

The norms stay fp32, as llama.cpp wants them.
"""

from __future__ import annotations

import sys

import gguf
import torch

from longspan.models.catalog import resolve_model


def main(target: str) -> None:
    source = gguf.GGUFReader(resolve_model("smollm2-135m").path)
    writer = gguf.GGUFWriter(target, "llama")
    for field in source.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        kind = field.types[0]
        value = gguf.LlamaFileType.MOSTLY_BF16.value if field.name == "general.file_type" else field.contents()
        writer.add_key_value(field.name, value, kind, sub_type=field.types[-1] if len(field.types) > 1 else None)
    for tensor in source.tensors:
        values = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        if values.dim() == 1:
            writer.add_tensor(tensor.name, values.float().numpy())
        else:
            bits = values.to(torch.bfloat16).view(torch.int16).numpy()
            writer.add_tensor(tensor.name, bits, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main(sys.argv[1])
