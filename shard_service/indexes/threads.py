"""Process-wide and per-thread settings of FAISS."""

import os
import threading

from shard_service.indexes.library import faiss

BLAS_THRESHOLD = 3_072
"""queries x dim from which FAISS uses matrix products: 8 queries of 384 columns. Measured
on 50,000 x 384: 64 queries cost 0.8 ms each, 6.5 ms without. Final scores are not FAISS's,
so the bits that this moves are covered by `shoal.kernels.exact.engine_error`.
"""
_READ_BYTES = 1 << 37
_READ_LOOPS = 1 << 32
_NICE = 10


def use_one_core() -> None:
    """For every thread that calls FAISS: its OpenMP setting is per thread, and the
    default makes two shards on two cores cost 15 times the CPU (measured).
    """
    faiss.omp_set_num_threads(1)


def use_spare_core() -> None:
    """For threads that build indexes: one core, and only when nobody else wants it."""
    faiss.omp_set_num_threads(1)
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)


def limit_reads() -> None:
    """For the process: how FAISS reads files and multiplies."""
    faiss.set_deserialization_vector_byte_limit(_READ_BYTES)
    faiss.set_deserialization_loop_limit(_READ_LOOPS)
    faiss.cvar.distance_compute_blas_threshold = BLAS_THRESHOLD
