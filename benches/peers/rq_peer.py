"""RQ as a peer: python rq_peer.py PORT JOBS; prints the seconds of filling and draining.

Jobs are enqueued first, 1,000 at a time; then two SimpleWorkers (no fork a job) drain the queue, each a process. Draining
counts from the first job's start to the last one's end: starting and stopping workers takes seconds and is left out.
"""
import sys
import time
from multiprocessing import Process, SimpleQueue

from redis import Redis
from rq import Queue, SimpleWorker


def noop(_payload):
    pass


class Timed(SimpleWorker):
    """Knows when it began and ended its work."""

    first = last = None

    def perform_job(self, *args, **kwargs):
        self.first = self.first or time.monotonic()
        try:
            return super().perform_job(*args, **kwargs)
        finally:
            self.last = time.monotonic()


def work(port, times):
    connection = Redis(port=port)
    worker = Timed([Queue("bench", connection=connection)], connection=connection)
    worker.work(burst=True, logging_level="ERROR")
    times.put((worker.first, worker.last))


def main():
    port, jobs = int(sys.argv[1]), int(sys.argv[2])
    connection = Redis(port=port)
    queue = Queue("bench", connection=connection)
    for _ in range(100):
        try:
            connection.ping()
            break
        except Exception:  # it is not up yet
            time.sleep(0.05)
    begun = time.monotonic()
    left = jobs
    while left > 0:
        count = min(1000, left)
        left -= count
        queue.enqueue_many([Queue.prepare_data("rq_peer.noop", ("x" * 98,), result_ttl=0) for _ in range(count)])
    filled = time.monotonic() - begun
    times = SimpleQueue()
    workers = [Process(target=work, args=(port, times)) for _ in range(2)]
    for worker in workers:
        worker.start()
    spans = [span for span in (times.get() for _ in workers) if span[0]]
    for worker in workers:
        worker.join()
    drained = max(last for _, last in spans) - min(first for first, _ in spans)
    if len(queue) or any(worker.exitcode for worker in workers):
        sys.exit(f"{len(queue)} jobs are left")
    print(filled + drained)


if __name__ == "__main__":
    main()
