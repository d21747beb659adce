"""Progress for people: a bar with rate and remaining time on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from typing import Any

LINE_EVERY_S = 10.0


class Progress:
    """Counts `unit`s of `total`; `close` when done. Writes to standard error."""

    def __init__(self, name: str, total: int, unit: str, initial: int = 0) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.initial = self.count = initial
        self.start = self.last_line = time.monotonic()
        self.bar = make_bar(total=total, initial=initial, desc=name, unit=f" {unit}") if sys.stderr.isatty() else None

    def update(self, count: int = 1, note: str = "") -> None:
        """`count` more are done; `note` is shown behind, for instance the loss."""
        self.count += count
        if self.bar is not None:
            self.bar.set_postfix_str(note, refresh=False)
            self.bar.update(count)
        elif time.monotonic() - self.last_line >= LINE_EVERY_S or self.count >= self.total:
            self.last_line = time.monotonic()
            self.print_line(note)

    def print_line(self, note: str) -> None:
        """One line of a log."""
        elapsed = time.monotonic() - self.start
        rate = (self.count - self.initial) / max(elapsed, 1e-9)
        left = (self.total - self.count) / max(rate, 1e-9)
        line = f"{self.name}: {self.count}/{self.total} {self.unit}, {rate:.3g}/s, {left:.0f} s left"
        sys.stderr.write(f"{line}, {note}\n" if note else f"{line}\n")  # one write: print() of two parts interleaves

    def close(self) -> None:
        """Ends the bar."""
        if self.bar is not None:
            self.bar.close()


def make_bar(**settings: Any) -> Any:
    """A bar of tqdm; None, for lines in its place, where the client alone is installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(**settings)
