"""Names of models on a hub, `ORG/NAME[@REVISION][:FILE]`, and which of a repository's files a model is read from."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import PurePosixPath

from specdec.errors import DownloadError
from specdec.model_files import folder_names, split_group

_PART = r"[A-Za-z0-9](?:[\w.-]{0,94}\w)?"
_NAME = re.compile(rf"({_PART}/{_PART})(?:@([A-Za-z0-9][\w./-]*))?(?::([^:\s][^:]*))?", re.ASCII)
_PATHS = (".gguf", ".safetensors", ".json", ".store", ".yaml")  # endings of a path that names no repository
_MOST_LISTED = 20


@dataclass(frozen=True, slots=True)
class HubName:
    """A model on a hub.

    Attributes:
        repo: "ORG/NAME".
        revision: branch, tag or commit; None for the main branch.
        file: a `.gguf` file of it, or a part of its name such as "Q4_K_M"; None for the only model that it has.
    """

    repo: str
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return self.repo + revision + (f":{self.file}" if self.file else "")

    @property
    def short(self) -> str:
        """What to call the model: the file's name, or the repository's, without an ending."""
        if self.file is not None and self.file.lower().endswith(".gguf"):
            return PurePosixPath(self.file).name[: -len(".gguf")]
        name = self.repo.split("/")[1]
        return name if self.file is None else f"{name}-{re.sub(r'[^A-Za-z0-9_.-]', '-', self.file)}"


def parse_hub_name(text: str) -> HubName | None:
    """The hub name that `text` is, or None: a path, or something else."""
    found = _NAME.fullmatch(text)
    if found is None:
        return None
    repo, revision, file = found.groups()
    if repo.lower().endswith(_PATHS) or "--" in repo or ".." in repo:
        return None
    return HubName(repo, revision, file)


def wanted_files(name: HubName, names: Collection[str], read_index: Callable[[], bytes]) -> list[str]:
    """The files of a repository that the model is read from; of a GGUF model its first part comes first.

    Args:
        name: what was asked for.
        names: every file of the repository.
        read_index: content of its index of weights, fetched only where there is one and it is needed.

    Raises:
        DownloadError: there is no such model in it, or several and none was named.
        ModelFormatError: the index cannot be read.
    """
    ggufs = _gguf_groups(names)
    if name.file is not None:
        return _asked(name, ggufs)
    if "config.json" in names and any(one.endswith(".safetensors") and "/" not in one for one in names):
        return folder_names(names, read_index)
    models = {first: parts for first, parts in ggufs.items() if not PurePosixPath(first).name.startswith("mmproj")}
    if len(models) == 1:
        return next(iter(models.values()))
    if models:
        raise DownloadError(
            f"{name.repo} has {len(models)} GGUF models: name one as {name.repo}:FILE, of {_listed(models)}"
        )
    raise DownloadError(f"{name} has no model that is read here: no .gguf file, and no config.json with .safetensors")


def _asked(name: HubName, ggufs: dict[str, list[str]]) -> list[str]:
    """The model that `name.file` means: a file, or the one whose name has it between its separators."""
    assert name.file is not None
    exact = [parts for parts in ggufs.values() if name.file in parts]
    if exact:
        return exact[0]
    tag = re.compile(rf"(?:^|[-_./]){re.escape(name.file)}(?:[-_./]|$)", re.IGNORECASE)
    like = {first: parts for first, parts in ggufs.items() if tag.search(first.removesuffix(".gguf"))}
    if len(like) == 1:
        return next(iter(like.values()))
    if like:
        raise DownloadError(f"{name.file!r} means several files of {name.repo}: name one of {_listed(like)}")
    raise DownloadError(
        f"{name.repo} has no GGUF file {name.file!r}: "
        + (f"it has {_listed(ggufs)}" if ggufs else "it has no .gguf file at all")
    )


def _gguf_groups(names: Collection[str]) -> dict[str, list[str]]:
    """GGUF models by their first file; one that is split has several files."""
    groups: dict[str, list[str]] = {}
    for one in sorted(names):
        if one.lower().endswith(".gguf"):
            groups.setdefault(split_group(one), []).append(one)
    return {parts[0]: parts for parts in groups.values()}


def _listed(names: Collection[str]) -> str:
    shown = sorted(names)[:_MOST_LISTED]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
