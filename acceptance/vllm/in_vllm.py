"""What runs under vLLM's own Python: one check, whose findings are printed as the last line, in JSON.

    PEER/bin/python in_vllm.py CHECK '{"model": ..., ...}'

The checks are the functions of checks.py and pipelined.py; test_vllm.py starts them, and judges.
"""

from __future__ import annotations

import json
import os
import sys

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_HOST_IP": "127.0.0.1", "VLLM_LOOPBACK_IP": "127.0.0.1",
    "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_USE_AOT_COMPILE": "0",
}  # fmt: skip


def main() -> None:
    os.environ.update(ENVIRONMENT)
    import checks
    import pipelined

    name, told = sys.argv[1:]
    check = getattr(checks, name, None) or getattr(pipelined, name)
    found = check(**json.loads(told))
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
