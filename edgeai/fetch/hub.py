"""Files from a Hugging Face hub, by its own library: HF_ENDPOINT, HF_TOKEN and its retries hold.

It does not go on with what an earlier process left (each download has a temporary name of its own), so nothing of an
interrupted file is kept; whole files of a model are.
"""

from __future__ import annotations

import io
import logging as logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

from edgeai.errors import NetworkError
from edgeai.fetch.sink import Sink, Wanted
from edgeai.types import Progress

__all__ = ["fetch"]

SOURCE = re.compile(r"hf:([^/]+/[^/@]+)(?:@([^/]+))?/(.+)")


def fetch(source: str, target: Path, want: Wanted, progress: Progress) -> None:
    """Write the file that SOURCE (hf:owner/repo[@revision]/file) names to TARGET and check it.

    The library works in a folder beside TARGET, not in the user's hub cache: the store is the only copy.
    """
    match = SOURCE.fullmatch(source)
    assert match is not None  # noqa: S101 - the catalogue has checked it
    repo, revision, name = match.groups()
    work = target.with_name(f"{target.name}-hub")
    try:
        path = download(repo, revision, name, work, progress)
        with path.open("rb") as file, Sink(target, want, source, progress, label=f"checking {name}") as sink:
            sink.copy(file)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def download(repo: str, revision: str | None, name: str, work: Path, progress: Progress) -> Path:
    """Return the file NAME of REPO, downloaded into WORK; raises NetworkError."""
    import httpx2
    from huggingface_hub import errors, hf_hub_download
    from huggingface_hub.utils import logging as hub_logging

    label = f"downloading {name} of {repo}"
    progress(label, 0, None, "B")
    level = hub_logging.get_verbosity()
    hub_logging.set_verbosity(logging.ERROR)  # its retries are not the user's business; the last error is told
    try:
        return Path(
            hf_hub_download(
                repo,
                name,
                revision=revision,
                local_dir=work,
                endpoint=os.environ.get("HF_ENDPOINT"),
                tqdm_class=bar(label, progress),
                library_name="edgeai",
            )
        )
    except errors.GatedRepoError:
        hint = "accept its terms on the hub, then set HF_TOKEN"
        raise NetworkError(f"the hub gives {repo!r} only to people who accepted its terms", hint=hint) from None
    except (httpx2.HTTPError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        what = next((line.strip() for line in reason(error).splitlines() if line.strip()), type(error).__name__)
        hint = "check the network, HF_ENDPOINT and HF_TOKEN"
        raise NetworkError(f"the hub cannot give {name!r} of {repo!r}: {what}", hint=hint) from None
    finally:
        hub_logging.set_verbosity(level)


def reason(error: BaseException) -> str:
    """Return what lies under ERROR: the library wraps a refused connection in advice about its cache."""
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return str(cause)


def bar(label: str, progress: Progress) -> Any:
    """Return a tqdm class that reports to PROGRESS and draws nothing."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            super().__init__(*args, **(kwargs | {"file": io.StringIO(), "disable": False}))

        def update(self, n: float | None = 1) -> Any:
            shown = super().update(n)
            progress(label, self.n, self.total, "B")
            return shown

    return Bar
