// BullMQ as a peer: node bullmq.cjs PORT JOBS; prints the seconds from the first add to the last completion.
// The worker is a process of its own and waits before the first job is added.
const { fork } = require('node:child_process');
const { Queue, Worker } = require('bullmq');

const [port, jobs, role] = [Number(process.argv[2]), Number(process.argv[3]), process.argv[4]];
const connection = { host: '127.0.0.1', port, maxRetriesPerRequest: null };
const options = { connection };

async function work() {
  let left = jobs;
  const worker = new Worker('bench', async () => {}, {
    ...options, concurrency: 64, removeOnComplete: { count: 0 },
  });
  await worker.waitUntilReady();
  worker.on('completed', () => {
    left -= 1;
    if (left === 0) process.send({ done: Date.now() }, () => process.exit(0));
  });
  process.send({ ready: true });
}

async function add() {
  const queue = new Queue('bench', options);
  await queue.waitUntilReady();
  const worker = fork(__filename, [String(port), String(jobs), 'work']);
  const heard = (name) => new Promise((resolve) => {
    worker.on('message', (message) => { if (name in message) resolve(message[name]); });
  });
  await heard('ready');
  const done = heard('done');
  const data = 'x'.repeat(98);
  const begun = Date.now();
  let left = jobs;
  const sender = async () => {
    while (left > 0) {
      const count = Math.min(1000, left);
      left -= count;
      await queue.addBulk(Array.from({ length: count }, () => ({ name: 'noop', data })));
    }
  };
  await Promise.all([sender(), sender(), sender(), sender()]);
  console.log(((await done) - begun) / 1000);
  await queue.close();
  process.exit(0);
}

(role === 'work' ? work() : add()).catch((error) => { console.error(error); process.exit(1); });
