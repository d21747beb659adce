"""Keeps Ray quiet. Alone in its module because every process of Ray imports it when it starts: it must be light."""

from __future__ import annotations

import logging


def quiet_ray() -> None:
    """Leaves Ray's errors, and our own lines; Ray's notices of each stage are in its own log files."""
    for name in ("ray", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
