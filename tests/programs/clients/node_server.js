'use strict';
// An HTTP server that sends back what it is sent, counts, and speaks websocket (RFC 6455): the port.
const http = require('http'), crypto = require('crypto');
let count = 0;

const server = http.createServer((request, response) => {
  const parts = [];
  request.on('data', part => parts.push(part));
  request.on('end', () => {
    const body = Buffer.concat(parts);
    const answer = () => {
      response.setHeader('X-Count', ++count);
      response.setHeader('Content-Length', body.length);
      response.end(body);
    };
    if (request.url === '/later') setTimeout(answer, 20);
    else answer();
  });
});

function frame(code, data) {
  const head = data.length < 126 ? Buffer.from([0x80 | code, data.length])
    : data.length < 65536 ? Buffer.from([0x80 | code, 126, data.length >> 8, data.length & 255])
      : Buffer.alloc(10);
  if (head.length === 10) {
    head[0] = 0x80 | code;
    head[1] = 127;
    head.writeBigUInt64BE(BigInt(data.length), 2);
  }
  return Buffer.concat([head, data]);
}

server.on('upgrade', (request, socket, came) => {
  const key = request.headers['sec-websocket-key'] + '258EAFA5-E914-47DA-95CA-C5AB0DC85B11';
  const accept = crypto.createHash('sha1').update(key).digest('base64');
  socket.write(`HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ${accept}\r\n\r\n`);
  socket.setNoDelay(true);
  // Tells the time, too, in its own numbers.
  let ticks = 0;
  const clock = setInterval(() => socket.write(frame(1, Buffer.from(`tick ${ticks++}`))), 50);
  const hear = data => {
    came = Buffer.concat([came, data]);
    for (;;) {
      if (came.length < 2) return;
      let length = came[1] & 127, at = 2;
      if (length === 126) { at = 4; if (came.length < at) return; length = came.readUInt16BE(2); }
      else if (length === 127) { at = 10; if (came.length < at) return; length = Number(came.readBigUInt64BE(2)); }
      if (came.length < at + 4 + length) return;
      const mask = came.subarray(at, at + 4), payload = Buffer.from(came.subarray(at + 4, at + 4 + length));
      for (let i = 0; i < length; i++) payload[i] ^= mask[i & 3];
      const code = came[0] & 15;
      came = came.subarray(at + 4 + length);
      if (code === 8) { clearInterval(clock); socket.end(frame(8, payload)); return; }
      socket.write(frame(code === 9 ? 10 : code, payload));
    }
  };
  socket.on('data', hear);
  socket.on('error', error => { clearInterval(clock); console.error(`websocket: ${error}`); });
  socket.on('close', () => clearInterval(clock));
  hear(Buffer.alloc(0));
});

server.keepAliveTimeout = server.requestTimeout = server.headersTimeout = 0;
server.listen(Number(process.argv[2]), '127.0.0.1');
process.on('SIGTERM', () => process.exit(0));
