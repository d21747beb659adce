"""A collection: what is written to it is durable, and found by the next search.

    COLLECTION/
      lease                       held by the process that writes
      current.json                the generation that counts, the one before, one that is coming (index.generations)
      pictures/                   those of the latest writes, while another generation needs them (index.pictures)
      generation-*/
        truth.sqlite              products and vectors: the truth (index.truth)
        acknowledged              the last revision that was acknowledged
        manifest.json             the segments (index.manifest)
        rows-, vectors-, ...      their files: a cache of the truth (index.segment)

Fresh writes are searched exactly beside the segments, until a background thread makes a segment of them. One process
writes; others open the collection to read and see each write as soon as it is acknowledged.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from types import TracebackType

from index.about import About
from index.backup import write_backup
from index.changes import Changes, Followed, Keys
from index.choosing import Choice
from index.creation import write_generation
from index.exact import Vectors, unit
from index.filters import Filter
from index.generations import read_generations, remove_others, switch
from index.gpu import Gpu
from index.lease import Lease
from index.manifest import Manifest, Stamp, stamp
from index.memory import Memory, View
from index.pictures import KeptPictures, remove_kept
from index.product import Product
from index.ranking import NO_GROUPS, Query, Ranked, Ranking
from index.recall import RecallEstimate, RecallSample
from index.search import Found, search
from index.segment import Segment
from index.segment_files import load_segments, merge_segments, remove_unnamed, rewrite_segments
from index.truth import Truth, read_level
from index.upkeep import Upkeep, UpkeepThread
from index.vector_store import checked, per_query
from item.errors import ConfigError, ReadOnlyError, StoreError

logger = logging.getLogger(__name__)

UPKEEP, CHOICE = Upkeep(), Choice()


class Store:
    """An open collection. Any number of threads may search it and write to it.

    Shapes: Q queries, D = `store.about.vector_width`.
    """

    def __init__(
        self,
        folder: Path,
        lease: Lease | None,
        upkeep: Upkeep,
        choice: Choice,
        gpu: Gpu | None = None,
        generation: str | None = None,
    ) -> None:
        """`open` makes one; `lease`: None opens it to read. `beside` gives a `generation`, and the lease of another."""
        self.folder, self.upkeep, self.choice, self.gpu = folder, upkeep, choice, gpu
        self._lease = lease
        self._borrowed = generation is not None  # the lease
        self._only = generation  # it is this one whatever counts
        self._kept_pictures = KeptPictures(folder)
        self._generation: str
        self._truth: Truth
        self._memory: Memory
        self._opened = self._closed = False
        self._num_readers: dict[Truth, int] = {}
        self._lock = threading.Lock()  # of what is above, held for moments
        self._idle = threading.Condition(self._lock)  # told when nobody reads a truth any more
        self._writing = threading.Lock()  # one transaction at a time
        self._maintaining = threading.Lock()  # one merge at a time
        self._open_generation()
        self._sample = RecallSample()
        self._thread: UpkeepThread | None = None
        if not self._borrowed:
            self._start_upkeep()

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        writable: bool = False,
        upkeep: Upkeep = UPKEEP,
        choice: Choice = CHOICE,
        gpu: Gpu | None = None,
    ) -> Store:
        """Opens a collection's folder and checks every file of its segments; damaged segments are made again.

        gpu: searches segments, as far as they fit there.

        Raises:
            StoreError: the folder is missing, is no collection, or its truth is damaged or of a newer version.
            LeaseError: `writable`, and another process writes to it.
        """
        read_generations(folder)
        lease = Lease.acquire(folder) if writable else None
        try:
            return cls(folder, lease, upkeep, choice, gpu)
        except BaseException:
            if lease is not None:
                lease.release()
            raise

    @classmethod
    def create(
        cls,
        folder: Path,
        about: About,
        blocks: Iterable[tuple[Sequence[Product], Vectors]] = (),
        *,
        choice: Choice = CHOICE,
        upkeep: Upkeep = UPKEEP,
    ) -> Store:
        """Writes a generation of blocks of products and vectors, (n, D), lets it count, and opens it to write.

        A generation that was there is kept as the one before.

        Raises:
            StoreError: a vector of another width or not of unit norm, an id that comes twice, a folder that cannot be
                written; what was there before stays.
            LeaseError: another process writes to the collection.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{folder}: cannot be written to ({error.strerror}); give another folder") from error
        with Lease.acquire(folder):
            name = write_generation(folder, about, blocks, choice)
            remove_others(folder, switch(folder, name))  # whatever goes wrong from here on, it is whole and may count
            remove_kept(folder)
        return cls.open(folder, writable=True, upkeep=upkeep, choice=choice)

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the background work, and lets others write."""
        if self._closed:
            return
        self._closed = True
        if self._thread is not None:
            self._thread.stop()
        self._sample.close()
        with self._maintaining, self._writing, self._idle:
            self._idle.wait_for(lambda: not self._num_readers)
            self._truth.close()
        self._leave_gpu()
        if self._lease is not None and not self._borrowed:
            self._lease.release()

    @property
    def writable(self) -> bool:
        """Whether this process may write."""
        return self._lease is not None

    @property
    def about(self) -> About:
        """What the generation holds."""
        self._follow()
        return self._truth.about

    @property
    def generation(self) -> str:
        """The name of the generation that is searched."""
        return self._generation

    @property
    def truth(self) -> Truth:
        """What is stored, for those who read much of it while the store is open; only the store writes to it."""
        return self._truth

    def __len__(self) -> int:
        """Products."""
        self._follow()
        with self._lock:
            return len(self._memory)

    # Reading

    def product(self, product_id: str) -> Product | None:
        """The product with this id, or None."""
        with self._reading() as truth:
            found = truth.product(product_id)
        return None if found is None else found[1]

    def products(self, keys: Sequence[int]) -> dict[int, Product]:
        """Products by their keys, as hits name them; those that were deleted or replaced since are left out."""
        with self._reading() as truth:
            return truth.products(keys)

    def vector(self, product_id: str) -> Vectors | None:
        """(D,) the vector of a product, or None."""
        with self._reading() as truth:
            return truth.vector(product_id)

    def blocks(self) -> Iterator[tuple[Keys, list[Product], Vectors]]:
        """Everything at one moment, whatever is written meanwhile: (n,) ascending keys, n products, (n, D) vectors."""
        with self._reading() as truth, truth.frozen() as frozen:
            yield from frozen.blocks()

    def search(
        self,
        queries: Vectors,
        k: int,
        leave_out: Sequence[Collection[str]] | None = None,
        filters: Sequence[Filter | None] | None = None,
    ) -> list[Found]:
        """The nearest k products of each query, the best first, ties in the order in which they were written.

        Args:
            queries: (Q, D) float32 of any length but zero.
            k: at least 1; fewer hits come back only where fewer products may be hits.
            leave_out: for each query the ids of products that are not wanted; k others are found all the same.
            filters: for each query what its hits have to pass, None: nothing.

        Raises:
            SpaceError: queries of another width, or not finite, or of length zero.
            ConfigError: k below 1, or not one entry of `leave_out` or `filters` for each query.
        """
        self._follow()
        unit_queries = unit(queries, self._truth.about.vector_width)
        unwanted, conditions = per_query(len(queries), k, leave_out, filters)
        with self._lock:
            view, masks = self._memory.view(), self._memory.masks(conditions)
        found = search(view, unit_queries, k + max(map(len, unwanted), default=0), masks)
        self._sample.draw(view, unit_queries, k, masks, found)
        return [one.without(ids, k) if leave_out else one for one, ids in zip(found, unwanted, strict=True)]

    def rank(
        self,
        query: Vectors,
        num_hits: int,
        ranking: Ranking,
        leave_out: Collection[str] = (),
        condition: Filter | None = None,
    ) -> Ranked:
        """The first `num_hits` products for one query, (D,), in the order of a ranking (index.ranking).

        leave_out: ids of products that are not wanted. condition: what hits have to pass.

        Raises:
            SpaceError, ConfigError: as `search`.
        """
        self._follow()
        (vector,) = unit(query[None], self._truth.about.vector_width)
        if num_hits < 1:
            raise ConfigError(f"num_hits: {num_hits} is below 1")
        with self._lock:
            memory = self._memory  # its rows stay what they are, whatever is merged meanwhile
            view = memory.view()
            mask = None if condition is None else memory.mask(condition)
            groups = memory.columns.group_codes().copy() if ranking.collapse_groups else NO_GROUPS
        ranked = Query(view=view, vector=vector, mask=mask, groups=groups, ranking=ranking, leave_out=set(leave_out))
        window = ranked.window(ranking.size(num_hits))
        with self._lock:
            known = ranked.known(window, memory.columns)
        return ranked.ranked(window, num_hits, known)

    def segments(self) -> tuple[Segment, ...]:
        """What is searched beside fresh products."""
        with self._lock:
            return self._memory.segments

    def recall(self) -> RecallEstimate:
        """What approximate searches reach at present (index.recall)."""
        return self._sample.estimate()

    def view(self) -> View:
        """All rows at one moment."""
        self._follow()
        with self._lock:
            return self._memory.view()

    # Writing

    def upsert(self, products: Sequence[Product], vectors: Vectors) -> list[bool]:
        """Writes whole products with their vectors, (n, D); durable when it returns.

        Returns for each whether it was not there before. Raises StoreError, and nothing is written.
        """
        for _ in checked([(products, vectors)], self.about.vector_width):
            pass
        with self._transaction() as apply:
            created = [self._truth.key(product.product_id) is None for product in products]
            apply(self._truth.write(upserts=list(zip(products, vectors, strict=True))))
        return created

    def update(self, products: Sequence[Product]) -> None:
        """Writes products that are there and keep their vectors; durable when it returns. Raises StoreError."""
        with self._transaction() as apply:
            apply(self._truth.write(updates=products))

    def delete(self, product_ids: Sequence[str]) -> list[bool]:
        """Deletes products; durable when it returns. Returns for each id whether it was there. Raises StoreError."""
        with self._transaction() as apply:
            there = [self._truth.key(product_id) is not None for product_id in product_ids]
            apply(self._truth.write(deletes=product_ids))
        return there

    def follow(self, followed: Followed) -> None:
        """Takes over what came in another generation; durable when it returns. Raises StoreError."""
        with self._transaction() as apply:
            apply(self._truth.follow(followed))

    @contextmanager
    def _transaction(self) -> Iterator[Callable[[Changes], None]]:
        """What takes the changes of the only transaction that runs."""

        def apply(changes: Changes) -> None:
            with self._lock:
                self._memory.apply(changes)

        with self._writing:
            self._check_open()
            if self._lease is None:
                raise ReadOnlyError(f"{self.folder}: is open to read; open it to write")
            yield apply
        if self._thread is not None and (self._next_merge() is not None or self._is_stale()):
            self._thread.wake()

    # Other generations

    def beside(self, generation: str) -> Store:
        """Opens another generation, which does not count, to write; `giving_way` lets it. Raises StoreError."""
        return Store(self.folder, self._lease, self.upkeep, self.choice, generation=generation)

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Waits for a merge or a backup that runs, and holds further ones back meanwhile; searches and writes go on."""
        with self._maintaining:
            yield

    @contextmanager
    def giving_way(self, other: Store) -> Iterator[None]:
        """Holds writes back meanwhile; then lets `other`, opened by `beside`, count and write. Only while `resting`.

        This store stays open to read its own generation; it is for the caller to close. Raises StoreError, and nothing
        has changed.
        """
        with self._writing:
            self._check_open()
            if self._lease is None:
                raise ReadOnlyError(f"{self.folder}: is open to read; open it to write")
            yield
            generations = switch(self.folder, other.generation)
            other._borrowed, other._only = False, None
            self._lease, self._only = None, self._generation
        other.gpu, self.gpu = self.gpu, None
        self._leave_gpu()
        other._hold_on_gpu()
        other._start_upkeep()
        try:
            remove_others(self.folder, generations)
        except OSError as error:  # it is switched all the same; the next one who opens it tries again
            logger.warning("%s: an earlier generation cannot be removed (%s)", self.folder, error)
        remove_kept(self.folder)

    def keep_pictures(self, pictures: Mapping[str, bytes]) -> None:
        """Keeps pictures of products, by id, for as long as another generation may need them (index.pictures)."""
        if pictures and (read_generations(self.folder).coming or self._can_go_back):
            self._kept_pictures.keep(pictures)

    @cached_property
    def _can_go_back(self) -> bool:
        """Whether the generation before was level with this one when this one came to count."""
        previous = read_generations(self.folder).previous
        level = read_level(self.folder / previous) if previous else None
        return level is not None and level.source == self._generation

    def backup(self, folder: Path) -> int:
        """Writes the present state to a new folder, a collection like this one; returns its products.

        Searches and writes go on meanwhile. To restore, put the folder in the place of the collection's.

        Raises:
            ReadOnlyError: the store was opened to read: only who writes can keep its segments in their place.
            StoreError: the folder is there already, or cannot be written; nothing is left of it then.
        """
        if self._lease is None:
            raise ReadOnlyError(f"{self.folder}: is open to read; back it up through the process that writes to it")
        return write_backup(self._truth, folder, self.resting())

    # Segments

    def maintain(self) -> bool:
        """Writes segments anew if they are due (`Upkeep`); returns whether they were. A store that reads has none."""
        with self._maintaining:
            if self._lease is None:
                return False
            if (first := self._next_merge()) is not None:
                self._merge(first)
            elif self._is_stale():
                self._rewrite()
            else:
                return False
        return True

    def compact(self) -> None:
        """Makes one segment of everything."""
        with self._maintaining:
            self._merge(0)

    def _next_merge(self) -> int | None:
        with self._lock:
            return self.upkeep.first_due(self._memory)

    def _is_stale(self) -> bool:
        with self._lock:
            return self.upkeep.is_stale(self._memory)

    def _merge(self, first: int) -> None:
        """Makes one segment of all segments from `first` on and of what is fresh."""
        if self._lease is None:
            raise ReadOnlyError(f"{self.folder}: is open to read; open it to write")
        kept = self._memory.segments[:first]
        path = self.folder / self._generation
        self._replace_segments(*merge_segments(path, self._truth, kept, self.choice))

    def _rewrite(self) -> None:
        """Writes attributes, and words where these changed, beside the vectors and indexes that there are."""
        with ExitStack() as held:
            with self._writing:  # both at one revision
                frozen = held.enter_context(self._truth.frozen())
                with self._lock:
                    snapshot = self._memory.snapshot()
            manifest, memory = rewrite_segments(self.folder / self._generation, self._truth, frozen, snapshot)
        self._replace_segments(manifest, memory)

    def _replace_segments(self, manifest: Manifest, memory: Memory) -> None:
        """Searches segments that were published, and removes what they replace."""
        with self._writing:
            memory.apply(self._truth.changes(memory.revision, memory.last_key))
            with self._lock:
                self._memory = memory
            self._truth.prune(manifest.revision)
        self._hold_on_gpu()
        remove_unnamed(self.folder / self._generation, manifest)

    def _hold_on_gpu(self) -> None:
        """Copies the vectors of segments that are new to the GPU, if there is one: after those that they replace have
        left it."""
        if self.gpu is not None:
            for segment in self.segments():
                segment.on_gpu = segment.on_gpu or self.gpu.hold(segment.vectors)

    def _leave_gpu(self) -> None:
        for segment in self.segments():
            segment.on_gpu = None

    def _open_generation(self) -> None:
        """Opens what counts now; to read, again where the writer has replaced it meanwhile."""
        while True:
            opened = self._what_counts()
            try:
                self._open(*opened)
            except StoreError:
                if self.writable or self._what_counts() == opened:
                    raise
            else:
                return

    def _what_counts(self) -> tuple[str, Stamp]:
        """The generation, and what tells its manifest from others."""
        generation = self._only or read_generations(self.folder).current
        return generation, stamp(self.folder / generation)

    def _open(self, generation: str, manifest_stamp: Stamp) -> None:
        path = self.folder / generation
        truth = Truth(path, writable=self.writable)
        try:
            known = self._memory.segments if self._opened and self._generation == generation else ()
            manifest, memory = load_segments(path, truth, self.choice, writable=self.writable, known=known)
        except BaseException:
            truth.close()
            raise
        with self._lock:
            replaced = self._truth if self._opened else None
            self._generation, self._stamp, self._truth, self._memory = generation, manifest_stamp, truth, memory
            self._opened = True
            if replaced is not None and replaced not in self._num_readers:
                replaced.close()
        self._hold_on_gpu()
        if self.writable:
            remove_unnamed(path, manifest)
            if not self._borrowed:
                remove_others(self.folder, read_generations(self.folder))

    @contextmanager
    def _reading(self) -> Iterator[Truth]:
        """The truth, which stays open meanwhile, whatever generation comes to count."""
        self._follow()
        with self._lock:
            self._check_open()
            truth = self._truth
            self._num_readers[truth] = self._num_readers.get(truth, 0) + 1
        try:
            yield truth
        finally:
            with self._lock:
                self._num_readers[truth] -= 1
                if not self._num_readers[truth]:
                    del self._num_readers[truth]
                    self._idle.notify_all()
                    if truth is not self._truth:
                        truth.close()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError(f"{self.folder}: is closed; open it again")

    def _follow(self) -> None:
        """Brings a collection that was opened to read to what the writer has acknowledged."""
        if self.writable or self._only is not None:
            return
        with self._writing:
            self._check_open()
            if self._what_counts() != (self._generation, self._stamp):
                self._open_generation()
            elif self._truth.revision() != self._memory.revision:
                changes = self._truth.changes(self._memory.revision, self._memory.last_key)
                if self._truth.pruned() > self._memory.revision:  # a merge came in between
                    self._open_generation()
                    return
                with self._lock:
                    self._memory.apply(changes)

    def _start_upkeep(self) -> None:
        if self.writable and self.upkeep.background:
            self._thread = UpkeepThread(self.folder, self.maintain)


def read_about(folder: Path) -> About:
    """What a collection's generation holds. Raises StoreError where there is none."""
    truth = Truth(folder / read_generations(folder).current, writable=False)
    truth.close()
    return truth.about
