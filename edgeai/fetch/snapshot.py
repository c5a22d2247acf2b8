"""A model of a Hugging Face hub as a folder, in the hub library's own cache: the files that a conversion reads, and no others.

HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_CACHE hold. With EDGEAI_OFFLINE only what the cache holds already is used.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeai.errors import DoesNotFit, ModelNotFound, NetworkError, UsageError
from edgeai.fetch import is_offline
from edgeai.fetch.hub import bar, reason
from edgeai.types import Progress, no_progress

__all__ = ["PREFIX", "Snapshot", "snapshot"]

PREFIX = "hf:"
SOURCE = re.compile(r"hf:([A-Za-z0-9][\w.-]*)/([A-Za-z0-9_][\w.-]*)(?:@([^@\s]+))?")
SIDE = (
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json",
    r"(modules|adapter_config|sentence_bert_config|config_sentence_transformers)\.json",
    r"chat_template\.(jinja|json)",
    r"tokenizer\.model|spiece\.model|sentencepiece\.bpe\.model|vocab\.txt|merges\.txt",
    r"\d+_\w+/(config\.json|(model\.safetensors|pytorch_model\.bin))",
)
"""Files beside the weights that say what the model is; no code, no pictures, no README."""
WEIGHTS = (
    (r"model\.safetensors",),
    (r"model\.safetensors\.index\.json", r"model-\d+-of-\d+\.safetensors"),
    (r"adapter_model\.safetensors",),
    (r"[^/]+\.safetensors",),
    (r"pytorch_model\.bin",),
    (r"pytorch_model\.bin\.index\.json", r"pytorch_model-\d+-of-\d+\.bin"),
    (r"adapter_model\.bin",),
)
"""The first that a repository has is what is fetched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A downloaded model: its folder, its name without the owner, and where it comes from, with the commit."""

    path: Path
    name: str
    origin: str


def snapshot(source: str, progress: Progress = no_progress) -> Snapshot:
    """Return the model that SOURCE names, hf:owner/repo[@revision], downloading what is not in the hub library's cache.

    Raises UsageError for another form, ModelNotFound for a repository that is not there or not for this user, NetworkError where the
    hub cannot be reached, DoesNotFit where the disk is too small.
    """
    match = SOURCE.fullmatch(source)
    if match is None:
        raise UsageError(
            f"{source!r} is not hf:owner/repo or hf:owner/repo@revision", hint="copy the name from the hub"
        )
    owner, name, revision = match.groups()
    repo = f"{owner}/{name}"
    if is_offline():
        path = cached(repo, revision)
        return Snapshot(path=path, name=name, origin=f"{PREFIX}{repo}@{path.name}")
    progress(f"looking up {repo}", 0, None)
    with explained(repo, revision):
        commit, sizes = listing(repo, revision)
    wanted = choose(sizes)
    if not wanted:
        raise ModelNotFound(
            f"{repo!r} has no weights that can be read: no .safetensors and no pytorch_model.bin",
            hint="name a repository with the original model, not with files of another format",
        )
    check_space(repo, {file: sizes[file] for file in wanted})
    folder = None
    for file in wanted:
        with explained(repo, revision):
            path = download(repo, commit, file, progress)
            folder = folder or path.parents[file.count("/")]
    assert folder is not None  # noqa: S101 - something was wanted
    return Snapshot(path=folder, name=name, origin=f"{PREFIX}{repo}@{commit}")


def settings() -> dict[str, Any]:
    """Return what every call of the library gets; it reads these variables only once, when it is imported."""
    cache = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    home = os.environ.get("HF_HOME")
    return {"cache_dir": cache or (str(Path(home) / "hub") if home else None)}


def listing(repo: str, revision: str | None) -> tuple[str, dict[str, int]]:
    """Return the commit of REVISION and file name → size in bytes."""
    from huggingface_hub import HfApi

    info = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name="edgeai").model_info(
        repo, revision=revision, files_metadata=True, timeout=30
    )
    files = {item.rfilename: int(item.size or 0) for item in info.siblings or []}
    return str(info.sha), files


def choose(files: Mapping[str, int]) -> list[str]:
    """Return the files of a repository that a conversion reads: those beside the weights first, so that errors come early."""
    for patterns in WEIGHTS:
        found = [name for name in files if any(re.fullmatch(pattern, name) for pattern in patterns)]
        if found and (len(patterns) == 1 or any(name.endswith(".index.json") for name in found)):
            side = [name for name in files if any(re.fullmatch(pattern, name) for pattern in SIDE)]
            return [*sorted(name for name in side if name not in found), *sorted(found)]
    return []


def check_space(repo: str, sizes: Mapping[str, int]) -> None:
    """Raise DoesNotFit where the disk of the cache is too small for all files."""
    from huggingface_hub import constants

    place = Path(settings()["cache_dir"] or constants.HF_HUB_CACHE)
    while not place.exists():
        place = place.parent
    free, need = shutil.disk_usage(place).free, sum(sizes.values())
    if need > free:
        raise DoesNotFit(
            f"{repo!r} has {need / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free in {str(place)!r}",
            hint="free some space, or set HF_HOME to a folder on another disk",
        )


def download(repo: str, commit: str, file: str, progress: Progress) -> Path:
    """Return the file in the cache, downloaded if it is not there."""
    from huggingface_hub import hf_hub_download

    return Path(
        hf_hub_download(
            repo,
            file,
            revision=commit,
            endpoint=os.environ.get("HF_ENDPOINT"),
            tqdm_class=bar(f"downloading {file} of {repo}", progress),
            library_name="edgeai",
            **settings(),
        )
    )


def cached(repo: str, revision: str | None) -> Path:
    """Return the folder of the model in the cache; raises NetworkError where it is not there."""
    from huggingface_hub import try_to_load_from_cache

    for file in ("config.json", "adapter_config.json"):
        path = try_to_load_from_cache(repo, file, revision=revision, **settings())
        if isinstance(path, str):
            return Path(path).parent
    raise NetworkError(
        f"EDGEAI_OFFLINE is set, and {repo!r} is not in the hub's cache",
        hint="unset EDGEAI_OFFLINE, or name a folder",
    )


@contextmanager
def explained(repo: str, revision: str | None) -> Iterator[None]:
    """Turn the library's errors into those of this project."""
    import logging

    import httpx2
    from huggingface_hub import errors
    from huggingface_hub.utils import logging as hub_logging

    level = hub_logging.get_verbosity()
    hub_logging.set_verbosity(logging.ERROR)  # its retries are not the user's business; the last error is told
    try:
        yield
    except errors.GatedRepoError:
        raise ModelNotFound(
            f"the hub gives {repo!r} only to people who accepted its terms",
            hint="accept its terms on the hub, then set HF_TOKEN",
        ) from None
    except errors.RepositoryNotFoundError:
        raise ModelNotFound(
            f"the hub has no model {repo!r}, or it is private", hint="check the name; for a private one set HF_TOKEN"
        ) from None
    except errors.RevisionNotFoundError:
        raise ModelNotFound(
            f"{repo!r} has no revision {revision!r}", hint="name a branch, a tag or a commit, or leave it out"
        ) from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403, 404):
            raise ModelNotFound(
                f"the hub has no model {repo!r} for you (it answers {status})",
                hint="check the name; for a private one set HF_TOKEN",
            ) from None
        raise NetworkError(f"the hub cannot give {repo!r}: it answers {status}", hint="try again later") from None
    except (
        httpx2.HTTPError,
        errors.LocalEntryNotFoundError,
        errors.OfflineModeIsEnabled,
    ) as error:
        what = next((line.strip() for line in reason(error).splitlines() if line.strip()), type(error).__name__)
        raise NetworkError(
            f"the hub cannot give {repo!r}: {what}", hint="check the network, HF_ENDPOINT and HF_TOKEN"
        ) from None
    except OSError as error:
        raise no_room(repo, error) from error
    finally:
        hub_logging.set_verbosity(level)


def no_room(repo: str, error: OSError) -> DoesNotFit | NetworkError:
    """Return the error for a download that the system ended."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DoesNotFit(
            f"the disk is full: {repo!r} was not downloaded", hint="free some space, or set HF_HOME to another disk"
        )
    return NetworkError(
        f"{repo!r} cannot be downloaded: {error.strerror or error}", hint="check the network and HF_HOME"
    )
