"""The inference engine: `load_engine(folder)`, then `encode(listings)`."""
