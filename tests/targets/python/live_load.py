"""Keeps a server busy until its input ends, checks every answer, and prints how many there were and what was wrong.

live_load.py http PORT CONNECTIONS | file PORT CONNECTIONS | redis PORT CONNECTIONS
"""

import math
import socket
import sys
import threading

EXPECTED = {n: str(sum(map(int, str(math.factorial(n))))).encode() for n in range(1, 60)}
FILE = bytes(range(256)) * 64
ended = threading.Event()
asked, failures = [], []


def expect(right, what):
    if not right:
        failures.append(what)


def read_http(stream):
    """The status and the body of an answer."""
    status = stream.readline()
    headers = {}
    while line := stream.readline().strip():
        name, _, value = line.partition(b":")
        headers[name.lower()] = value.strip()
    if headers.get(b"transfer-encoding") == b"chunked":
        body = b""
        while size := int(stream.readline(), 16):
            body += stream.read(size)
            stream.readline()
        stream.readline()
        return status, body
    return status, stream.read(int(headers.get(b"content-length", b"0")))


def ask_http(connection, stream, path, body):
    connection.sendall(b"GET /%s HTTP/1.1\r\nHost: here\r\n\r\n" % path)
    status, got = read_http(stream)
    expect(status.split()[1:2] == [b"200"] and got == body, (path, status, got[:80]))


def http(connection, stream, number, own):
    n = 1 + number % 59
    ask_http(connection, stream, b"%d" % n, EXPECTED[n])


def file(connection, stream, number, own):
    ask_http(connection, stream, b"file", FILE)


def read_redis(stream):
    """An answer in RESP: a simple string, an integer, a bulk string or an array."""
    line = stream.readline()
    kind, rest = line[:1], line[1:].strip()
    if kind == b"$":
        return None if rest == b"-1" else stream.read(int(rest) + 2)[:-2]
    if kind == b"*":
        return [read_redis(stream) for _ in range(int(rest))]
    return line.strip() if kind == b"-" else int(rest) if kind == b":" else rest


def redis(connection, stream, number, own):
    def ask(*words):
        parts = [b"$%d\r\n%s\r\n" % (len(word), word) for word in words]
        connection.sendall(b"*%d\r\n" % len(words) + b"".join(parts))
        return read_redis(stream)

    key, value = b"key-%d" % own, b"%d" % number * (1 + number % 50)
    for words, right in (
        ((b"SET", key, value), b"OK"),
        ((b"GET", key), value),
        ((b"INCR", b"n" + key), number + 1),
        ((b"EVAL", b"return {ARGV[1], #ARGV}", b"0", value), [value, 1]),
        ((b"LPUSH", b"l" + key, value), number + 1),
        ((b"LRANGE", b"l" + key, b"0", b"0"), [value]),
    ):
        got = ask(*words)
        expect(got == right, (words, right, got))


def keep_busy(ask, port, own):
    try:
        with socket.create_connection(("127.0.0.1", port), 30) as connection, connection.makefile("rb") as stream:
            number = 0
            while not ended.is_set():
                ask(connection, stream, number, own)
                number += 1
            asked.append(number)
    except Exception as error:
        failures.append(repr(error))


if __name__ == "__main__":
    asks = {"http": http, "file": file, "redis": redis}
    work = [
        threading.Thread(target=keep_busy, args=(asks[sys.argv[1]], int(sys.argv[2]), own))
        for own in range(int(sys.argv[3]))
    ]
    for thread in work:
        thread.start()
    sys.stdin.read()
    ended.set()
    for thread in work:
        thread.join()
    print(sum(asked), len(failures), failures[:3])
