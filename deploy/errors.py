"""What can be wrong with a request, and the gRPC status that every error becomes.

RequestError                   carries the field at fault
├── InvalidRequestError        a value that no server could use
├── NotFoundError              a product, adapter or collection that is not there
├── ExistsError                a name that is taken
├── PreconditionError          a vector of another space, an adapter that cannot be used, no index
├── NotOfferedError            an rpc or field that this version does not offer
├── DeadlineError              the caller has stopped waiting
└── BusyError                  carries how long to wait
    ├── QueueFullError         too many requests are waiting
    ├── NotServingError        the server is loading
    └── NotWritableError       another process still writes to the collection
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import ParamSpec, TypeVar

from item.errors import ItemError, ListingError, SpaceError, UnavailableError

P = ParamSpec("P")
T = TypeVar("T")


class Status(IntEnum):
    """The gRPC status codes in use, by their numbers (google.rpc.Code)."""

    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14


class RequestError(ItemError):
    """A request, or one item of it, that is refused.

    Args:
        field: the field at fault within the whole request, for instance ``"inputs[3].image"``; empty: none.
        reason: what is wrong, with the value and the way out.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field = field
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}" if self.field else self.reason


class InvalidRequestError(RequestError):
    """A value that no server could use."""


class NotFoundError(RequestError):
    """A product, adapter or collection that is not there."""


class ExistsError(RequestError):
    """A name that is taken."""


class PreconditionError(RequestError):
    """A request that this server cannot answer: a vector of another space, an adapter that cannot be used, no index, or
    one that is only read."""


class NotOfferedError(RequestError):
    """An rpc or field of the contract that this version does not offer."""


class DeadlineError(RequestError):
    """The caller has stopped waiting."""


class BusyError(RequestError):
    """Come again after `retry_delay_s` seconds."""

    def __init__(self, reason: str, retry_delay_s: float) -> None:
        super().__init__("", reason)
        self.retry_delay_s = retry_delay_s


class QueueFullError(BusyError):
    """Too many requests are waiting for the model."""


class NotServingError(BusyError):
    """The server is loading."""


class NotWritableError(BusyError):
    """Another process still writes to the collection, as in a rolling restart."""


STATUS_OF: dict[type[Exception], Status] = {
    InvalidRequestError: Status.INVALID_ARGUMENT,
    ListingError: Status.INVALID_ARGUMENT,
    NotFoundError: Status.NOT_FOUND,
    ExistsError: Status.ALREADY_EXISTS,
    PreconditionError: Status.FAILED_PRECONDITION,
    SpaceError: Status.FAILED_PRECONDITION,
    NotOfferedError: Status.UNIMPLEMENTED,
    NotImplementedError: Status.UNIMPLEMENTED,  # what the generated code raises for an rpc without a method
    DeadlineError: Status.DEADLINE_EXCEEDED,
    QueueFullError: Status.RESOURCE_EXHAUSTED,
    NotServingError: Status.UNAVAILABLE,
    NotWritableError: Status.UNAVAILABLE,
    UnavailableError: Status.UNAVAILABLE,
    Exception: Status.INTERNAL,
}


def status_of(error: Exception) -> Status:
    """The status that an error becomes: that of its nearest class in `STATUS_OF`."""
    return next(STATUS_OF[kind] for kind in type(error).__mro__ if kind in STATUS_OF)


def attempt(make: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | RequestError:
    """What `make` returns for one item of a call, or why it refuses the item."""
    try:
        return make(*args, **kwargs)
    except RequestError as error:
        return error


@dataclass(frozen=True, slots=True)
class Deadline:
    """Until when the caller waits: seconds of `time.monotonic`, or None for ever."""

    at_s: float | None = None

    @classmethod
    def after(cls, seconds: float | None) -> Deadline:
        """The deadline that many seconds from now; None: none."""
        return cls(None if seconds is None else time.monotonic() + seconds)

    def check(self) -> None:
        """Raises DeadlineError once the deadline has passed, so that work nobody waits for is not begun."""
        if self.at_s is not None and time.monotonic() >= self.at_s:
            raise DeadlineError("", "the deadline passed before the work was done; ask for less, or allow more time")
