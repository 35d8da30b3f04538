"""Models by their id on Hugging Face's hub, through huggingface_hub and its cache. Imports no torch.

Only what is served is fetched: configuration, tokenizer, and weights in safetensors. Endpoint, token and cache are what
huggingface_hub's variables say: HF_ENDPOINT, HF_TOKEN, HF_HOME.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from longspan.errors import ModelError
from longspan.models.fields import read_json
from longspan.phases import OnPhase, Phase

logger = logging.getLogger(__name__)

_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_TEXTS = (".json", ".jinja", ".model")
_NAMES = ("merges.txt", "vocab.txt")
_PICKLES = (".bin", ".pth", ".pt", ".ckpt")
_ANSWER_WITHIN_S = 10.0
_INDEX = "model.safetensors.index.json"


def is_hub_id(name: str) -> bool:
    """Tell whether it is spelled as an id on the hub: an owner, a slash, a name."""
    return _ID.fullmatch(name) is not None


def fetch(repo: str, revision: str | None, on_phase: OnPhase) -> Path:
    """Return the folder of a hub's model in huggingface_hub's cache, fetched as far as it is not there yet.

    Without a network what is there already will do. Raises ModelError, which says what to do.
    """
    from httpx2 import TransportError
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    on_phase(Phase(f"looking for {repo} on {_host()}"))
    try:
        return _online(repo, revision, on_phase)
    except (TransportError, OfflineModeIsEnabled) as error:
        return _from_cache(repo, revision, error)
    except HfHubHTTPError as error:
        if error.response.status_code >= 500:
            return _from_cache(repo, revision, error)
        raise _refused(repo, revision, error) from error
    except OSError as error:  # a file that is shorter than it should be, a disk that is full
        raise ModelError(
            f"{repo} could not be fetched whole ({_short(error)}); start again, and files that are here already stay"
        ) from error


def _online(repo: str, revision: str | None, on_phase: OnPhase) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    endpoint = os.environ.get("HF_ENDPOINT")
    # Asked first, for it fails at once where there is no network; the download tries again for half a minute.
    info = HfApi(endpoint=endpoint, library_name="longspan").model_info(
        repo, revision=revision, files_metadata=True, timeout=_ANSWER_WITHIN_S
    )
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    names = _wanted(repo, sizes)
    _check_room(repo, sum(sizes[name] for name in names))
    folder = snapshot_download(
        repo, revision=revision, endpoint=endpoint, library_name="longspan", tqdm_class=_bar(repo, on_phase),
        allow_patterns=[name.replace("[", "[[]") for name in names],
    )  # fmt: skip
    logger.info("%s is in %s", repo, folder)
    return Path(folder)


def _wanted(repo: str, names: Iterable[str]) -> list[str]:
    """Of the files in the repository's uppermost folder those that are served. Raises ModelError: weights are not."""
    there = sorted(name for name in names if "/" not in name)
    if "config.json" not in there:
        gguf = [name for name in there if name.endswith(".gguf")]
        advice = "pass one that has"
        if gguf:
            advice = f"fetch one of its .gguf files ({', '.join(gguf[:3])}) and pass the file"
        raise ModelError(f"{repo} has no config.json; {advice}")
    weights = [name for name in there if name.startswith("model") and name.endswith(".safetensors")]
    if not weights:
        pickles = [name for name in there if name.endswith(_PICKLES)]
        if pickles:
            raise ModelError(
                f"{repo} has its weights as pickles only ({', '.join(pickles[:3])}), which run whatever code is in "
                "them when they are read; pass a model in safetensors, or convert it with transformers' save_pretrained"
            )
        raise ModelError(f"{repo} has no weights in safetensors; pass a model that has")
    if "model.safetensors" in weights and _INDEX not in there:
        weights = ["model.safetensors"]
    return [*(name for name in there if name.endswith(_TEXTS) or name in _NAMES), *weights]


def _check_room(repo: str, size: int) -> None:
    from huggingface_hub.constants import HF_HUB_CACHE

    place = Path(HF_HUB_CACHE)
    there = next((parent for parent in (place, *place.parents) if parent.is_dir()), Path("/"))
    here = place / f"models--{repo.replace('/', '--')}"
    missing = size - sum(path.stat().st_size for path in here.glob("blobs/*") if path.is_file())
    if missing > (free := shutil.disk_usage(there).free):
        raise ModelError(
            f"{repo} takes {missing / 1e9:.1f} GB more, but {free / 1e9:.1f} GB are free in {place}; set HF_HOME to a "
            "folder with more room"
        )


def _bar(repo: str, on_phase: OnPhase) -> type[Any]:
    """What huggingface_hub believes to be a progress bar: it tells of bytes, and shows nothing."""
    from tqdm import tqdm

    text = f"downloading {repo} from {_host()}"

    class Bar(tqdm):  # type: ignore[misc]  # tqdm has no types
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.counts_bytes = kwargs.get("unit") == "B" and "Reconstructing" in kwargs.get("desc", "")
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            self.n += n or 0
            if self.counts_bytes:
                on_phase(Phase(text, int(self.n), int(self.total or 0), "bytes"))
            return None

    return Bar


def _from_cache(repo: str, revision: str | None, error: Exception) -> Path:
    """Return what an earlier start has fetched, if all of it is here."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repo, revision=revision, local_files_only=True, allow_patterns=["config.json"]))
    except (LocalEntryNotFoundError, OSError):
        folder = None
    if folder is None or not _is_whole(repo, revision, folder):
        raise ModelError(
            f"{repo} is not here, or not all of it, and {_host()} cannot be reached ({_short(error)}); connect, set "
            "HF_ENDPOINT to a mirror, or pass a folder in Hugging Face layout or a .gguf file of your own"
        ) from error
    logger.warning("%s cannot be reached (%s): %s is taken from %s", _host(), _short(error), repo, folder)
    return folder


def _is_whole(repo: str, revision: str | None, folder: Path) -> bool:
    """Tell whether all files are there that are served. A file of the cache is whole, or not there.

    Which these are the cache knows, if a program of today has filled it; else the weights' index does, for the weights.
    """
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        tree = get_cached_repo_tree(repo, revision=revision)
        names = _wanted(repo, [file.path for file in tree])
    except CachedRepoTreeNotFoundError:
        names = ["config.json", *_weights_of(folder)]
    return all((folder / name).is_file() for name in names)


def _weights_of(folder: Path) -> set[str]:
    if not (folder / _INDEX).is_file():
        return {"model.safetensors"}
    return set(map(str, read_json(folder / _INDEX).table("weight_map").values.values()))


def _refused(repo: str, revision: str | None, error: Exception) -> ModelError:
    from huggingface_hub.errors import DisabledRepoError, GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    page = f"{os.environ.get('HF_ENDPOINT') or 'https://huggingface.co'}/{repo}"
    match error:
        case RevisionNotFoundError():
            return ModelError(f"{repo} has no revision {revision or 'main'!r:.80}; {page} lists branches and tags")
        case GatedRepoError():
            return ModelError(
                f"{repo} is gated: accept its conditions on {page}, then set HF_TOKEN to a token of that account"
            )
        case RepositoryNotFoundError():
            return ModelError(
                f"there is no {repo} on {_host()}, or it is private: check the name, or set HF_TOKEN to a token that "
                "may read it"
            )
        case DisabledRepoError():
            return ModelError(f"{repo} is disabled on {_host()}; pass another model")
    return ModelError(f"{_host()} refuses {repo} ({_short(error)}); check HF_TOKEN, or come again later")


def _host() -> str:
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").partition("://")[2].rstrip("/")


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
