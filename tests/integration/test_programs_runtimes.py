"""Language runtimes, traced whole: CPython and Node.js."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.builders.compilers import have
from tests.builders.tracing import run_plain, run_traced
from tests.integration.test_programs_own import EVERYTHING, same

PYTHON = r"""
import asyncio, ctypes, functools, hashlib, json, os, re, signal, socket, subprocess, sys, threading, time, zlib
def fibonacci(n): return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)
results = [0] * 8
def work(i): results[i] = fibonacci(12) + i
threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
[t.start() for t in threads]; [t.join() for t in threads]
print('threads', results)
pid = os.fork()
if pid == 0:
    print('child', fibonacci(10), flush=True); os._exit(3)
print('fork', os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
async def serve():
    async def echo(reader, writer):
        writer.write((await reader.readline()).upper()); await writer.drain(); writer.close()
    server = await asyncio.start_server(echo, '127.0.0.1', 0)
    port = server.sockets[0].getsockname()[1]
    async def ask(i):
        reader, writer = await asyncio.open_connection('127.0.0.1', port)
        writer.write(b'hello %d\n' % i); answer = await reader.readline(); writer.close(); return answer
    print(await asyncio.gather(*(ask(i) for i in range(5)), asyncio.sleep(0.01, 'slept')))
    server.close(); await server.wait_closed()
asyncio.run(serve())
a, b = socket.socketpair(); a.sendall(b'x' * 1000); print(len(b.recv(4096))); a.close(); b.close()
class Error(Exception): pass
def handler(*_): raise Error('alarm')
signal.signal(signal.SIGALRM, handler); signal.setitimer(signal.ITIMER_REAL, 0.05)
try:
    time.sleep(20)
except Error as error: print('caught', error)
print(hashlib.sha256(zlib.compress(json.dumps(list(range(5000))).encode())).hexdigest())
print(sum(int(m) for m in re.findall(r'\d+', 'a1b22c333' * 500)))
compare = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_int))
array = (ctypes.c_int * 50)(*((i * 37) % 50 for i in range(50)))
ctypes.CDLL(None).qsort(array, 50, 4, compare(lambda x, y: x[0] - y[0])); print(list(array)[:5])
print(subprocess.run([sys.executable, '-c', 'print(6 * 7)'], capture_output=True, text=True).stdout, end='')
print(subprocess.run('exit 4', shell=True).returncode)
def deep(n): return deep(n + 1)
try: deep(0)
except RecursionError: print('recursion')
sys.exit(5)
"""

NODE = r"""
const { Worker, isMainThread, parentPort, workerData } = require('worker_threads');
const crypto = require('crypto'), zlib = require('zlib'), child = require('child_process'), http = require('http');
const fibonacci = n => n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2);
if (!isMainThread) { parentPort.postMessage(workerData + fibonacci(20)); }
else (async () => {
  const workers = [1, 2, 3].map(n => new Promise((done, fail) =>
    new Worker(__filename, { workerData: n }).on('message', done).on('error', fail)));
  console.log(await Promise.all(workers));
  console.log(crypto.createHash('sha256').update('text').digest('hex'));
  console.log(crypto.pbkdf2Sync('secret', 'salt', 500, 16, 'sha512').toString('hex'));
  console.log(await new Promise(done => crypto.scrypt('a', 'b', 16, (e, key) => done(key.toString('hex')))));
  const { publicKey, privateKey } = crypto.generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const signature = crypto.sign('sha256', Buffer.from('x'), privateKey);
  console.log(crypto.verify('sha256', Buffer.from('x'), publicKey, signature));
  console.log(zlib.gunzipSync(zlib.gzipSync(Buffer.alloc(100000, 'ab'))).length);
  console.log(child.execFileSync(process.execPath, ['-p', '6 * 7']).toString().trim());
  const server = http.createServer((request, response) => response.end('hello ' + request.url));
  await new Promise(done => server.listen(0, '127.0.0.1', done));
  console.log(await (await fetch(`http://127.0.0.1:${server.address().port}/path`)).text());
  server.close(); server.closeAllConnections?.();
  try { (function deep() { deep(); })(); } catch (error) { console.log(error.constructor.name); }
  console.log(JSON.stringify([...'a1b2'.matchAll(/\d/g)].map(m => m[0])), fibonacci(25));
  process.exitCode = 6;
})();
"""


@cache
def real_python() -> str:
    """A python3 that is a program, not a script in front of one."""
    for name in (*os.environ["PATH"].split(":"), str(Path(sys.executable).parent)):
        path = Path(name) / "python3"
        if path.is_file() and path.read_bytes()[:4] == b"\x7fELF":
            return str(path)
    pytest.skip("there is no python3 program on the path")


@pytest.mark.parametrize("options", [{}, {"keep_last": 16 << 20}], ids=["main", "keep last"])
def test_python(options: dict[str, object], tmp_path: Path, plan_cache: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(PYTHON)
    plain = run_plain([real_python(), script])
    assert plain.status == 5, plain
    same(plain, run_traced([real_python(), script], tmp_path / "t", plan_cache, recording=options))


def test_python_with_all_its_libraries(tmp_path: Path, plan_cache: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(PYTHON)
    traced = run_traced([real_python(), script], tmp_path / "t", plan_cache, timeout=300, recording=EVERYTHING)
    same(run_plain([real_python(), script]), traced)


@pytest.mark.skipif(not have("node"), reason="node is not installed")
def test_node(tmp_path: Path, plan_cache: Path) -> None:
    script = tmp_path / "script.js"
    script.write_text(NODE)
    plain = run_plain(["node", script])
    assert plain.status == 6, plain
    same(plain, run_traced(["node", script], tmp_path / "t", plan_cache, timeout=300))


def test_running_the_recorder_under_itself(tmp_path: Path, plan_cache: Path) -> None:
    """A traced Python may itself start traced programs: the inner recording wins there, the outer one is complete."""
    inner = ["-m", "tests.builders.record_one", f'{{"command": ["true"], "output": "{tmp_path}/inner"}}']
    traced = run_traced([sys.executable, *inner], tmp_path / "outer", plan_cache, timeout=300)
    assert (traced.status, traced.output, traced.errors) == (0, "", "")
    assert (tmp_path / "inner/session.json").exists()


def test_plain_programs_run_as_expected(tmp_path: Path) -> None:
    """The scripts themselves are repeatable, or comparing would prove nothing."""
    script = tmp_path / "script.py"
    script.write_text(PYTHON)
    outputs = {subprocess.run([real_python(), script], capture_output=True, text=True).stdout for _ in range(2)}
    assert len(outputs) == 1
