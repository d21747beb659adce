"""All methods of adaptation by their names. Needs torch; what serves adapters is in `adapter`, `files` and `bank`."""

from __future__ import annotations

import dataclasses
from typing import Any

from item.adapters.hiwi import HiWi, HiwiConfig
from item.adapters.lora import Lora, LoraConfig, RoadLora, RoadLoraConfig
from item.adapters.meft import Meft, MeftConfig
from item.adapters.method import Method
from item.adapters.pafi import PaFi, PafiConfig
from item.adapters.road import Road, RoadConfig
from item.errors import ConfigError
from item.model.encoder import ITEm

METHODS: dict[str, tuple[type[Method], Any]] = {
    "road_1": (Road, RoadConfig(variant="road_1")),
    "road_2": (Road, RoadConfig(variant="road_2")),
    "road_4": (Road, RoadConfig(variant="road_4")),
    "lora": (Lora, LoraConfig()),
    "road_lora": (RoadLora, RoadLoraConfig()),
    "hiwi": (HiWi, HiwiConfig()),
    "pafi": (PaFi, PafiConfig()),
    "meft1": (Meft, MeftConfig(variant="meft1")),
}


def make_method(name: str, model: ITEm, num_adapters: int = 1, **changes: Any) -> Method:
    """N fresh adapters of one model. changes: fields of the method's configuration.

    Raises:
        ConfigError: there is no such method or field, or a value cannot be used.
    """
    if name not in METHODS:
        raise ConfigError(f"method: {name!r} is none of {', '.join(METHODS)}")
    kind, config = METHODS[name]
    known = [field.name for field in dataclasses.fields(config)]
    if unknown := sorted(changes.keys() - set(known)):
        raise ConfigError(f"{unknown[0]}: {name} has no such option; it has {', '.join(known)}")
    return kind(model, dataclasses.replace(config, **changes), num_adapters)
