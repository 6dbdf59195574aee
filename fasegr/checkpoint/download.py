"""Downloads that continue where they were interrupted, as a handler of iopath."""

import logging
import os
import re
from http.client import HTTPException
from urllib.error import HTTPError
from urllib.parse import urlparse
from urllib.request import Request, urlopen

from iopath.common.file_io import HTTPURLHandler, file_lock, get_cache_dir
from tqdm import tqdm

__all__ = ["ResumingHandler", "cached_path"]

PART = ".part"  # suffix of a file until it is complete; it has no process id, since the next attempt continues it
TIMEOUT = 60  # seconds without a byte
CHUNK = 2**20

_logger = logging.getLogger(__name__)


def cached_path(url: str, cache_dir: str | None = None) -> str:
    """Where in iopath's cache the file behind `url` is, or will be."""
    folder = os.path.dirname(urlparse(url).path.lstrip("/"))
    name = url.rsplit("/", 1)[-1]  # with the query, which may be what tells files apart
    return os.path.join(get_cache_dir(cache_dir), folder, name)


class ResumingHandler(HTTPURLHandler):
    """iopath's handler of URLs, with its cache; an interrupted download is continued by the next attempt."""

    def _get_local_path(self, path: str, force: bool = False, cache_dir: str | None = None, **kwargs) -> str:
        self._check_kwargs(kwargs)
        target = cached_path(path, cache_dir)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with file_lock(target):  # of several processes one downloads, and the others find the file
            if force or not os.path.isfile(target):
                try:
                    _download(path, target)
                except HTTPException as error:  # a connection that broke within its protocol; callers expect OSError
                    raise ConnectionError(f"{type(error).__name__}: {error}") from error
        return target


def _download(url: str, target: str) -> None:
    """Fetch `url` to `target`, continuing what an earlier attempt has left in `target`.part.

    Raises OSError (urllib's errors are of that kind) if the server or the disk fails; the part is kept.
    """
    part = target + PART
    have = os.path.getsize(part) if os.path.exists(part) else 0
    # Without this, a server may compress, and a byte of the file would not be a byte of the transfer.
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
    try:
        response = urlopen(Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        if error.code != 416 or not have:
            raise
        error.close()
        if error.headers.get("Content-Range") == f"bytes */{have}":  # complete; killed before it was renamed
            os.replace(part, target)
            return None
        os.remove(part)  # longer than the file, so not a part of it
        return _download(url, target)
    with response:
        start = _start(response, have)
        length = response.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        _logger.info("Downloading %s to %s%s", url, target, f", from byte {start}" if start else "")
        bar = tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=os.path.basename(target))
        with bar, open(part, "r+b" if start else "wb") as file:
            file.seek(start)
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
            file.flush()
            os.fsync(file.fileno())
    size = os.path.getsize(part)
    if size == 0 or total not in (None, size):
        raise ConnectionError(f"the connection ended after {size} of {total or 'some'} bytes; run it again to continue")
    os.replace(part, target)
    return None


def _start(response, asked: int) -> int:
    """The byte of the file that the response begins with: `asked`, or 0 if the server only sends whole files."""
    if response.status != 206:
        return 0
    stated = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    if stated is None or int(stated[1]) != asked:
        raise ConnectionError(
            f"the server answered with {response.headers.get('Content-Range')!r} when asked to continue at byte {asked}"
        )
    return asked
