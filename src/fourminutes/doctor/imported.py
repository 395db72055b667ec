"""What torch or DALI says of itself, as JSON on stdout: run as a program, since an import may hang or crash.

`python -m fourminutes.doctor.imported torch` and `... dali`.
"""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from typing import Any


def torch_says() -> dict[str, Any]:
    """Version, CUDA build (null for a CPU build), NCCL, GPUs that torch sees, and the architectures it is built for."""
    import torch

    usable = torch.cuda.is_available()
    nccl = torch.cuda.nccl.version() if usable else ()  # type: ignore[no-untyped-call]
    properties = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count() * usable)]
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "nccl": ".".join(map(str, nccl)) if usable else None,
        "gpus": [{"name": each.name, "capability": [each.major, each.minor]} for each in properties],
        "architectures": torch.cuda.get_arch_list(),
    }


def dali_says() -> dict[str, Any]:
    """Version of what is imported."""
    import nvidia.dali

    return {"version": nvidia.dali.__version__}


if __name__ == "__main__":
    with redirect_stdout(sys.stderr):  # whatever an import prints
        said = {"torch": torch_says, "dali": dali_says}[sys.argv[1]]()
    print(json.dumps(said))
