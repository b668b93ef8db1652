"""A server on this machine that answers as a test wants it to."""

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace


@contextmanager
def serving(*answers):
    """Serve on this machine; each answer is a function of the request handler, the last one repeats."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(dict(self.headers, path=self.path))
            answers[min(len(requests), len(answers)) - 1](self)

        def do_HEAD(self):
            self.do_GET()

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.daemon_threads = True
    stop = threading.Event()
    server.stop = stop
    thread = threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.01))
    thread.start()
    try:
        yield SimpleNamespace(url=f'http://127.0.0.1:{server.server_port}/v1/shvit_s1.pth', requests=requests)
    finally:
        stop.set()
        server.shutdown()
        server.server_close()
        thread.join()


def head(handler, status=200, length=None, **headers):
    handler.send_response(status)
    if length is not None:
        handler.send_header('Content-Length', str(length))
    for name, value in headers.items():
        handler.send_header(name.replace('_', '-'), value)
    handler.end_headers()
