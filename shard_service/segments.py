"""Segments as folders of files, and the manifest that lists them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from shard_service import manifest as manifests
from shard_service.columns import ColumnFiles
from shard_service.core.live import Live, masked
from shard_service.core.source import Segment
from shard_service.layout import Layout
from shard_service.manifest import Manifest, MasksEntry, SegmentEntry
from shard_service.spec import ShardSpec
from shoal.errors import CorruptSegment, SupersededWriter
from shoal.storage.blobs import verify
from shoal.storage.directory import Storage
from shoal.storage.ports import Staging
from shoal.types import ShardRef

logger = logging.getLogger(__name__)


def _prefix(ref: ShardRef) -> str:
    return f"segments/{ref.collection}/{ref.generation}/{ref.shard}/"


def _key(ref: ShardRef) -> str:
    return f"manifests/{ref.collection}/{ref.generation}/{ref.shard}"


def drop_segments(ref: ShardRef, storage: Storage) -> None:
    """Deletes a shard's manifest, then its folders."""
    storage.catalog.delete(_key(ref))
    for name in storage.blobs.names(_prefix(ref)):
        storage.blobs.delete(name)


def _load(ref: ShardRef, storage: Storage, layout: Layout, entry: SegmentEntry) -> Segment:
    folder = storage.blobs.path(_prefix(ref) + entry.name)
    verify(folder, entry.files)
    return layout.open(ColumnFiles(ref, folder), entry)


def read_segments(
    ref: ShardRef, storage: Storage, layout: Layout, known: Mapping[str, Segment]
) -> dict[str, Segment]:
    """The segments of a shard that another server may be writing, by name.

    Args:
        ref: the shard.
        storage: where it lies.
        layout: of its vectors.
        known: those that are mapped already.

    Raises:
        CorruptSegment: the manifest or a file is damaged.
    """
    while True:
        found = storage.catalog.get(_key(ref))
        segments = {}
        try:
            for entry in manifests.decode(found.value).segments:
                segment = known.get(entry.name) or _load(ref, storage, layout, entry)
                segments[entry.name] = segment
        except CorruptSegment:
            # Its writer may have merged the segment away meanwhile.
            if storage.catalog.get(_key(ref)).version == found.version:
                raise
            known = {**known, **segments}
            continue
        return segments


class SegmentStore:
    """A shard's folders and manifest, as its writer sees them. One thread at a time."""

    def __init__(
        self, spec: ShardSpec, storage: Storage, layout: Layout, writer_epoch: int
    ) -> None:
        """Takes the manifest over: whoever wrote it before can publish no more.

        Args:
            spec: the shard.
            storage: where it lies.
            layout: of its vectors.
            writer_epoch: the writer's.

        Raises:
            SupersededWriter: a higher epoch has.
            CorruptSegment: the manifest is damaged.
        """
        self._spec, self._storage, self._epoch = spec, storage, writer_epoch
        self.layout = layout
        self._counter = 0
        self._read_manifest()

    def _read_manifest(self) -> None:
        found = self._storage.catalog.get(_key(self._spec.ref))
        self._version = found.version
        self._manifest = manifests.decode(found.value)
        if self._manifest.writer_epoch > self._epoch:
            raise SupersededWriter(
                f"epoch {self._manifest.writer_epoch} owns shard {self._spec.ref.shard}"
            )

    @property
    def ref(self) -> ShardRef:
        """The shard's name."""
        return self._spec.ref

    @property
    def position(self) -> int:
        """What the segments cover."""
        return self._manifest.position

    def open(self, known: Mapping[str, Segment]) -> list[tuple[Segment, Live]]:
        """Verifies and maps every segment, oldest first; deletes folders that no manifest lists.

        Args:
            known: segments that are mapped already, by name: what has a name never changes.

        Raises:
            CorruptSegment: a file fails its checksum.
            SupersededWriter: another writer has the manifest.
        """
        while True:
            segments = read_segments(self._spec.ref, self._storage, self.layout, known)
            self._read_manifest()
            if not all(entry.name in segments for entry in self._manifest.segments):
                continue
            try:
                opened = [
                    (segments[entry.name], self._masked(segments[entry.name]))
                    for entry in self._manifest.segments
                ]
                self._put(replace(self._manifest, writer_epoch=self._epoch))
            except (CorruptSegment, SupersededWriter):
                # The writer before this one, whose last publication this is, came first.
                version = self._version
                self._read_manifest()
                if self._version == version:
                    raise
                known = segments
            else:
                self.clean()
                return opened

    def load(self, entry: SegmentEntry) -> Segment:
        """Verifies a segment's files, then maps them.

        Raises:
            CorruptSegment: a file fails its checksum.
        """
        return _load(self._spec.ref, self._storage, self.layout, entry)

    def _masked(self, segment: Segment) -> Live:
        masks = self._manifest.masks
        if masks is None:
            return segment.all_live()
        folder = self._storage.blobs.path(_prefix(self._spec.ref) + masks.name)
        files = [file for file in masks.files if file.name == segment.name]
        if not files:
            return segment.all_live()
        verify(folder, files)
        dead = ColumnFiles(self._spec.ref, folder).read(segment.name)
        return masked(segment.all_live(), dead, segment.table.row_starts)

    def staging(self) -> tuple[str, Staging]:
        """A fresh name within the shard, and a folder to fill for it.

        Raises:
            DiskFull: no room.
        """
        self._counter += 1
        name = f"{self._epoch}-{self._version}-{self._counter}"
        return name, self._storage.blobs.staging(_prefix(self._spec.ref) + name)

    def publish(
        self,
        position: int,
        kept: Sequence[str],
        at: int,
        fresh: SegmentEntry | None,
        dead: dict[str, NDArray[np.int64]],
    ) -> None:
        """Makes a new list of segments durable.

        Args:
            position: what segments and masks cover.
            kept: names of the old segments that stay, oldest first.
            at: where the new one comes among them.
            fresh: the new segment; None if nothing was live.
            dead: numbers of the dead documents of segments, by name.

        Raises:
            SupersededWriter: another writer has the manifest.
            DiskFull: no room.
        """
        known = {entry.name: entry for entry in self._manifest.segments}
        segments = [known[name] for name in kept]
        if fresh is not None:
            segments.insert(at, fresh)
        self._put(Manifest(self._epoch, position, tuple(segments), self._write_masks(dead)))

    def _write_masks(self, dead: dict[str, NDArray[np.int64]]) -> MasksEntry | None:
        masked_segments = {name: numbers for name, numbers in dead.items() if len(numbers)}
        if not masked_segments:
            return None
        name, staging = self.staging()
        try:
            files = ColumnFiles(self._spec.ref, staging.folder)
            for segment, numbers in masked_segments.items():
                files.write(segment, numbers)
            return MasksEntry(name, tuple(staging.publish()))
        except BaseException:
            staging.discard()
            raise

    def _put(self, manifest: Manifest) -> None:
        version = self._storage.catalog.put(
            _key(self._spec.ref), manifests.encode(manifest), self._version
        )
        if version is None:
            raise SupersededWriter(
                f"another writer has published the manifest of shard {self._spec.ref.shard}"
            )
        self._version, self._manifest = version, manifest

    def clean(self) -> None:
        """Deletes folders that the manifest does not list; who has them mapped keeps them.

        A later writer's stay: this one may have been superseded without knowing it.
        """
        prefix = _prefix(self._spec.ref)
        listed = {prefix + entry.name for entry in self._manifest.segments}
        if self._manifest.masks is not None:
            listed.add(prefix + self._manifest.masks.name)
        for name in self._storage.blobs.names(prefix):
            epoch = name.removeprefix(prefix).partition("-")[0]
            if name not in listed and int(epoch) <= self._epoch:
                self._storage.blobs.delete(name)
