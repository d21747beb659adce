"""Which device to run on."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from item.errors import ConfigError

DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/dxg"))  # of which Linux has one where it sees an NVIDIA GPU


def choose_device(name: str) -> str:
    """ "auto", "cpu", "cuda" or "cuda:N" -> one that is there; ConfigError otherwise."""
    if name == "cpu":
        return name
    number, count = gpu_number(name), num_gpus()
    if name == "auto":
        return "cuda" if count else "cpu"
    if number >= count:
        raise ConfigError(f"device: {name!r} is not there; this machine has {count} GPUs")
    return name


def gpu_number(name: str) -> int:
    """The N of "cuda:N", and 0 of "auto", "cuda" and "cpu". Raises ConfigError for what is no device."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise ConfigError(f"device: {name!r} is none of auto, cpu, cuda, cuda:N")
    return int(name.partition(":")[2] or 0)


def num_gpus() -> int:
    """GPUs that torch can use. Torch takes seconds to load: it is not asked where no driver is."""
    if sys.platform == "linux" and not any(path.exists() for path in DRIVERS):
        return 0
    import torch

    return torch.cuda.device_count()
