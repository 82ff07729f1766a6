"""A FHIR server with Bulk Data export, whose resources are changed from outside between two exports.

Its clock moves only by `advance`, and it keeps the time of each deletion. It shares no code with the server of
`fhir-sync demo`, so the two do not share their mistakes.
"""

import datetime
import email.utils
import http.server
import json
import sys
import threading
import traceback
import urllib.parse

Key = tuple[str, str]

START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


class Server:
    """`lines` is what a full export sends: the line by type and id. `deleted_at` has the instant of each deletion.

    Port 0 is any free one; a `handler` of one's own is derived from `Handler`.
    """

    def __init__(self, port: int = 0, handler: type | None = None) -> None:
        self.now = START
        self.lines: dict[Key, str] = {}
        self.deleted_at: dict[Key, datetime.datetime] = {}
        self._changed: dict[Key, datetime.datetime] = {}
        self._versions: dict[Key, int] = {}
        self._exports: list[tuple[datetime.datetime, dict[str, str]]] = []
        self._lock = threading.RLock()
        server = self

        class Served(handler or Handler):
            bulk = server

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", port), Served)
        # A client that is killed resets its connection.
        is_reset = lambda: isinstance(sys.exception(), ConnectionError)
        self._http.handle_error = lambda *_: None if is_reset() else traceback.print_exc()
        self.url = f"http://127.0.0.1:{self._http.server_port}/fhir"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def put(self, resource_type: str, resource_id: str, **elements) -> None:
        key = (resource_type, resource_id)
        self._versions[key] = self._versions.get(key, 0) + 1
        meta = {"versionId": str(self._versions[key]), "lastUpdated": _instant(self.now)}
        resource = {"resourceType": resource_type, "id": resource_id, "meta": meta, **elements}
        with self._lock:
            self.lines[key] = json.dumps(resource, ensure_ascii=False)
            self._changed[key] = self.now
            self.deleted_at.pop(key, None)

    def delete(self, resource_type: str, resource_id: str) -> None:
        with self._lock:
            self.delete_silently(resource_type, resource_id)
            self.deleted_at[resource_type, resource_id] = self.now

    def delete_silently(self, resource_type: str, resource_id: str) -> None:
        """Deletes without reporting it: only a full export shows that the resource is missing."""
        with self._lock:
            del self.lines[resource_type, resource_id], self._changed[resource_type, resource_id]

    def advance(self, **time) -> None:
        self.now += datetime.timedelta(**time)

    def exports(self) -> int:
        """How many have been requested."""
        return len(self._exports)

    def kick_off(self, query: dict[str, list[str]]) -> int:
        with self._lock:
            return self._export(query)

    def _export(self, query: dict[str, list[str]]) -> int:
        types = query["_type"][0].split(",")
        since = [datetime.datetime.fromisoformat(text) for text in query.get("_since", [])]
        lines: dict[str, list[str]] = {}
        for (resource_type, resource_id), line in self.lines.items():
            if resource_type in types and all(self._changed[resource_type, resource_id] >= at for at in since):
                lines.setdefault(resource_type, []).append(line + "\n")
        files = {resource_type: "".join(of_type) for resource_type, of_type in lines.items()}
        deleted = [key for key, at in self.deleted_at.items() if since and key[0] in types and at >= since[0]]
        if deleted:
            entries = [{"request": {"method": "DELETE", "url": "/".join(key)}} for key in deleted]
            files["deleted"] = json.dumps({"resourceType": "Bundle", "type": "transaction", "entry": entries}) + "\n"
        self._exports.append((self.now, files))
        return len(self._exports) - 1

    def manifest(self, export: int) -> dict:
        at, files = self._exports[export]
        named = [
            {"type": name, "url": f"{self.url}/file/{export}/{name}", "count": text.count("\n")}
            for name, text in files.items()
        ]
        return {
            "transactionTime": _instant(at),
            "request": f"{self.url}/$export",
            "requiresAccessToken": False,
            "output": [file for file in named if file["type"] != "deleted"],
            "deleted": [file | {"type": "Bundle"} for file in named if file["type"] == "deleted"],
            "error": [],
        }

    def file(self, export: int, name: str) -> str:
        return self._exports[export][1][name]


class Handler(http.server.BaseHTTPRequestHandler):
    bulk: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        match url.path.removeprefix("/fhir/").split("/"):
            case ["metadata"]:
                statement = {"resourceType": "CapabilityStatement", "status": "active", "fhirVersion": "4.0.1"}
                self.answer(200, "application/fhir+json", json.dumps(statement))
            case ["$export"]:
                export = self.bulk.kick_off(urllib.parse.parse_qs(url.query))
                self.answer(202, "application/fhir+json", "", ("Content-Location", f"{self.bulk.url}/status/{export}"))
            case ["status", export]:
                self.answer(200, "application/json", json.dumps(self.bulk.manifest(int(export))))
            case ["file", export, name]:
                self.answer(200, "application/fhir+ndjson", self.bulk.file(int(export), name))
            case _:
                self.answer(404, "application/fhir+json", json.dumps({"resourceType": "OperationOutcome", "issue": []}))

    def do_DELETE(self) -> None:
        self.answer(202, "application/fhir+json", "")

    def answer(self, status: int, content_type: str, text: str, *headers: tuple[str, str]) -> None:
        body = text.encode()
        self.send_response(status)
        for name, value in [("Content-Type", content_type), ("Content-Length", str(len(body))), *headers]:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def date_time_string(self, timestamp: float | None = None) -> str:
        return email.utils.format_datetime(self.bulk.now, usegmt=True)

    def log_message(self, *_) -> None:
        pass


def _instant(at: datetime.datetime) -> str:
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
