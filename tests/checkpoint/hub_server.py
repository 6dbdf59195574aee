"""As much of Hugging Face's hub as huggingface_hub asks for, on the loopback: models with one branch."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

SHA = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """models: {OWNER/NAME: {file: bytes}}. asked: the requests so far, as "GET /path". token: that may write."""

    def __init__(self):
        self.models: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.asked: list[str] = []
        self.token = "hf_test"
        self._large: dict[str, bytes] = {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def _body(self) -> bytes:
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))

            def _send(self, status, content=b"", headers=()):
                content = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in {"Content-Length": len(content), **dict(headers)}.items():
                    self.send_header(name, str(value))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            def _refuse(self, status, code):
                self._send(status, {"error": code}, {"X-Error-Code": code, "X-Error-Message": code})

            def _route(self):
                hub.asked.append(f"{self.command} {self.path}")
                path = unquote(urlparse(self.path).path).lstrip("/")
                body = self._body()
                writes = self.command in ("POST", "PUT")
                if writes and not path.startswith("large/"):
                    if self.headers.get("Authorization") != f"Bearer {hub.token}":
                        return self._refuse(401, "Unauthorized")
                    return self._write(path, body)
                if writes:
                    hub._large[path.removeprefix("large/")] = body
                    return self._send(200)
                return self._read(path)

            do_GET = do_HEAD = do_POST = do_PUT = _route

            def _read(self, path):
                api = path.startswith("api/models/")
                parts = path.removeprefix("api/models/").split("/")
                name = "/".join(parts[:2])
                files = hub.models.get(name)
                if files is None:
                    return self._refuse(401, "RepoNotFound")
                if api:
                    if parts[3:4] not in ([], ["main"], [SHA]):
                        return self._refuse(404, "RevisionNotFound")
                    if parts[2:3] == ["tree"]:
                        entries = [
                            {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                            for file, data in files.items()
                        ]
                        return self._send(200, entries)
                    siblings = [{"rfilename": file} for file in files]
                    about = {"id": name, "sha": SHA, "siblings": siblings, "private": name in hub.private}
                    return self._send(200, about)
                file = "/".join(parts[4:])  # OWNER/NAME/resolve/REVISION/FILE
                if file not in files:
                    return self._refuse(404, "EntryNotFound")
                headers = {"ETag": f'"{hashlib.sha1(files[file]).hexdigest()}"', "X-Repo-Commit": SHA}
                return self._send(200, files[file], headers)

            def _write(self, path, body):
                if path == "api/repos/create":
                    given = json.loads(body)
                    name = f"{given['organization']}/{given['name']}"
                    if name in hub.models:
                        return self._send(409, {"url": f"{hub.address}/{name}", "error": "exists"})
                    hub.models[name] = {}
                    if given.get("private") or given.get("visibility") == "private":
                        hub.private.add(name)
                    return self._send(200, {"url": f"{hub.address}/{name}"})
                if path == "api/validate-yaml":
                    return self._send(200, {"errors": [], "warnings": []})
                if path.endswith("/info/lfs/objects/batch"):
                    objects = [
                        {**item, "actions": {"upload": {"href": f"{hub.address}/large/{item['oid']}"}}}
                        for item in json.loads(body)["objects"]
                    ]
                    return self._send(200, {"transfer": "basic", "objects": objects})
                _, _, owner, model, what, *_ = path.split("/")
                files = hub.models[f"{owner}/{model}"]
                if what == "preupload":
                    asked = json.loads(body)["files"]
                    modes = {f["path"]: "lfs" if f["path"].endswith("safetensors") else "regular" for f in asked}
                    answer = [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]
                    return self._send(200, {"files": answer})
                for line in body.splitlines():  # of a commit
                    entry = json.loads(line)
                    value = entry["value"]
                    if entry["key"] == "file":
                        files[value["path"]] = base64.b64decode(value["content"])
                    elif entry["key"] == "lfsFile":
                        files[value["path"]] = hub._large[value["oid"]]
                url = f"{hub.address}/{owner}/{model}/commit/{SHA}"
                return self._send(200, {"success": True, "commitOid": SHA, "commitUrl": url})

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
