"""Against a server on this machine, which can cut connections and may or may not serve parts of files."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.error import HTTPError

import pytest

from fasegr.checkpoint.download import ResumingHandler, cached_path

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A server of one file. asked: the Range of every request; cut_after: bytes until it hangs up; parts: has them."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked = self.headers["Range"]
            server.asked.append(asked)
            if self.path != "/v1/weights.pth":
                return self.send_error(404)
            start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and server.parts else 0
            if start >= len(CONTENT):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            self.send_response(206 if asked and server.parts else 200)
            if asked and server.parts:
                self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
            self.send_header("Content-Length", str(len(CONTENT) - start))
            self.end_headers()
            self.wfile.write(CONTENT[start:][: server.cut_after])
            return None

        def log_message(self, *args):
            pass

    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.cut_after, server.parts = [], None, True
    server.url = f"http://127.0.0.1:{server.server_port}/v1/weights.pth"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def get(url):
    with open(ResumingHandler()._get_local_path(url), "rb") as file:
        return file.read()


def test_downloaded_once_with_a_progress_bar(server, tmp_path, capsys):
    assert get(server.url) == CONTENT
    assert get(server.url) == CONTENT
    assert server.asked == [None]
    assert (tmp_path / "v1" / "weights.pth").read_bytes() == CONTENT
    assert "weights.pth: 100%" in capsys.readouterr().err


def test_interrupted_download_goes_on_where_it_stopped(server, tmp_path):
    server.cut_after = 1000
    with pytest.raises(ConnectionError, match=f"after 1000 of {len(CONTENT)} bytes"):
        get(server.url)
    assert not (tmp_path / "v1" / "weights.pth").exists()
    server.cut_after = None
    assert get(server.url) == CONTENT
    assert server.asked == [None, "bytes=1000-"]
    assert not (tmp_path / "v1" / "weights.pth.part").exists()


def test_server_of_whole_files_starts_again(server, tmp_path):
    server.parts = False
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1" / "weights.pth.part").write_bytes(b"x" * 99)
    assert get(server.url) == CONTENT


def test_part_longer_than_the_file_is_thrown_away(server, tmp_path):
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1" / "weights.pth.part").write_bytes(CONTENT + b"x")
    assert get(server.url) == CONTENT
    assert server.asked == [f"bytes={len(CONTENT) + 1}-", None]


def test_complete_part_only_gets_its_name(server, tmp_path):
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1" / "weights.pth.part").write_bytes(CONTENT)
    assert get(server.url) == CONTENT
    assert server.asked == [f"bytes={len(CONTENT)}-"]


def test_missing_file_is_an_error_and_leaves_nothing(server, tmp_path):
    with pytest.raises(HTTPError, match="404"):
        get(server.url.replace("weights", "waits"))
    assert not [path.name for path in (tmp_path / "v1").iterdir() if not path.name.endswith(".lock")]


def test_queries_tell_files_apart():
    assert cached_path("https://host/get?id=1") != cached_path("https://host/get?id=2")
