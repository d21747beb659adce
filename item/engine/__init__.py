"""The inference engine: `load_engine(folder)`, then `encode(listings)`."""

from item.engine.interface import Encoded, Engine, Vectors
from item.engine.loading import load_engine

__all__ = ["Encoded", "Engine", "Vectors", "load_engine"]
