"""One file from an address or a folder to its place: resumed, checked while it streams, whole or not there at all."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from datamodules.study import DataFault
from zoo.command import UNWRITABLE, EnvironmentFault
from zoo.run_directory import sync_folder

BLOCK = 1 << 20  # bytes
ATTEMPTS = 5  # broken transfers in a row that gained nothing
PAUSE = 1.0  # seconds between two attempts
TIMEOUT = 60  # seconds without an answer
Report = Callable[[int, int | None], None]  # bytes there, bytes in all


@dataclass(frozen=True)
class Source:
    """Where a file is had, and what it should be.

    Attributes:
        where: Shown in messages.
        address: An URL, or a file.
        bytes: Its size, where it is known.
        sha256: Its sum, where it is known.
        git: The name that git gives its content (the hub's of small files), where it is known.
        headers: Sent to that address alone, never to where it redirects.
    """

    where: str
    address: str | Path
    bytes: int | None = None
    sha256: str | None = None
    git: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def known(self) -> bool:
        """Whether its content can be checked."""
        return bool(self.sha256 or self.git)


def transfer(source: Source, place: Path, report: Report) -> str:
    """Brings a file to its place; what an interrupted transfer left there is gone on with.

    A file that is there already is checked, and fetched anew where it is another.

    Args:
        source: What is fetched.
        place: Where it goes. Until it is whole and right it is `<place>.partial`.
        report: Called with the progress.

    Returns:
        Its sha256.

    Raises:
        DataFault: The content is not what it should be; nothing of it is kept.
        EnvironmentFault: It cannot be had, or the disk is full; what came is kept where it can be gone on with.
    """
    if place.is_file():
        with suppress(DataFault):
            return verify(source, place, report)
    partial = place.with_name(f"{place.name}.partial")
    with _alone(partial) as file:
        checks = _Checks(source)
        if source.known:
            checks.read(file, report)
        file.truncate(checks.count)
        _fill(source, file, checks, report)
        if fault := checks.fault():
            partial.unlink()
            raise DataFault(f"{source.where}: {fault}; it was thrown away")
        file.flush()
        os.fsync(file.fileno())
        partial.replace(place)
    sync_folder(place.parent)
    return checks.sha256.hexdigest()


def verify(source: Source, place: Path, report: Report) -> str:
    """The sha256 of a file that is here.

    Raises:
        DataFault: It is not what it should be.
    """
    checks = _Checks(source)
    with place.open("rb") as file:
        checks.read(file, report)
    if fault := checks.fault():
        raise DataFault(f"{place}: {fault}")
    return checks.sha256.hexdigest()


def safe(url: str) -> str:
    """The URL, if what comes from there cannot be changed on the way.

    Raises:
        DataFault: It is neither https nor this machine's own.
    """
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost", "::1")):
        raise DataFault(f"{parts.scheme}://{parts.hostname}: refused, only https is safe from changes on the way")
    return url


class _Checks:
    """What has come so far: its length and its sums."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.clear()

    def clear(self) -> None:
        self.count = 0
        self.sha256 = hashlib.sha256()
        self.git = hashlib.sha1(f"blob {self.source.bytes}\0".encode(), usedforsecurity=False)

    def add(self, block: bytes) -> None:
        self.count += len(block)
        self.sha256.update(block)
        if self.source.git:
            self.git.update(block)

    def read(self, file: BinaryIO, report: Report) -> None:
        """Adds what a file holds, from its beginning."""
        file.seek(0)
        while block := file.read(BLOCK):
            self.add(block)
            report(self.count, self.source.bytes)

    def fault(self) -> str | None:
        """What is wrong with the whole."""
        wanted = self.source
        if wanted.bytes is not None and self.count != wanted.bytes:
            return f"{self.count} bytes came, {wanted.bytes} are right"
        for name, found, right in (("sha256", self.sha256, wanted.sha256), ("git's sum", self.git, wanted.git)):
            if right and found.hexdigest() != right:
                return f"{name} is {found.hexdigest()[:16]}…, {right[:16]}… is right: another file, or a broken one"
        return None


@contextmanager
def _alone(partial: Path) -> Iterator[BinaryIO]:
    """The unfinished file, for this process alone."""
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(partial, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield file
    except BlockingIOError:
        raise EnvironmentFault(f"{partial}: another process fetches this file; wait for it") from None
    except OSError as error:
        raise EnvironmentFault(f"cannot write {partial}: {error.strerror or error}") from error


def _fill(source: Source, file: BinaryIO, checks: _Checks, report: Report) -> None:
    """Appends what is lacking, over broken connections."""
    failures, version = 0, None
    while source.bytes is None or checks.count != source.bytes:
        before = checks.count
        try:
            with _open(source, before, version) as answer:
                if answer.begins != before:  # it gives all of the file, not the rest
                    checks.clear()
                    file.truncate(0)
                file.seek(checks.count)
                version = answer.version
                _receive(answer, file, checks, report)
            return
        except HTTPError as error:
            if error.code < 500 and error.code not in (408, 416, 429):
                raise EnvironmentFault(f"{source.where}: the server says {error.code} {error.reason}") from error
            if error.code == 416:  # more is there than the server has
                checks.clear()
                file.truncate(0)
            reason = f"{error.code} {error.reason}"
        except (HTTPException, OSError) as error:
            if isinstance(error, OSError) and error.errno in UNWRITABLE:
                raise
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        failures = 1 if checks.count > before else failures + 1
        if failures >= ATTEMPTS:
            kept = f"; {checks.count} bytes are kept, run again to go on" if source.known and checks.count else ""
            raise EnvironmentFault(f"{source.where}: the transfer broke ({reason}){kept}")
        time.sleep(PAUSE)


@dataclass(frozen=True)
class _Answer:
    """An open file or response: where in the file it begins, how much it gives, and which version of it this is."""

    stream: Any
    begins: int
    left: int | None
    version: str | None


def _receive(answer: _Answer, file: BinaryIO, checks: _Checks, report: Report) -> None:
    total = None if answer.left is None else checks.count + answer.left
    free = shutil.disk_usage(f"/proc/self/fd/{file.fileno()}").free
    if answer.left is not None and answer.left > free:
        raise OSError(errno.ENOSPC, f"{answer.left / 1e9:.1f} GB are to come and {free / 1e9:.1f} GB are free")
    while block := answer.stream.read(BLOCK):
        file.write(block)
        checks.add(block)
        report(checks.count, total)
    if total is not None and checks.count < total:
        raise ConnectionError(f"it ended after {checks.count} of {total} bytes")


@contextmanager
def _open(source: Source, begin: int, version: str | None) -> Iterator[_Answer]:
    """The source from a byte on; from its beginning, where it is not the version that was begun with."""
    if isinstance(source.address, Path):
        with source.address.open("rb") as stream:
            stream.seek(begin)
            yield _Answer(stream, begin, source.address.stat().st_size - begin, None)
        return
    request = Request(safe(source.address), headers={"Accept-Encoding": "identity", "User-Agent": "rrg-zoo"})
    for name, value in source.headers.items():
        request.add_unredirected_header(name, value)
    if begin:
        request.add_header("Range", f"bytes={begin}-")
        if version:
            request.add_header("If-Range", version)
    with build_opener(_SafeRedirects).open(request, timeout=TIMEOUT) as stream:
        if stream.headers.get_content_type() == "text/html":
            raise DataFault(f"{source.where}: a web page came, not the file; open the address in a browser")
        length, resumed = stream.headers.get("Content-Length"), stream.status == 206
        etag = stream.headers.get("ETag") or ""
        strong = etag if etag and not etag.startswith("W/") else None
        yield _Answer(stream, begin if resumed else 0, None if length is None else int(length), strong)


class _SafeRedirects(HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        return super().redirect_request(req, fp, code, msg, headers, safe(newurl))
