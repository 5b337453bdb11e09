"""Codecs as immutable objects in storage, named by their content."""

from __future__ import annotations

from collections.abc import Collection

from shard_service.core.codec import Codec, from_bytes
from shard_service.core.token_codec import ExactCodec, QuantisedCodec, TokenCodec
from shard_service.spec import ShardSpec
from shoal.errors import CorruptSegment
from shoal.storage.directory import Storage

_FILE = "codec"


def _folder(collection: str, name: str) -> str:
    return f"codecs/{collection}/{name}"


def write_codec(codec: Codec, collection: str, storage: Storage) -> None:
    """Stores a collection's codec; one that is there already is the same.

    Raises:
        DiskFull: no room.
    """
    name = _folder(collection, codec.name)
    if name in storage.blobs.names(f"codecs/{collection}/"):
        return
    staging = storage.blobs.staging(name)
    try:
        with open(f"{staging.folder}/{_FILE}", "wb") as stream:
            stream.write(codec.to_bytes())
        staging.publish()
    except BaseException:
        staging.discard()
        raise


def drop_codecs(kept: Collection[str], storage: Storage) -> None:
    """Deletes the codecs of all collections but these."""
    for name in storage.blobs.names("codecs/"):
        if name.split("/")[1] not in kept:
            storage.blobs.delete(name)


def read_codec(spec: ShardSpec, storage: Storage) -> TokenCodec:
    """The codec of a shard's generation.

    Raises:
        CorruptSegment: its file is damaged, missing, or another codec's.
    """
    if not spec.codec:
        return ExactCodec(spec.dim)
    folder = storage.blobs.path(_folder(spec.ref.collection, spec.codec))
    try:
        with open(f"{folder}/{_FILE}", "rb") as stream:
            codec = from_bytes(stream.read())
    except (OSError, ValueError) as error:
        raise CorruptSegment(
            f"codec {spec.codec[:16]} cannot be read: {error}", file=_FILE
        ) from error
    if codec.name != spec.codec or codec.dim != spec.dim:
        raise CorruptSegment(
            f"the codec's file holds {codec.name[:16]}, not {spec.codec[:16]}", file=_FILE
        )
    return QuantisedCodec(codec)
