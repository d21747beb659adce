"""Progress for people: a bar with rate and remaining time on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

LINE_EVERY_S = 10.0


class Progress:
    """Counts rows up to `total`, `initial` of which were done before. Writes to standard error."""

    def __init__(self, total: int, initial: int) -> None:
        self.total, self.initial, self.count = total, initial, initial
        self.start = self.last_line = time.monotonic()
        self.bar = tqdm(total=total, initial=initial, unit=" rows") if sys.stderr.isatty() else None

    def update(self, count: int) -> None:
        """`count` more rows are done."""
        self.count += count
        if self.bar is not None:
            self.bar.update(count)
        elif time.monotonic() - self.last_line >= LINE_EVERY_S:
            self.last_line = time.monotonic()
            rate = (self.count - self.initial) / (self.last_line - self.start)
            left_s = max(0, self.total - self.count) / rate
            line = f"{self.count:,} of {self.total:,} rows, {rate:,.1f} rows/s, {left_s:,.0f} s left"
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Ends the bar."""
        if self.bar is not None:
            self.bar.close()
