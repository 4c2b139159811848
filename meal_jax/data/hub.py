"""Data sets of the Hugging Face hub: their parquet files, downloaded once to the hub's cache.

    OWNER/NAME          a data set that has one configuration, or one called "default"
    OWNER/NAME/CONFIG   one of several

Most data sets have a branch on which the hub has converted them to parquet; else the repository's own parquet files are read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from absl import logging

REPOSITORY = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:/([\w.-]+))?")
CONVERTED, OWN = "refs/convert/parquet", "main"
DEFAULT = ("default", "plain_text", "main")  # configurations that stand for a whole data set
SECONDS = 10.0  # that the hub may take to answer
FOLDER = "data"  # of a repository's own parquet files that belong to no configuration


class Parts(NamedTuple):
    """The parquet files of one configuration.

    Attributes:
      repository: OWNER/NAME.
      revision: the branch that holds them.
      files: their paths in the repository, sorted.
    """

    repository: str
    revision: str
    files: tuple[str, ...]


def parse(place: str) -> tuple[str, str | None] | None:
    """(OWNER/NAME, CONFIG or None) of a data set's id; None where `place` is none, or a path that is there."""
    matched = REPOSITORY.fullmatch(place)
    if matched is None or Path(place).expanduser().exists():
        return None
    return matched[1], matched[2]


def find(place: str) -> Parts:
    """The parquet files that an id names, as the hub lists them.

    Raises:
      FileNotFoundError: no such data set for this token, or it is gated, has no parquet files, or several configurations.
      ConnectionError: the hub does not answer.
    """
    from huggingface_hub import HfApi, errors, get_hf_file_metadata, hf_hub_url

    repository, config = parse(place)
    for revision in (CONVERTED, OWN):
        try:  # of the client's calls one that does not try for half a minute where there is no network
            info = HfApi().dataset_info(repository, revision=revision, timeout=SECONDS)
        except errors.RevisionNotFoundError:
            continue
        except Exception as error:
            raise _explained(repository, error) from error
        listed = [entry.rfilename for entry in info.siblings or ()]
        if any(name.endswith(".parquet") for name in listed):
            parts = Parts(repository, revision, choose(place, config, listed))
            url = hf_hub_url(repository, parts.files[0], repo_type="dataset", revision=revision)
            try:
                get_hf_file_metadata(url, timeout=SECONDS)  # the names of a gated data set's files are public
            except Exception as error:
                raise _explained(repository, error) from error
            return parts
    raise FileNotFoundError(
        f"The data set {repository} has no parquet files on the hub, and the hub has not converted it. Download its files, "
        "write the prompts as JSON lines, and name that file."
    )


def choose(place: str, config: str | None, listed: Sequence[str]) -> tuple[str, ...]:
    """The parquet files of one configuration among a repository's files.

    Raises:
      FileNotFoundError: there is no such configuration, or one must be named.
    """
    configs: dict[str, list[str]] = {}
    for name in sorted(name for name in listed if name.endswith(".parquet")):
        top = name.partition("/")[0] if "/" in name else FOLDER
        configs.setdefault("default" if top == FOLDER else top, []).append(name)
    if config is None:
        config = next((name for name in DEFAULT if name in configs), min(configs) if len(configs) == 1 else None)
    if config not in configs:
        wrong = f"has no configuration {config}" if config else "has several configurations"
        first = "/".join([*place.split("/")[:2], min(configs)])
        raise FileNotFoundError(
            f"The data set {'/'.join(place.split('/')[:2])} {wrong}; it has {', '.join(configs)}. Name one: {first}:COLUMN."
        )
    return tuple(configs[config])


def download(place: str) -> list[Path]:
    """The files of `find` in the hub's cache, downloaded if needed; without a network, those that are there already.

    Raises:
      FileNotFoundError, ConnectionError: as `find`.
    """
    from huggingface_hub import hf_hub_download

    try:
        parts = find(place)
    except ConnectionError:
        if local := cached(place):
            logging.warning(
                "the hub does not answer: %s is read from this machine's cache, %d files.", place, len(local)
            )
            return local
        raise
    try:
        return [
            Path(hf_hub_download(parts.repository, name, repo_type="dataset", revision=parts.revision))
            for name in parts.files
        ]
    except Exception as error:
        raise _explained(parts.repository, error) from error


def cached(place: str) -> list[Path]:
    """The parquet files that an earlier download left in this machine's cache, [] if none; asks nobody.

    Raises:
      FileNotFoundError: as `choose`.
    """
    from huggingface_hub import snapshot_download

    repository, config = parse(place)
    for revision in (CONVERTED, OWN):
        try:
            root = snapshot_download(repository, repo_type="dataset", revision=revision, local_files_only=True)
        except Exception:  # not there, or not an id: of several types
            continue
        listed = [path.relative_to(root).as_posix() for path in Path(root).rglob("*.parquet")]
        if listed:
            return [Path(root) / name for name in choose(place, config, listed)]
    return []


def _explained(repository: str, error: Exception) -> OSError:
    """The error of the hub's client, which are of many types, as one that says what to do."""
    from huggingface_hub import errors, get_token

    page = f"https://huggingface.co/datasets/{repository}"
    if isinstance(error, errors.GatedRepoError):
        return FileNotFoundError(
            f"The data set {repository} is gated. Accept its terms at {page}, then `hf auth login` or HF_TOKEN with a token "
            "of that account, on every host."
        )
    if isinstance(error, errors.RepositoryNotFoundError | errors.HFValidationError):
        token = "with the token that is set" if get_token() else "without a token"
        return FileNotFoundError(
            f"There is no {repository}: no such path here, and no such data set on the hub {token} "
            f"({type(error).__name__}). Correct the path or the id, or log in to see a private one."
        )
    reason = " ".join(str(error).split())[:120]
    return ConnectionError(
        f"The data set {repository} is not in this machine's cache, and the hub does not answer ({reason}). Connect this "
        f"host; or download the parquet files of {page} elsewhere and name their directory, DIRECTORY:COLUMN."
    )
