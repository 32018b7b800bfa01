"""Serves on a free port of this machine, with eight threads: /N answers the sum of the digits of N!, /stop ends it.

Prints its port. Runs in any Python from 3.9 on.
"""

import queue
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer


def factorial(n):
    return 1 if n < 2 else n * factorial(n - 1)


def answer(n):
    return sum(map(int, str(factorial(n))))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        body = str(answer(int(self.path[1:]))).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        pass


class Server(HTTPServer):
    """Hands connections to threads that are there already."""

    request_queue_size = 64

    def __init__(self, threads):
        super().__init__(("127.0.0.1", 0), Handler)
        self.connections = queue.Queue()
        for _ in range(threads):
            threading.Thread(target=self.work, daemon=True).start()

    def process_request(self, request, address):
        self.connections.put((request, address))

    def work(self):
        while True:
            request, address = self.connections.get()
            try:
                self.finish_request(request, address)
            finally:
                self.shutdown_request(request)


server = Server(8)
print(server.server_address[1], flush=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
sys.stdin.read()
print("ended")
