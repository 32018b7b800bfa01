// Serves on a free port of this machine: /N answers the sum of the digits of N!. Prints its port; ends with its input.
const http = require('http');
const crypto = require('crypto');

function factorial(n) {
  return n < 2n ? 1n : n * factorial(n - 1n);
}

function answer(n) {
  return [...factorial(BigInt(n)).toString()].reduce((sum, digit) => sum + Number(digit), 0);
}

const server = http.createServer((request, response) => {
  const n = Number(request.url.slice(1));
  // Half of the answers come by way of libuv's threads.
  if (n % 2)
    crypto.pbkdf2('a', 'b', 50, 32, 'sha256', () => response.end(String(answer(n))));
  else
    response.end(String(answer(n)));
});
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
process.stdin.resume();
process.stdin.on('end', () => {
  console.log('ended');
  process.exit(0);
});
