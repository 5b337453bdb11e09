"""One small value with its checksum, as catalog and log store it. Pure.

    magic 8s | format version u32 | crc32c u32 | context bytes u32 |
    body bytes u64 | context | body

little-endian; the CRC covers everything else. The context says what the value
is (its key and version, say), so that a file in another's place is found out.
"""

import struct

from crc32c import crc32c

_HEAD = struct.Struct("<8sIIIQ")
_MAGIC = b"SHOALVAL"
FORMAT_VERSION = 1


def wrap(context: str, body: bytes) -> bytes:
    """The bytes to store."""
    name = context.encode()
    unsummed = _HEAD.pack(_MAGIC, FORMAT_VERSION, 0, len(name), len(body)) + name + body
    head = _HEAD.pack(_MAGIC, FORMAT_VERSION, crc32c(unsummed), len(name), len(body))
    return head + unsummed[_HEAD.size :]


def unwrap(context: str, stored: bytes) -> bytes | None:
    """The body, or None if the stored bytes are damaged, of another format
    version, or of another context.
    """
    if len(stored) < _HEAD.size:
        return None
    body = stored[_HEAD.size + len(context.encode()) :]
    return body if wrap(context, body) == stored else None
