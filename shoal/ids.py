"""Identity: which shard owns a document, and what its content is.

Everything here is a pure function of its arguments and the same on every
machine and in every release: placement and digests are stored.
"""

import hashlib
import re

import xxhash

from shoal.errors import InvalidId, InvalidName, InvalidRequest
from shoal.types import Document

ID_BYTES_MAX = 512
DIGEST_BYTES = 16
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


def check_id(document_id: str) -> bytes:
    """The id's UTF-8 bytes.

    Raises:
        InvalidId: empty, over 512 bytes, or with a NUL.
    """
    encoded = document_id.encode()
    if not encoded:
        raise InvalidId("the id is empty")
    if len(encoded) > ID_BYTES_MAX:
        raise InvalidId(
            f"the id has {len(encoded)} bytes, {ID_BYTES_MAX} are allowed; "
            f"it begins {document_id[:40]!r}",
            allowed=ID_BYTES_MAX,
            given=len(encoded),
        )
    if b"\0" in encoded:
        raise InvalidId(f"the id {document_id[:40]!r} holds a NUL")
    return encoded


def check_name(name: str) -> str:
    """The collection's name itself.

    Raises:
        InvalidName: it is not [a-z0-9][a-z0-9_-]{0,63}.
    """
    if not _NAME.fullmatch(name):
        raise InvalidName(
            f"{name[:80]!r} is no collection name: use 1 to 64 of a-z, 0-9, _ and -, "
            "beginning with a letter or digit"
        )
    return name


def id_hash(document_id: bytes) -> int:
    """xxh3_64 of the id, 0 <= hash < 2**64."""
    return xxhash.xxh3_64_intdigest(document_id)


def shard_of(document_id: bytes, shard_count: int) -> int:
    """The shard that owns an id: shard s owns hashes in [s·2⁶⁴/S, (s+1)·2⁶⁴/S).

    Doubling the shard count splits every shard in two.

    >>> [shard_of(b"a", count) for count in (1, 2, 4)]
    [0, 1, 3]
    """
    return (id_hash(document_id) * shard_count) >> 64


def sample_rank(document_id: bytes) -> int:
    """Order in which documents are sampled, whatever their placement."""
    return xxhash.xxh3_64_intdigest(document_id, seed=1)


def content_digest(document: Document, vector: bytes = b"") -> bytes:
    """16 bytes that change with anything a user stores in a document.

    Args:
        document: the document.
        vector: bytes of the vector that came with it (little-endian float32),
            empty if its text is to be encoded.

    Raises:
        InvalidRequest: the text is not encodable as UTF-8 (lone surrogates).
    """
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    try:
        parts = (
            document.id.encode(),
            document.title.encode(),
            document.text.encode(),
            document.payload,
            vector,
        )
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"the document is not valid Unicode: {error}", field="text") from error
    for part in parts:
        # Lengths keep ("ab", "c") and ("a", "bc") apart.
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()
