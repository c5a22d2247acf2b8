"""The user's own rules: words, regular expressions, files, folders and the tag `private`. What they mark never leaves, redacted or not."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from edgeai.config import PrivacySettings
from edgeai.errors import UsageError
from edgeai.routing.privacy.patterns import PatternSearch
from edgeai.routing.privacy.text import views
from edgeai.routing.request import Finding, Part

__all__ = ["Rules"]

WILD = re.compile(r"[*?\[]")


class Rules:
    """What the user marked as private, checked when it is made. Raises UsageError for a pattern that is none."""

    def __init__(self, settings: PrivacySettings) -> None:
        for word in settings.words:
            if not word.strip():
                raise UsageError(
                    f"privacy.words {word!r} is not possible", hint="a word must have at least one character"
                )
        self._words = _word_pattern(settings.words)
        self._search = PatternSearch(settings.patterns)
        self._files = tuple(dict.fromkeys(form for glob in settings.files for form in _forms(glob)))
        self._folders = tuple(dict.fromkeys(form for folder in settings.folders for form in _folder_forms(folder)))

    def close(self) -> None:
        """End the child process of the patterns, if there is one."""
        self._search.close()

    def of_part(self, part: Part) -> Iterator[Finding]:
        """Yield what the tag and the path of PART say."""
        if part.private:
            yield _whole(part, "tag")
        if part.path is not None:
            paths = _real_forms(part.path)
            if any(_within(path, folder) for path in paths for folder in self._folders):
                yield _whole(part, "folder")
            elif any(_fits(path, glob) for path in paths for glob in self._files):
                yield _whole(part, "file")

    def of_text(self, text: str, *, timeout_s: float) -> Iterator[list[Finding]]:
        """Yield what the words and the patterns find in TEXT, piece by piece. Raises TimeoutError when the patterns take longer."""
        if self._words is not None:
            for view in views(text):
                found = []
                for match in self._words.finditer(view.lower):
                    if view.first <= match.start() < view.last:
                        found.append(_finding("word", *view.place(*match.span())))
                yield found
        yield [_finding("pattern", start, end) for start, end in self._search.spans(text, timeout_s=timeout_s)]


def _finding(kind: str, start: int, end: int) -> Finding:
    return Finding(id=f"privacy.{kind}", kind=kind, start=start, end=end, masked="…", redactable=False)


def _whole(part: Part, kind: str) -> Finding:
    return _finding(kind, 0, len(part.text))


def _word_pattern(words: Sequence[str]) -> re.Pattern[str] | None:
    """Return a pattern for any of WORDS between no letters, in the plain form of a text; scripts without spaces have no such borders."""
    if not words:
        return None
    plain = [next(views(word.strip())).lower for word in words]
    forms = [r"\s+".join(map(re.escape, word.split())) for word in sorted(plain, key=len, reverse=True)]
    spaced = [
        form if word[0] >= "\u2e80" else rf"(?<![^\W\d_]){form}(?![^\W\d_])"
        for form, word in zip(forms, sorted(plain, key=len, reverse=True), strict=True)
    ]
    return re.compile("|".join(spaced))


# ---- paths


def _forms(glob: str) -> tuple[str, ...]:
    """Return GLOB as it is compared: a relative one fits the end of a path, and links before its first wildcard are followed."""
    text = str(Path(glob).expanduser()) if glob.startswith("~") else glob
    if not Path(text).is_absolute():
        relative = text.removeprefix("./")
        here = Path.cwd().as_posix()
        return tuple(
            form.casefold() for form in (f"*/{relative}", f"{here}/{relative}" if ".." in relative else f"*/{relative}")
        )
    match = WILD.search(text)
    fixed = text[: text.rfind("/", 0, match.start()) + 1] if match else text
    followed = (
        Path(fixed).resolve().as_posix() + ("/" if fixed.endswith("/") and fixed != "/" else "") + text[len(fixed) :]
    )
    return (text.casefold(), followed.casefold())


def _folder_forms(folder: str) -> tuple[str, ...]:
    path = Path(folder).expanduser()
    return (path.resolve().as_posix().casefold(), _absolute(path))


def _real_forms(path: str) -> tuple[str, ...]:
    """Return PATH without links, and as it was written. Raises OSError or RuntimeError for links in a circle."""
    place = Path(path).expanduser()
    return (place.resolve().as_posix().casefold(), _absolute(place))


def _absolute(path: Path) -> str:
    """Return PATH from the root without `..`, links not followed, in small letters: some file systems do not tell them apart."""
    import os

    return Path(os.path.normpath(path.absolute())).as_posix().casefold()


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _fits(path: str, glob: str) -> bool:
    """Whether GLOB fits PATH. Its * goes over slashes too: more is private then, never less."""
    return fnmatch.fnmatchcase(path, glob) or fnmatch.fnmatchcase(path, glob.replace("**/", ""))
