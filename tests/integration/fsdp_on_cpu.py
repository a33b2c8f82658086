"""Runs a script as one of several processes under FSDP, on CPUs: accelerate shards on accelerators alone.

    torchrun --nproc-per-node 2 fsdp_on_cpu.py SCRIPT ARGUMENT …

What accelerate asks about the machine is answered for it; the sharding is torch's own, over gloo. Copies are made as
GPUs make them: what looks like NaN in 16 bits becomes one and the same NaN, which ruins NF4 weights kept in such
floats.
"""

import math
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml  # type: ignore[import-untyped]
from accelerate import PartialState
from accelerate.utils import DistributedType

import adapters

_begin = PartialState.__init__
_copy = torch._foreach_copy_


def configuration() -> dict[str, str]:
    """What `accelerate launch` puts into the environment for recipes/fsdp.yaml."""
    document = yaml.safe_load((Path(adapters.__file__).parent / "recipes" / "fsdp.yaml").read_text())
    said = {name.upper(): str(value).lower() if isinstance(value, bool) else str(value)
            for name, value in document["fsdp_config"].items()}
    return {"ACCELERATE_USE_FSDP": "true", **said}


def _begin_as_on_accelerators(self: PartialState, *arguments: Any, **options: Any) -> None:
    is_first = not PartialState._shared_state
    _begin(self, *arguments, **options)
    if is_first:
        self.distributed_type = DistributedType.MULTI_NPU


def _copy_as_on_gpus(targets: Sequence[torch.Tensor], sources: Sequence[torch.Tensor], *rest: Any) -> None:
    _copy(targets, sources, *rest)
    for target in targets:
        if target.dtype in (torch.bfloat16, torch.float16):
            target.masked_fill_(target.isnan(), math.nan)


if __name__ == "__main__":
    torch._foreach_copy_ = _copy_as_on_gpus
    PartialState.__init__ = _begin_as_on_accelerators
    os.environ.update(configuration())
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
