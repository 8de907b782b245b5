"""A real HTTP server on this machine whose faults a test chooses."""

import contextlib
import dataclasses
import re
import socket
import struct
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclasses.dataclass
class Served:
    """A file, and how it is served; each entry of `cuts` and `statuses` is for one request."""

    body: bytes
    etag: str | None = '"one"'
    last_modified: str | None = None
    cuts: list[int] = dataclasses.field(default_factory=list)  # bytes after which the connection ends
    statuses: list[int] = dataclasses.field(default_factory=list)  # answered instead of the file
    ranges: bool = True
    looks_at_if_range: bool = True
    tells_length: bool = True
    in_chunks: bool = False
    resets: bool = False
    leads_to: str | None = None  # the address of a redirection
    then: Callable[[], None] = lambda: None  # called where the connection is to be cut


class FileServer:
    """Files by path, and a log of (path, first byte asked for, bytes sent)."""

    def __init__(self, port: int):
        self.address = f"http://127.0.0.1:{port}"
        self.files: dict[str, Served] = {}
        self.log: list[tuple[str, int, int]] = []
        self.stop: Callable[[], None] = lambda: None  # ends it: from then on nothing listens


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        files: FileServer = self.server.files
        served = files.files.get(self.path)
        if served is None or served.statuses:
            files.log.append((self.path, 0, 0))
            return self.send_error(served.statuses.pop(0) if served else 404)
        if served.leads_to is not None:
            self.send_response(302)
            self.send_header("Location", served.leads_to)
            return self.end_headers()
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        same = self.headers["If-Range"] in (None, served.etag, served.last_modified)
        start = int(asked[1]) if asked and served.ranges and (same or not served.looks_at_if_range) else 0
        if start and start >= len(served.body):
            files.log.append((self.path, start, 0))
            return self.send_error(416)
        self.send_response(206 if start else 200)
        told = {"ETag": served.etag, "Last-Modified": served.last_modified}
        if served.in_chunks:
            told["Transfer-Encoding"] = "chunked"
        elif served.tells_length:
            told["Content-Length"] = str(len(served.body) - start)
        if start:
            told["Content-Range"] = f"bytes {start}-{len(served.body) - 1}/{len(served.body)}"
        for name, value in told.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        cut = served.cuts.pop(0) if served.cuts else None
        sent = served.body[start:][:cut]
        files.log.append((self.path, start, len(sent)))
        if served.in_chunks:
            sent = f"{len(served.body) - start:x}\r\n".encode() + sent + (b"\r\n0\r\n\r\n" if cut is None else b"")
        with contextlib.suppress(OSError):
            self.wfile.write(sent)
        if cut is not None:
            served.then()
            if served.resets:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def log_message(self, *arguments):
        pass


@contextlib.contextmanager
def file_server(context=None):
    """Serve on a free port; `context` is of ssl where the server is to speak TLS."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.daemon_threads = True
        server.files = FileServer(server.server_port)
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
            server.files.address = server.files.address.replace("http:", "https:")
        server.files.stop = lambda: (server.shutdown(), server.server_close())
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.files
        server.shutdown()
        thread.join()
