"""The collections of an index folder: opened together, written to by one process at a time; or those in Milvus.

INDEX/<name>/current.json       each, as index.build makes it
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

from index.choosing import Choice
from index.generations import collection_folders
from index.gpu import Gpu
from index.store import CHOICE, Store
from index.vector_store import VectorStore
from item.errors import ConfigError, LeaseError

logger = logging.getLogger(__name__)

DEFAULT = "default"


class Collections(Mapping[str, VectorStore]):
    """Open stores by name.

    A collection that another process writes to is open to read until `take_over` finds that it has ended, as in a
    rolling restart.
    """

    def __init__(self, stores: Mapping[str, VectorStore], *, read_only: bool = False) -> None:
        """Takes stores over, to close them; `read_only`: none of them will ever be written to."""
        self._stores = dict(stores)
        self.read_only = read_only

    @classmethod
    def open(
        cls, index: Path, *, read_only: bool = False, gpu: Gpu | None = None, choice: Choice = CHOICE
    ) -> Collections:
        """Opens all collections of an index folder, to write unless `read_only`; a `gpu` searches them.

        Raises:
            StoreError: there is none, or one of them cannot be opened; none stays open then.
        """
        opened = cls({}, read_only=read_only)
        try:
            for name, folder in collection_folders(index).items():
                opened._stores[name] = (
                    Store.open(folder, gpu=gpu, choice=choice)
                    if read_only
                    else open_to_write_or_read(name, folder, gpu, choice)
                )
        except BaseException:
            opened.close()
            raise
        return opened

    @classmethod
    def open_milvus(cls, uri: str, *, token: str = "", read_only: bool = False) -> Collections:
        """Opens all collections that ITEm has made in Milvus, to write unless `read_only`; others may write too.

        Raises:
            ConfigError: Milvus's client is not installed.
            StoreError: there is none, or one of them cannot be opened; none stays open then.
        """
        try:
            from index.milvus import MilvusStore, collection_names
        except ModuleNotFoundError as error:
            raise ConfigError(f"milvus: {error}; install the extra: pip install 'item-embeddings[milvus]'") from error
        opened = cls({}, read_only=read_only)
        try:
            for name in collection_names(uri, token):
                opened._stores[name] = MilvusStore.open(uri, name, token=token, writable=not read_only)
        except BaseException:
            opened.close()
            raise
        return opened

    def __getitem__(self, name: str) -> VectorStore:
        return self._stores[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._stores)

    def __len__(self) -> int:
        return len(self._stores)

    def awaited(self) -> list[str]:
        """Collections that another process has to stop writing to before this one can."""
        return [] if self.read_only else [name for name, store in self._stores.items() if not store.writable]

    def take_over(self, name: str) -> Store | None:
        """Opens an awaited collection to write if nobody else does any more.

        Returns the store that it replaces, for the caller to close when nobody uses it any more; None: not yet. Raises
        StoreError where it cannot be opened.
        """
        before = self._stores[name]
        assert isinstance(before, Store)  # no other is handed over
        try:
            self._stores[name] = Store.open(before.folder, writable=True, gpu=before.gpu, choice=before.choice)
        except LeaseError:
            return None
        logger.info("collection %r: the other process has ended, it is written to from here now", name)
        return before

    def replace(self, name: str, store: Store) -> Store:
        """Serves another store of a collection; returns the one before, for the caller to close."""
        before, self._stores[name] = self._stores[name], store
        assert isinstance(before, Store)
        return before

    def close(self) -> None:
        """Ends the work on all collections and lets other processes write; a second call does nothing."""
        while self._stores:
            _, store = self._stores.popitem()
            store.close()


def open_to_write_or_read(name: str, folder: Path, gpu: Gpu | None, choice: Choice) -> Store:
    """A store that can be written to, or where another process does, one to read."""
    try:
        return Store.open(folder, writable=True, gpu=gpu, choice=choice)
    except LeaseError as error:
        logger.warning("collection %r is open to read until it can be written to: %s", name, error)
        return Store.open(folder, gpu=gpu, choice=choice)
