"""Downloads against a server on this machine: cache, checksums, and what goes wrong on the way."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dnnlib.errors import UserError
from dnnlib.util import atomic_write, open_url

CONTENT = bytes(range(256)) * 5000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    requests: list[str] = []  # noqa: RUF012  (shared on purpose: what all connections asked for)

    def do_GET(self) -> None:
        self.requests.append(self.path)
        page = b"  <!DOCTYPE html><html>sign in</html>"
        match self.path.split("?")[0]:
            case "/net.pkl":
                self.answer(200, CONTENT, len(CONTENT))
            case "/short.pkl":
                self.answer(200, CONTENT[:1000], len(CONTENT))
            case "/chunked.pkl":
                self.send_response(200)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                self.wfile.write(b"FF\r\nonly a part")
            case "/page.pkl":
                self.answer(200, page, len(page))
            case "/nothing.pkl":
                self.answer(200, b"", 0)
            case "/moved.pkl":
                self.send_response(302)
                self.send_header("Location", "/net.pkl")
                self.send_header("Content-Length", "0")
                self.end_headers()
            case "/downgrade.pkl":
                self.send_response(302)
                self.send_header("Location", f"ftp://127.0.0.1:{self.server.server_port}/net.pkl")
                self.send_header("Content-Length", "0")
                self.end_headers()
            case _:
                self.answer(404, page, len(page))

    def answer(self, status: int, content: bytes, length: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    Handler.requests.clear()


def test_a_download_is_kept_and_not_repeated(address: str, tmp_path: Path) -> None:
    path = open_url(f"{address}/net.pkl", cache_dir=tmp_path, sha256=DIGEST)
    assert path.read_bytes() == CONTENT
    assert path.name.endswith("-net.pkl")
    assert open_url(f"{address}/net.pkl", cache_dir=tmp_path, sha256=DIGEST) == path
    assert open_url(f"{address}/net.pkl", cache_dir=tmp_path) == path
    assert Handler.requests == ["/net.pkl"]
    assert list(tmp_path.iterdir()) == [path]
    other = open_url(f"{address}/net.pkl?version=2", cache_dir=tmp_path)
    assert other != path


def test_the_cache_folder_comes_from_the_environment(address: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "deep" / "cache"))
    assert open_url(f"{address}/moved.pkl").parent == tmp_path / "deep" / "cache"
    assert Handler.requests == ["/moved.pkl", "/net.pkl"]


def test_a_cached_file_is_verified(address: str, tmp_path: Path) -> None:
    path = open_url(f"{address}/net.pkl", cache_dir=tmp_path)
    path.write_bytes(b"swapped")
    with pytest.raises(UserError, match=r"cached; delete it to download again.*expected"):
        open_url(f"{address}/net.pkl", cache_dir=tmp_path, sha256=DIGEST)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("short.pkl", "arrived; run the command again|broke off before the end"),
        ("chunked.pkl", "broke off before the end"),
        ("page.pkl", "the server sent a web page"),
        ("nothing.pkl", "the server sent an empty file"),
        ("missing.pkl", "the server answers 404"),
        ("downgrade.pkl", "cannot download"),
    ],
)
def test_bad_answers_are_one_line_and_leave_nothing(address: str, tmp_path: Path, path: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as e:
        open_url(f"{address}/{path}", cache_dir=tmp_path)
    assert "\n" not in str(e.value)
    assert f"{address}/{path}" in str(e.value)
    assert not list(tmp_path.iterdir())


def test_a_wrong_checksum_is_not_kept(address: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"net.pkl: SHA-256 is {DIGEST}, expected 0000"):
        open_url(f"{address}/net.pkl", cache_dir=tmp_path, sha256="0" * 64)
    assert not list(tmp_path.iterdir())


def test_without_internet_the_error_says_where_to_put_the_file(tmp_path: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    port = server.server_port
    server.server_close()  # nobody listens there now
    url = f"http://127.0.0.1:{port}/net.pkl"
    with pytest.raises(UserError, match="cannot be reached; without internet, put the file at") as e:
        open_url(url, cache_dir=tmp_path)
    place = Path(str(e.value).split("put the file at ")[1].split(" or name")[0])
    place.write_bytes(CONTENT)
    assert open_url(url, cache_dir=tmp_path, sha256=DIGEST) == place


@pytest.mark.parametrize("url", ["http://example.com/a.pkl", "ftp://example.com/a", "file:///etc/passwd", "https:///a"])
def test_only_https_is_accepted(url: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="use https"):
        open_url(url, cache_dir=tmp_path)


def test_a_cache_that_cannot_be_written_is_named(address: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="set DNNLIB_CACHE_DIR"):
        open_url(f"{address}/net.pkl", cache_dir=tmp_path / "file")


def test_atomic_write_keeps_the_old_file_on_an_error(tmp_path: Path) -> None:
    target = tmp_path / "network-snapshot-000001.safetensors"
    target.write_text("old")

    def interrupted() -> None:
        with atomic_write(target) as temporary:
            temporary.write_text("half of the n")
            assert not temporary.match("network-snapshot*")
            assert temporary.suffix == target.suffix
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert [p.name for p in tmp_path.iterdir()] == [target.name]
    assert target.read_text() == "old"
    with atomic_write(target) as temporary:
        temporary.write_text("new")
    assert [p.name for p in tmp_path.iterdir()] == [target.name]
    assert target.read_text() == "new"
