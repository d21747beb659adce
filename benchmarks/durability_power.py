"""Power cuts: what benchmarks.durability finds in the images of a file system that they may leave."""

from __future__ import annotations

import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from random import Random

from benchmarks.crash_images import VARIANTS, Image, record, replay
from benchmarks.durability_finds import QUIET, History, Observed, counted, judge, observe, promised, repairs, show
from benchmarks.durability_process import COLLECTION, Orders, writer_command
from benchmarks.durability_writes import whole_script
from benchmarks.report import CHECKOUT, Result
from index.generations import CURRENT
from index.store import Store
from item.errors import StoreError
from item.progress import Progress

INSTALL = "strace is not there: install the package `strace`; power cuts are left out"


class PowerCuts:
    """What becomes of the images of a log of system calls."""

    def __init__(self, root: Path, scratch: Path, seed: int) -> None:
        """root: the folder in which the writer made its collection; scratch: takes the images."""
        self.root, self.scratch, self.rng = root, scratch, Random(seed)
        self.history = History()
        self.num_points = 0
        self.images, self.broken = Counter[str](), Counter[str]()
        self.faults: list[str] = []
        self._known: dict[bytes, Observed | StoreError] = {}
        self._judged: set[tuple[bytes, int, bool]] = set()

    def run(self, log: Iterable[str], every: int) -> None:
        """Judges the images of every so many-th moment."""
        lines: list[bytes] = []
        for number, point in enumerate(replay(log, self.root, lines)):
            for line in lines:
                self.history.hear(line)
            lines.clear()
            if number % every == 0:
                self.num_points += 1
                for variant, times in VARIANTS.items():
                    for _ in range(times):
                        self.judge(variant, point.disk.image(variant, self.rng), point.before)

    def judge(self, variant: str, image: Image, before: str) -> None:
        """Opens an image, unless it is known, and compares it with what was acknowledged at this moment."""
        digest, history = image.digest(), self.history
        if (key := (digest, history.acknowledged, history.running is None)) in self._judged:
            return
        self._judged.add(key)
        self.images[variant] += 1
        if digest not in self._known:
            self._known[digest] = self.open(image)
        if faults := self.faults_of(self._known[digest], image):
            self.broken[variant] += 1
            what = "nothing" if history.running is None else history.running.kind
            self.faults += [f"{variant}: before {before}, while {what} runs: {text}" for text in faults[:1]]

    def open(self, image: Image) -> Observed | StoreError:
        """What is found in an image."""
        folder = self.scratch / "image"
        image.write(folder)
        try:
            with Store.open(folder / COLLECTION, writable=True, upkeep=QUIET) as store:
                return observe(store)
        except StoreError as error:
            return error
        finally:
            shutil.rmtree(folder)

    def faults_of(self, found: Observed | StoreError, image: Image) -> list[str]:
        """What is wrong with it; before a collection was first acknowledged, there may be none."""
        acknowledged, after = self.history.content, self.history.after()
        if isinstance(found, StoreError):
            nothing = acknowledged is None and f"{COLLECTION}/{CURRENT}" not in image.entries
            return [] if nothing else [str(found).replace(str(self.scratch), "")]
        if after is None:
            return ["a collection that nobody has made"]
        return judge(found, acknowledged or after, after).all()


def power_results(folder: Path, scratch: Path, quick: bool) -> list[Result]:
    """The writer's script under strace, and the images of its log; nothing where strace is not there."""
    if shutil.which("strace") is None:
        print(INSTALL, file=sys.stderr)
        return []
    root, log = folder / "disk", folder / "strace.log"
    root.mkdir()
    orders = Orders(flush_rows=12, flat_rows=30, background=False, script=whole_script(1 if quick else 6))
    record(writer_command(root / COLLECTION), log, CHECKOUT, orders.to_json())
    cuts = PowerCuts(root, scratch, seed=0)
    lines = log.read_text(encoding="ascii").splitlines(keepends=True)
    with repairs() as rebuilt, closing(Progress("power cuts", len(lines), "calls")) as progress:
        cuts.run(counting(lines, progress), every=40 if quick else 1)
    show("image", cuts.faults)
    show("image rebuilt", [without_names(text) for text in rebuilt])
    where = f"{cuts.num_points} moments, {cuts.history.acknowledged} operations acknowledged"
    return [
        counted("images", cuts.images.total(), where),
        promised("images_broken", cuts.broken.total(), where),
        *(promised(f"images_broken_{one}", cuts.broken[one], f"{cuts.images[one]} images") for one in VARIANTS),
        promised("images_rebuilt", len(rebuilt), where),
    ]


def counting(lines: Iterable[str], progress: Progress) -> Iterator[str]:
    """The same lines."""
    for line in lines:
        progress.update()
        yield line


def without_names(text: str) -> str:
    """A message without what differs from one run to the next."""
    return re.sub(r"\S*/generation-[-0-9]+|[0-9a-f]{12,}", "*", text)
