"""Small tools without a subject of their own: attribute dictionaries, checksums, atomic files, downloads."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import requests
from tqdm import tqdm

from dnnlib.errors import UserError, shown

if sys.platform != "win32":
    import fcntl

_CHUNK = 1 << 20
_TIMEOUT = (10, 60)  # seconds to connect, seconds without a byte
_LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")


class EasyDict(dict[str, Any]):
    """A dictionary whose entries are attributes too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        try:
            del self[name]
        except KeyError:
            raise AttributeError(name) from None


def file_sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's content, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(_CHUNK):
            digest.update(block)
    return digest.hexdigest()


SHA256 = re.compile("[0-9a-fA-F]{64}")


def check_sha256(path: str | os.PathLike[str], expected: str | None, *, name: str | None = None) -> str:
    """The SHA-256 of a file. Raises UserError if it is not `expected` (None accepts any); `name` is what to call it."""
    if expected is not None and not SHA256.fullmatch(expected):
        raise UserError(f"{shown(expected)} is not a SHA-256; give its 64 hexadecimal digits")
    found = file_sha256(path)
    if expected is not None and found != expected.lower():
        raise UserError(f"{name or path}: SHA-256 is {found}, expected {expected.lower()}; a damaged or another file")
    return found


TEMPORARY = re.compile(r"\.tmp-[0-9a-f]{12}(\.\w+)?")
"""What `atomic_write` leaves behind where it is killed."""


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path in the folder of `path`: write to it; leaving the block renames it, an error removes it.

    Readers see the old file or the whole new one, and never a part. The temporary name is hidden and keeps the
    suffix, by which numpy and Pillow choose their formats; errors of the system name `path`.
    """
    path = Path(path)
    temporary = path.with_name(f".tmp-{secrets.token_hex(6)}{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb+") as f:
            os.fsync(f.fileno())  # a rename must not reach the disk before the content does
        os.replace(temporary, path)
    except OSError as e:
        if e.errno is not None and e.filename in (None, str(temporary)):  # a full disk has no name at all
            e.filename, e.filename2 = str(path), None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def check_place(path: str | os.PathLike[str]) -> None:
    """Raises OSError where no file or folder can be made at `path`: tried in the nearest folder that there is."""
    place = Path(path)
    with suppress(FileNotFoundError, NotADirectoryError):
        place.lstat()  # a name that the system refuses
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if place == Path(path) and not place.is_dir():
        place = place.parent
    with tempfile.TemporaryFile(dir=place):
        pass


@contextmanager
def alone(path: str | os.PathLike[str], *, busy: str) -> Iterator[None]:
    """Keeps a second process from the same block on `path`, an existing file or folder, where the system can.

    The lock ends with the process at the latest, even by SIGKILL. Raises UserError(busy) where another one holds it.
    """
    if sys.platform == "win32":
        yield
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(busy) from None
        except OSError:  # a network file system without locks
            pass
        yield
    finally:
        os.close(handle)


def open_url(url: str, *, cache_dir: str | os.PathLike[str] | None = None, sha256: str | None = None) -> Path:
    """A local path with the content of `url`, downloaded unless the cache has it.

    Args:
        url: an https address (http is accepted for this machine only).
        cache_dir: where downloads are kept; by default $DNNLIB_CACHE_DIR, else ~/.cache/dnnlib.
        sha256: expected checksum, verified for cached files too.
    Raises:
        UserError: not https, unreachable, refused by the server, cut short, a web page, or the wrong checksum.
    """
    _check_address(url)
    folder = Path(cache_dir or os.environ.get("DNNLIB_CACHE_DIR") or "~/.cache/dnnlib").expanduser()
    cached = folder / _cache_name(url)
    try:
        if cached.is_file():
            check_sha256(cached, sha256, name=f"{cached} (cached; delete it to download again)")
            return cached
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(cached) as temporary:
            _download(url, temporary, cached)
            check_sha256(temporary, sha256, name=url)
    except requests.RequestException as e:
        raise UserError(
            f"cannot download {url}: {_reason(e)}; without internet, put the file at {cached} or name a local file"
        ) from e
    except OSError as e:
        raise UserError(f"cannot keep {url} in {folder}: {e.strerror or e}; set DNNLIB_CACHE_DIR") from e
    return cached


def _check_address(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme == "http" and parts.hostname not in _LOCAL_HOSTS:
        raise UserError(f"{url}: plain http can be tampered with on its way; use https")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"{url}: not an address that can be downloaded; use https://... or a local file")


def _cache_name(url: str) -> str:
    """A file name that is unique for the address and ends with its readable last part."""
    last = re.sub(r"[^A-Za-z0-9._-]", "_", urlsplit(url).path.rsplit("/", 1)[-1])[-100:]
    return f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{last or 'index'}"


def _download(url: str, target: Path, cached: Path) -> None:
    headers = {"Accept-Encoding": "identity"}  # so that Content-Length counts the bytes that arrive
    with requests.get(url, stream=True, timeout=_TIMEOUT, headers=headers) as response:
        for hop in (*response.history, response):
            _check_address(hop.url)
        if response.status_code != 200:
            raise UserError(f"cannot download {url}: the server answers {response.status_code} {response.reason}")
        length = response.headers.get("Content-Length")
        total = int(length) if length is not None and length.isdigit() else None
        with open(target, "xb") as f:
            received = _receive(response, f, total, label=cached.name[17:])
    if total is not None and received != total:
        raise UserError(f"{url}: only {received} of {total} bytes arrived; run the command again")
    if not received:
        raise UserError(f"{url}: the server sent an empty file")
    with open(target, "rb") as f:
        if looks_like_html(f.read(1024)):
            raise UserError(f"{url}: the server sent a web page, not a file; open the address in a browser to see why")


def _receive(response: requests.Response, f: IO[bytes], total: int | None, *, label: str) -> int:
    received = 0
    quiet = not sys.stderr.isatty()
    with tqdm(total=total, unit="B", unit_scale=True, desc=label, disable=quiet, leave=False) as bar:
        for block in response.iter_content(_CHUNK):
            received += f.write(block)
            bar.update(len(block))
    return received


def looks_like_html(start: bytes) -> bool:
    """Whether a file that starts with these bytes is a web page."""
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return text.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml"))


def _reason(error: requests.RequestException) -> str:
    """The heart of an exception of requests, without the chain of wrapped representations."""
    match error:
        case requests.exceptions.SSLError():
            return "its certificate is not trusted"
        case requests.exceptions.Timeout():
            return "no answer in time"
        case requests.exceptions.TooManyRedirects():
            return "it redirects in circles"
        case requests.exceptions.ChunkedEncodingError():
            return "the connection broke off before the end"
        case requests.exceptions.ConnectionError():
            return "the server cannot be reached"
    return type(error).__name__
