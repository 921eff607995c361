//! Output as the world sees it: the output thread's steps, people who follow a job, and what is there at the end.

use hostler_server::output::{Page, Read, ReadError};
use hostler_wire::frame::{LogsMode, OutputEnd, Stream};
use hostler_wire::{Fence, JobId};
use tokio::sync::oneshot;

use crate::options::S;
use crate::outlet::STREAMS;
use crate::printed::Kept;
use crate::world::{Happening, World};

/// Most followers at a time.
const FOLLOWERS_MAX: usize = 20;
/// Bytes of a page.
const PAGE_BYTES: usize = 3_000;

/// Somebody who follows a job, also over restarts of the server.
#[derive(Debug)]
pub(crate) struct Follower {
    job: JobId,
    attempt: Option<u16>,
    /// Where it goes on, in both streams together.
    from: u64,
    /// Where each stream goes on.
    seen: [u64; 2],
    asked: Option<(u32, oneshot::Receiver<Result<Page, ReadError>>)>,
    /// It looks again then.
    again_at: u64,
    missing: u64,
    /// The most that was said to be cut: a failed write takes back what it cut.
    cut: u64,
}

/// Somebody who was told that a job is over, and reads its log in that moment.
#[derive(Debug)]
pub(crate) struct Look {
    epoch: u32,
    fence: Fence,
    stream: usize,
    /// What its worker had been told is stored.
    acked: u64,
    answer: oneshot::Receiver<Result<Page, ReadError>>,
}

impl World {
    /// A wait is answered: what is stored of the job's last attempt is there to be read, and the rest is still with its
    /// worker.
    pub(crate) fn looks_at_the_log(&mut self, job: JobId) {
        let epoch = self.epoch();
        let oracle = self
            .oracle
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let Some(server) = &self.server else { return };
        let Some((fence, acked)) = oracle.prints.last_of(job) else {
            return;
        };
        for (s, stream) in STREAMS.into_iter().enumerate() {
            let read = Read {
                job,
                attempt: Some(fence.attempt.raw()),
                stream: Some(stream),
                from: 0,
                max: 1 << 20,
                wait: false,
                newer: None,
            };
            self.looks.push(Look {
                epoch,
                fence,
                stream: s,
                acked: acked[s],
                answer: server.output.read(read),
            });
        }
    }

    fn poll_looks(&mut self) {
        let (epoch, limit, peace) = (self.epoch(), self.options.output_bytes_max, self.peace);
        let oracle = self
            .oracle
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut done = 0;
        self.looks.retain_mut(|look| match look.answer.try_recv() {
            Ok(Ok(page)) => {
                oracle
                    .prints
                    .seen_at_the_end((look.fence, look.stream), look.acked, &page, limit);
                done += 1;
                false
            }
            // What a failed write left could not be cut off yet.
            Ok(Err(ReadError::Io(_))) if !peace => false,
            Ok(Err(error)) if look.epoch == epoch => {
                panic!("output of {:?}: {error:?}", look.fence)
            }
            Ok(Err(_)) => false,
            Err(error) => error == oneshot::error::TryRecvError::Empty && look.epoch == epoch,
        });
        drop(oracle);
        self.tally.looks += done;
    }

    pub(crate) fn prints(&mut self, at: usize, serial: u64, fence: Fence) {
        let machine = &mut self.machines[at];
        if !machine.children.contains_key(&fence) {
            return;
        }
        let Some(outlet) = &mut machine.outlet else {
            return; // nobody reads: it waits or dies of it
        };
        let pause = outlet.prints(fence, serial);
        if let Some(pause) = pause {
            self.after(pause, Happening::Prints { at, serial, fence });
        }
        self.wake_machine(at);
    }

    pub(crate) fn output_gathers(&mut self, epoch: u32, what: Happening) {
        let now = self.now;
        let Some(server) = self.server(epoch, what) else {
            return;
        };
        if server.storing || server.output_at.is_none_or(|at| at > now) {
            return;
        }
        server.output_at = None;
        if !server.keeper.gather() {
            return;
        }
        server.storing = true;
        let slow = if self.output_slow { 100 } else { 1 };
        let delay = self.rng.between(self.options.commit) * slow;
        self.after(delay, Happening::Stores { epoch });
    }

    pub(crate) fn output_stores(&mut self, epoch: u32, what: Happening) {
        let Some(server) = self.server(epoch, what) else {
            return;
        };
        server.storing = false;
        server.keeper.finish_turn();
        server.keeper.keep_house();
        self.tally.events += 1;
        self.output_looks();
        self.wake();
    }

    /// After the output thread did something to its files.
    pub(crate) fn output_looks(&mut self) {
        if self.files.is_dead() {
            let back = self.rng.waits(2 * S);
            return self.server_dies(false, back);
        }
        self.poll_followers();
        self.wake();
    }

    /// Somebody wants to see what a job prints.
    pub(crate) fn follows(&mut self) {
        if !self.peace {
            let delay = self.rng.waits(2 * S);
            self.after(delay, Happening::Follows);
        } else if !self.followers.is_empty() {
            self.after(S, Happening::Follows);
        }
        let newest = {
            let oracle = self.oracle();
            oracle.prints.of.keys().next_back().map(|fence| fence.job)
        };
        if let Some(job) = newest
            && !self.peace
            && self.followers.len() < FOLLOWERS_MAX
        {
            self.followers.push(Follower {
                job,
                attempt: None,
                from: 0,
                seen: [0; 2],
                asked: None,
                again_at: 0,
                missing: 0,
                cut: 0,
            });
        }
        self.poll_followers();
    }

    pub(crate) fn poll_followers(&mut self) {
        self.poll_looks();
        let (now, epoch) = (self.now, self.epoch());
        let mut followers = std::mem::take(&mut self.followers);
        followers.retain_mut(|follower| {
            if let Some((of, answer)) = &mut follower.asked {
                match answer.try_recv() {
                    Ok(Ok(page)) => {
                        follower.asked = None;
                        if self.takes(follower, &page) {
                            return false;
                        }
                    }
                    // The last words of a process that died in the midst of it.
                    Ok(Err(_)) if *of != epoch => follower.asked = None,
                    // What a failed write left could not be cut off yet: it is an error until then, never a wrong byte.
                    Ok(Err(ReadError::Io(_))) if !self.peace => {
                        follower.asked = None;
                        follower.again_at = now + S;
                    }
                    Ok(Err(error)) => panic!("output of {:?}: {error:?}", follower.job),
                    Err(oneshot::error::TryRecvError::Empty) if *of == epoch => return true,
                    Err(_) => {
                        follower.asked = None;
                        follower.again_at = now + S;
                    }
                }
            }
            let oracle = self.oracle();
            // Nothing more will come of an attempt that nobody finishes.
            let over = oracle
                .jobs
                .get(&follower.job)
                .is_none_or(|job| job.end.is_some());
            drop(oracle);
            if over && self.peace {
                return false;
            }
            if now >= follower.again_at
                && let Some(server) = self.server.as_ref()
                && server.writer.is_some()
            {
                let read = Read {
                    job: follower.job,
                    attempt: follower.attempt,
                    stream: None,
                    from: follower.from,
                    max: PAGE_BYTES,
                    wait: true,
                    newer: None,
                };
                follower.asked = Some((epoch, server.output.read(read)));
            }
            true
        });
        self.followers = followers;
        self.wake();
    }

    /// Says whether that was all.
    fn takes(&self, follower: &mut Follower, page: &Page) -> bool {
        let Some(fence) = self.fence_of(follower.job, page.attempt) else {
            assert!(
                page.pieces.is_empty() || self.oracle().mixed,
                "output of nobody's attempt: {}.{}",
                follower.job,
                page.attempt
            );
            return page.attempt != 0;
        };
        follower.attempt = Some(page.attempt);
        let mut oracle = self.oracle();
        if oracle.prints.may_be_anothers(fence) {
            return true; // where it goes on may lie in other bytes than those it has seen
        }
        follower.missing += oracle.prints.served(fence, page, &mut follower.seen);
        follower.from = page.next;
        follower.cut = follower.cut.max(page.cut);
        let Some(end) = page.ended else { return false };
        if page.next < page.stored && !page.pieces.is_empty() {
            return false;
        }
        check_end(fence, follower, end);
        true
    }

    fn fence_of(&self, job: JobId, attempt: u16) -> Option<Fence> {
        let oracle = self.oracle();
        let first = Fence {
            job,
            epoch: hostler_wire::Epoch::new(0),
            attempt: hostler_wire::Attempt::FIRST,
        };
        let of = oracle.prints.of.range(first..);
        of.map(|(fence, _)| *fence)
            .take_while(|fence| fence.job == job)
            .find(|fence| fence.attempt.raw() == attempt)
    }

    /// Everything that was printed is compared with what is there.
    pub(crate) fn compare_output(&mut self) {
        let mut fences: Vec<Fence> = self.oracle().prints.of.keys().copied().collect();
        // Of namesakes, after the power took back one's assignment, the later one's is read.
        fences.sort_unstable_by_key(|fence| (fence.job, fence.attempt, fence.epoch));
        fences.dedup_by(|later, kept| {
            let same = (later.job, later.attempt) == (kept.job, kept.attempt);
            *kept = if same { *later } else { *kept };
            same
        });
        let limit = self.options.output_bytes_max;
        for fence in fences {
            let mut kept = Kept::default();
            for (s, stream) in STREAMS.into_iter().enumerate() {
                let (mut from, mut seen) = (0, [0; 2]);
                loop {
                    let page = self.read_now(fence, stream, from);
                    self.oracle().prints.served(fence, &page, &mut seen);
                    let of_it = page.pieces.iter().map(|piece| {
                        let to = piece.offset + piece.data.len() as u64;
                        (piece.offset, to)
                    });
                    kept.stored[s].extend(of_it);
                    if page.attempt == fence.attempt.raw() {
                        kept.ended = page.ended;
                    }
                    if page.pieces.is_empty() {
                        kept.cut += page.cut;
                        break;
                    }
                    from = page.next;
                }
            }
            let oracle = self.oracle();
            let printed = &oracle.prints.of[&fence];
            let streamed = printed.logs.mode == LogsMode::Stream;
            // A power cut may have taken the job itself.
            if !streamed {
                oracle.prints.at_rest(fence, &kept, limit);
            }
        }
        let oracle = self.oracle();
        let printed = oracle.prints.of.values().map(|printed| printed.total());
        let (printed, compared) = (printed.sum(), oracle.prints.bytes);
        drop(oracle);
        self.tally.printed = printed;
        self.tally.compared = compared;
    }

    fn read_now(&mut self, fence: Fence, stream: Stream, from: u64) -> Page {
        let server = self
            .server
            .as_mut()
            .expect("the server is there at the end");
        let mut answer = server.output.read(Read {
            job: fence.job,
            attempt: Some(fence.attempt.raw()),
            stream: Some(stream),
            from,
            max: 1 << 20,
            wait: false,
            newer: None,
        });
        while server.keeper.gather() {
            server.keeper.finish_turn();
        }
        match answer.try_recv() {
            Ok(Ok(page)) => page,
            other => panic!("output of {fence:?} cannot be read: {other:?}"),
        }
    }
}

/// A follower has seen all there is: what it did not see is said to be missing.
fn check_end(fence: Fence, follower: &Follower, end: OutputEnd) {
    let total = end.stdout_bytes + end.stderr_bytes;
    let last = total.saturating_sub(follower.seen[0] + follower.seen[1]);
    let missing = follower.missing + last;
    assert!(
        missing <= follower.cut,
        "{fence:?}: a follower misses {missing} bytes of {total}, {} are said to be cut",
        follower.cut
    );
}
