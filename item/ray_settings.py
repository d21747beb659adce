"""What Ray reads from the environment when it starts, for the programs that start one. Loads nothing of Ray."""

from __future__ import annotations

import os

DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_gcs_server_port_wait_time_s": "120",  # a busy machine starts it slowly
    "RAY_worker_niceness": "0",  # not Ray's 15: who wants a lower priority starts with `nice`
}


def set_ray_defaults() -> None:
    """Sets what the environment does not; before `ray.init`."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
