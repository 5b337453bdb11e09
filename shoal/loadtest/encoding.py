"""Questions to vectors before the run, so that encoding them is not measured."""

from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from shoal.client.model import ClusterStatus, CollectionInfo
from shoal.client.transport import client_options, typed_error
from shoal.errors import EncoderUnavailable, TextNotSupported
from shoal.rpc.encoder.v1 import encoder_pb2, encoder_pb2_grpc
from shoal.wire.arrays import matrix_from_message
from shoal.wire.errors import from_status

BATCH = 64
BATCH_S = 60.0
_SERVING = ("encoder", "serving")


def encoded(
    status: ClusterStatus, collection: CollectionInfo, texts: Sequence[str]
) -> list[NDArray[Any]]:
    """Each text as [dim], or as [tokens, dim] in a collection of kind colbert.

    An encoder of the cluster is asked directly, 64 texts at a time.

    Raises:
        TextNotSupported: the collection has no encoder.
        EncoderUnavailable: no encoder serves.
        ShoalError: a text cannot be encoded.
    """
    if not collection.fingerprint:
        raise TextNotSupported(
            f"{collection.name} has no encoder; give its questions as a .npy file of vectors"
        )
    address = next(
        (each.address for each in status.processes if (each.role, each.state) == _SERVING), None
    )
    if address is None:
        raise EncoderUnavailable("no encoder serves; `shoal status` says why")
    vectors: list[NDArray[Any]] = []
    with grpc.insecure_channel(address, options=client_options()) as channel:
        stub = encoder_pb2_grpc.EncoderServiceStub(channel)
        for first in range(0, len(texts), BATCH):
            batch = texts[first : first + BATCH]
            request = encoder_pb2.EncodeQueriesRequest(
                fingerprint=collection.fingerprint,
                texts=batch,
                allow_truncation=[True] * len(batch),
                dim=collection.dim,
            )
            try:
                response = stub.EncodeQueries(request, timeout=BATCH_S)
            except grpc.RpcError as error:
                raise typed_error(error, address) from error
            vectors += _rows(response)
    return vectors


def _rows(response: encoder_pb2.EncodeQueriesResponse) -> list[NDArray[Any]]:
    for status in response.statuses:
        if (error := from_status(status)) is not None:
            raise error
    rows = matrix_from_message(response.vectors)
    if not response.row_counts:
        return list(rows)
    return np.split(rows, np.cumsum(response.row_counts)[:-1])
