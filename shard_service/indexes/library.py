"""FAISS without its type stubs, which know the C++ signatures and not the Python ones."""

from typing import Any

import faiss as untyped

faiss: Any = untyped
