"""A proxy in front of a FHIR server, which counts the requests and can end TLS.

The server learns the name under which it was asked, and not that it was by https: so it answers with `http:` addresses.
"""

import http.client
import http.server
import pathlib
import ssl
import subprocess
import threading
import urllib.parse


class Proxy:
    def __init__(self, base: str, folder: pathlib.Path, scheme: str):
        folder.mkdir()
        self.folder, self.authority = folder, folder / "authority.pem"
        self.paths: list[str] = []
        self.named_http = 0
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler(self, urllib.parse.urlsplit(base)))
        # A client that is killed resets its connection.
        self.server.handle_error = lambda *_: None
        if scheme == "https":
            self.server.socket = self.context().wrap_socket(self.server.socket, server_side=True)
        self.origin = f"{scheme}://127.0.0.1:{self.server.server_address[1]}"
        self.base = self.origin + urllib.parse.urlsplit(base).path

    def context(self) -> ssl.SSLContext:
        self.openssl("authority")
        self.openssl("proxy", "-CA", "authority.pem", "-CAkey", "authority.key",
                     "-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / "proxy.pem", self.folder / "proxy.key")
        return context

    def openssl(self, name: str, *options: str) -> None:
        command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2"
        command += f" -subj /CN={name} -keyout {name}.key -out {name}.pem"
        subprocess.run([*command.split(), *options], check=True, capture_output=True, cwd=self.folder)

    def requests(self, part: str) -> int:
        return sum(part in path for path in self.paths)

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def handler(proxy: Proxy, upstream: urllib.parse.SplitResult) -> type:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self):
            proxy.paths.append(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            connection = http.client.HTTPConnection(upstream.netloc, timeout=300)
            connection.request(self.command, self.path, body or None, dict(self.headers))
            answer = connection.getresponse()
            content = answer.read()
            proxy.named_http += "http://" in (answer.getheader("Content-Location") or "")
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "content-length", "connection", "date", "server"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            connection.close()

        do_GET = do_POST = do_DELETE = forward

        def log_message(self, *_):
            pass

    return Handler
