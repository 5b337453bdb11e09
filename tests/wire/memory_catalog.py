"""A catalog in memory."""

from shoal.storage.ports import Versioned


class MemoryCatalog:
    """A catalog that lives as long as the test."""

    def __init__(self) -> None:
        self.values: dict[str, Versioned] = {}

    def get(self, key: str) -> Versioned:
        return self.values.get(key, Versioned(0, b""))

    def set(self, key: str, value: bytes) -> None:
        self.values[key] = Versioned(self.get(key).version + 1, value)

    def put(self, key: str, value: bytes, expected_version: int) -> int | None:
        if self.get(key).version != expected_version:
            return None
        self.set(key, value)
        return expected_version + 1

    def delete(self, key: str) -> None:
        self.values.pop(key, None)

    def keys(self, prefix: str) -> list[str]:
        return sorted(key for key in self.values if key.startswith(prefix))
