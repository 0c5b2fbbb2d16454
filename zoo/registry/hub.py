"""What the Hugging Face hub's own client does for the registry: who may have a file, which one it is, and the cache."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from datamodules.study import DataFault
from zoo.command import EnvironmentFault
from zoo.registry.manifest import Entry, File
from zoo.registry.transfer import Source, safe

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def offline() -> bool:
    """Whether the hub's client was told to ask no server (`HF_HUB_OFFLINE=1`)."""
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def default_endpoint() -> str:
    """The hub that is asked: `$HF_ENDPOINT`, or the public one."""
    from huggingface_hub import constants

    return constants.ENDPOINT


def names_of(entry: Entry, endpoint: str) -> list[str]:
    """The files of an entry: those that it lists, or those of its repository that its patterns name.

    Raises:
        EnvironmentFault: The hub does not give the list; the message says what to do.
        DataFault: The repository, or the revision, is not there.
    """
    if entry.files:
        return list(entry.files)
    from huggingface_hub import HfApi

    name, kind = _repository(entry)
    with _plain(entry, endpoint):
        found = HfApi(endpoint=safe(endpoint)).list_repo_files(name, repo_type=kind, revision=entry.revision)
    # What stands in folders is another layout of the same weights.
    wanted = [file for file in found if "/" not in file and any(fnmatch(file, pattern) for pattern in entry.patterns)]
    if not wanted:
        raise DataFault(f"{entry.hub}: the repository holds none of {', '.join(entry.patterns)}")
    return sorted(wanted)


def source_of(entry: Entry, file: str, endpoint: str) -> tuple[Source, str]:
    """Where the hub has a file, with the sum that the manifest or the hub itself names; and the commit it is of.

    Raises:
        EnvironmentFault: The hub does not give it: gated, or not reached.
        DataFault: The repository, the revision or the file is not there.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    name, kind = _repository(entry)
    url = hf_hub_url(name, file, repo_type=kind, revision=entry.revision, endpoint=safe(endpoint))
    with _plain(entry, endpoint):
        found = get_hf_file_metadata(url)
    fact, etag = entry.files.get(file, File()), found.etag or ""
    location = safe(found.location)
    theirs = etag if re.fullmatch("[0-9a-f]{64}", etag) else None
    if fact.sha256 and theirs not in (None, fact.sha256):
        raise DataFault(f"{entry.hub}/{file} at {endpoint}: its sha256 is {theirs[:16]}…, {fact.sha256[:16]}… is right")
    own = urlsplit(location).netloc == urlsplit(endpoint).netloc
    headers = build_hf_headers() if own else {}
    return Source(
        where=f"{entry.hub}/{file} ({urlsplit(endpoint).netloc})",
        address=location,
        bytes=fact.bytes or found.size,
        sha256=fact.sha256 or theirs,
        git=etag if re.fullmatch("[0-9a-f]{40}", etag) and found.size is not None else None,
        headers={key: value for key, value in headers.items() if key.lower() == "authorization"},
    ), found.commit_hash or entry.revision or ""


def blob(entry: Entry, source: Source) -> Path | None:
    """Where the hub's cache keeps that content; `None`: the hub gives it no sum."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    name, kind = _repository(entry)
    folder = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type=kind), "blobs")
    etag = source.git or source.sha256
    return None if etag is None else folder / etag


def enter(entry: Entry, file: str, endpoint: str, commit: str) -> Path:
    """Lets the hub's client find what was put into its cache, also by the id alone, as recipes ask for it.

    What lies there already under the id alone stays.
    """
    from huggingface_hub import hf_hub_download

    name, kind = _repository(entry)
    with _plain(entry, endpoint):
        path = Path(hf_hub_download(name, file, repo_type=kind, revision=entry.revision, endpoint=endpoint))
    branch = _branch(entry)
    if commit and not branch.exists():
        branch.parent.mkdir(parents=True, exist_ok=True)
        branch.write_text(commit)
    return path


def other_commit(entry: Entry, commit: str) -> str | None:
    """The commit that the cache gives for the id alone, where it is another one."""
    branch = _branch(entry)
    there = branch.read_text().strip() if branch.exists() else commit
    return there if commit and there != commit else None


def cached(entry: Entry) -> dict[str, Path]:
    """The entry's files in the cache, without asking any server.

    Raises:
        EnvironmentFault: One is not there.
    """
    from huggingface_hub import snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import LocalEntryNotFoundError

    name, kind = _repository(entry)
    files = list(entry.files)
    if not files:
        try:
            folder = snapshot_download(name, repo_type=kind, revision=entry.revision, local_files_only=True)
        except LocalEntryNotFoundError:
            folder = ""
        there = [path.name for path in Path(folder).iterdir()] if folder else []
        files = [file for file in there if any(fnmatch(file, pattern) for pattern in entry.patterns)]
    found = {file: try_to_load_from_cache(name, file, repo_type=kind, revision=entry.revision) for file in files}
    missing = [file for file, path in found.items() if not isinstance(path, str)]
    if missing or not found:
        raise EnvironmentFault(
            f"{entry.name}: {missing[0] if missing else entry.hub} is not in the hub's cache, and HF_HUB_OFFLINE is "
            "set; unset it, or give the copy that was made elsewhere: --from FOLDER"
        )
    return {file: Path(str(path)) for file, path in found.items()}


def _branch(entry: Entry) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    name, kind = _repository(entry)
    return Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type=kind), "refs", "main")


def _repository(entry: Entry) -> tuple[str, str]:
    hub = entry.hub or ""
    return hub.removeprefix("datasets/"), "dataset" if hub.startswith("datasets/") else "model"


@contextmanager
def _plain(entry: Entry, endpoint: str) -> Iterator[None]:
    """One line that says what to do, for what the hub's client raises."""
    from huggingface_hub import errors

    page = f"https://huggingface.co/{entry.hub}"
    try:
        yield
    except errors.GatedRepoError as error:
        gate = entry.gate or "its terms"
        raise EnvironmentFault(
            f"{entry.hub} is gated: accept {gate} at {page}, `hf auth login`, then run this again"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise DataFault(f"{entry.hub} has no revision {entry.revision} at {endpoint}; ask another mirror") from error
    except errors.EntryNotFoundError as error:
        raise DataFault(f"{entry.hub} at {endpoint} lacks a file: {_first(error)}") from error
    except errors.RepositoryNotFoundError as error:
        raise DataFault(f"{endpoint} has no {entry.hub}, or hides it from whoever is not logged in") from error
    except (OSError, ValueError, errors.HfHubHTTPError, errors.OfflineModeIsEnabled) as error:
        raise EnvironmentFault(f"{entry.hub}: {endpoint} gives no answer ({_first(error)})") from error
    except Exception as error:  # of the HTTP library beneath, whose name changes
        if not type(error).__module__.startswith("httpx"):
            raise
        raise EnvironmentFault(f"{entry.hub}: {endpoint} is not reached ({_first(error)})") from error


def _first(error: Any) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
