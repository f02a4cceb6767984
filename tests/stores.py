"""Object stores for tests: one in memory, and an emulator of Google Cloud Storage behind a proxy.

The proxy can fail requests, and refuse them as a store without room or permission does.
"""

import contextlib
import http.client
import http.server
import json
import random
import threading

import pytest

_AT_ONCE = 128  # connections that may wait; of more some would be lost, and with them requests


@contextlib.contextmanager
def emulator(*buckets):
    """Starts gcp-storage-emulator on a free port; yields its address, host:port."""
    server_of = pytest.importorskip("gcp_storage_emulator.server")
    pytest.importorskip("gcsfs")
    server = server_of.create_server("localhost", 0, in_memory=True)
    server.start()
    httpd = server._api._httpd  # the emulator does not tell its port otherwise
    httpd.socket.listen(_AT_ONCE)
    port = httpd.server_address[1]
    try:
        for bucket in buckets:
            body = json.dumps({"name": bucket}).encode()
            connection = http.client.HTTPConnection("localhost", port)
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/storage/v1/b?project=test", body, headers)
            assert connection.getresponse().status == 200
            connection.close()
        yield f"localhost:{port}"
    finally:
        server.stop()


class Proxy:
    """Passes requests on to a server.

    Attributes:
      failing: share of requests that are answered with 503 or, every other one, cut off.
      refuse: method, path -> (status, reason) of an answer in place of the server's, or None.
      requests: method and path of each.
      failed: how many were failed.
    """

    def __init__(self, address, failing=0.0, refuse=lambda method, path: None):
        self.failing, self.refuse = failing, refuse
        self.requests, self.failed = [], 0
        self._address, self._random, self._lock = address, random.Random(0), threading.Lock()

    def __enter__(self):
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def pass_on(self):
                with contextlib.suppress(ConnectionError):  # of a program that was killed
                    proxy._answer(self)

            do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = pass_on

            def log_message(self, *arguments):
                pass

        self._server = http.server.ThreadingHTTPServer(("localhost", 0), Handler)
        self._server.socket.listen(_AT_ONCE)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *arguments: None
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://localhost:{self._server.server_address[1]}"
        return self

    def __exit__(self, *error):
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, handler):
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        with self._lock:
            self.requests.append((handler.command, handler.path))
            fails = self._random.random() < self.failing
            self.failed += fails
            cuts = fails and self.failed % 2
        if cuts:
            handler.close_connection = True
            return
        refused = (503, "try again") if fails else self.refuse(handler.command, handler.path)
        if refused:
            text = json.dumps({"error": {"code": refused[0], "message": refused[1]}}).encode()
            self._send(handler, refused[0], {"Content-Type": "application/json"}, text)
            return
        headers = {k: v for k, v in handler.headers.items() if k.lower() != "host"}
        headers["Host"] = handler.headers["Host"]  # links in answers lead here again
        connection = http.client.HTTPConnection(self._address, timeout=60)
        try:
            connection.request(handler.command, handler.path, body, headers)
            answer = connection.getresponse()
            data = answer.read()
            self._send(handler, answer.status, dict(answer.getheaders()), data)
        finally:
            connection.close()

    def _send(self, handler, status, headers, data):
        handler.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)
