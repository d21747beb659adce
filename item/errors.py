"""The errors of ITEm. A message says what was wrong, the value, and what to do about it.

ItemError
├── ConfigError            a configuration or an argument: unknown key, value out of range
├── CatalogError           a catalogue that cannot be read at all: missing, empty, unknown format, no product_id column
├── ListingError           one listing that is refused (its neighbours go on): carries the field
│   └── PictureError       its picture cannot be read, or is over a limit
├── ModelError             a model folder or starting weights: missing, damaged, not matching
├── StoreError             an index folder: missing, damaged, of another version
│   ├── LeaseError         another process writes to it
│   ├── ReadOnlyError      it was opened to read
│   └── UnavailableError   a vector database that cannot be reached at present
├── SpaceError             vectors of different spaces (or widths) brought together
└── ServiceError           what a server answered to the client: carries the gRPC status code
"""

from __future__ import annotations


class ItemError(Exception):
    """Base of every error that ITEm raises on purpose."""


class ConfigError(ItemError, ValueError):
    """A configuration value that cannot be used."""


class CatalogError(ItemError, ValueError):
    """A catalogue file that cannot be read at all."""


class ListingError(ItemError, ValueError):
    """One listing that is refused.

    Args:
        field: the column or request field at fault, for instance ``"category"``.
        reason: what is wrong, with the value and the way out.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field = field
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}"


class PictureError(ListingError):
    """A picture that cannot be read or is over a limit."""


class ModelError(ItemError, ValueError):
    """A model folder or starting weights that cannot be loaded."""


class StoreError(ItemError, ValueError):
    """An index folder that cannot be opened or written."""


class LeaseError(StoreError):
    """An index that another process writes to."""


class ReadOnlyError(StoreError):
    """A write to an index that was opened to read."""


class UnavailableError(StoreError):
    """A vector database that cannot be reached, or that takes no more at present: try again later."""


class SpaceError(ItemError, ValueError):
    """Vectors of different spaces, or of different widths, brought together."""


class ServiceError(ItemError):
    """What a server answered to the client.

    Args:
        code: the gRPC status code's name, for instance ``"NOT_FOUND"``.
        details: the server's message.
    """

    def __init__(self, code: str, details: str) -> None:
        super().__init__(code, details)
        self.code = code
        self.details = details

    def __str__(self) -> str:
        return f"{self.code}: {self.details}"
