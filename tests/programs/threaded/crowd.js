// Threads of Node.js: workers with messages and shared memory, beside those of its engine and of its pool. What is
// printed does not depend on who did what.
'use strict';
const { Worker, isMainThread, parentPort, workerData } = require('node:worker_threads');
const { createHash } = require('node:crypto');
const { deflateSync, deflate } = require('node:zlib');

const BLOCK = Buffer.from(Array.from({ length: 256 << 10 }, (_, at) => (at * 7) & 255));

function digest(number) {
  return createHash('sha256').update(deflateSync(BLOCK)).update(String(number)).digest('hex').slice(0, 16);
}

if (!isMainThread) {
  const shared = new Int32Array(workerData);
  parentPort.on('message', (number) => {
    if (number === null) {
      Atomics.add(shared, 1, 1);
      Atomics.notify(shared, 1);
      parentPort.close();
      return;
    }
    Atomics.add(shared, 0, number);
    parentPort.postMessage([number, digest(number)]);
  });
} else {
  const memory = new SharedArrayBuffer(8);
  const workers = Array.from({ length: 3 }, () => new Worker(__filename, { workerData: memory }));
  const found = new Map();
  let timers = 0;
  const beat = setInterval(() => { timers += 1; }, 5);
  const ends = workers.map((worker) => new Promise((resolve) => worker.on('exit', resolve)));
  workers.forEach((worker) => worker.on('message', ([number, hash]) => found.set(number, hash)));
  for (let number = 0; number < 48; number++) workers[number % 3].postMessage(number);
  workers.forEach((worker) => worker.postMessage(null));
  Promise.all(ends).then(async (codes) => {
    for (let number = 0; number < 48; number++) console.log(number, found.get(number));
    const sizes = await Promise.all(Array.from({ length: 8 }, (_, level) => new Promise((resolve, reject) => {
      deflate(BLOCK, { level }, (error, data) => (error ? reject(error) : resolve(data.length)));
    })));
    clearInterval(beat);
    const [sum, ended] = new Int32Array(memory);
    console.log(codes.join(), sum, ended, timers > 0, sizes.join());
  });
}
