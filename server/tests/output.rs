//! The output thread from outside: what pipes send is what readers get, whatever happens in between.
#![expect(clippy::unwrap_used, reason = "this is a test, helpers and all")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use hostler_server::clock::Clock;
use hostler_server::output::{
    self, Answer, AskEnds, Handle, Options, Page, PipeId, Read, ReadError, Ways,
};
use hostler_wire::decoder::Decoder;
use hostler_wire::frame::{
    Chunk, Frame, Logs, LogsMode, OutputAck, OutputEnd, OutputStart, Overflow, Stream,
};
use hostler_wire::limits::FRAME_BYTES_MAX;
use hostler_wire::{Attempt, Epoch, Fence, JobId};

const PATIENCE: Duration = Duration::from_secs(20);
const PIPE: PipeId = 1;

/// A running output thread and the worker's view of it.
struct Trial {
    output: Handle,
    answers: Receiver<Answer>,
    thread: JoinHandle<()>,
    acks: BTreeMap<Fence, OutputAck>,
}

impl Trial {
    fn start(options: Options) -> Self {
        Self::start_with(options, ends(Vec::new()))
    }

    fn start_with(options: Options, ends: AskEnds) -> Self {
        let (sender, answers) = channel();
        let tell = Box::new(move |batch: &mut Vec<Answer>| {
            for answer in batch.drain(..) {
                drop(sender.send(answer)); // the test may be over
            }
        });
        let (output, thread) = output::spawn(
            options,
            Clock::resume(None),
            Ways {
                answers: tell,
                ends,
                commits: Arc::default(),
            },
        )
        .unwrap();
        Self {
            output,
            answers,
            thread,
            acks: BTreeMap::new(),
        }
    }

    fn stop(self) {
        self.output.stop();
        self.thread.join().unwrap();
    }

    fn send(&self, frames: Vec<Frame>) {
        self.output.frames(PIPE, frames, 1);
    }

    /// Waits until an attempt is acknowledged as far as `enough` says.
    fn acked(&mut self, fence: Fence, enough: impl Fn(&OutputAck) -> bool) -> OutputAck {
        loop {
            if let Some(ack) = self.acks.get(&fence)
                && enough(ack)
            {
                return *ack;
            }
            match self.answers.recv_timeout(PATIENCE).unwrap() {
                Answer::Acks { bytes, .. } => {
                    let mut decoder = Decoder::new();
                    decoder.accept_up_to(FRAME_BYTES_MAX);
                    decoder.buffer().extend_from_slice(&bytes);
                    while let Some(frame) = decoder.next_frame().unwrap() {
                        let Frame::OutputAck(ack) = frame else {
                            panic!("{frame:?}");
                        };
                        self.acks.insert(ack.fence, ack);
                    }
                }
                Answer::Taken { .. } => {}
                Answer::Refuse { pipe } => panic!("pipe {pipe} was refused"),
            }
        }
    }

    fn page(&self, read: Read) -> Result<Page, ReadError> {
        self.output.read(read).blocking_recv().unwrap()
    }

    /// All of a stream, or of both, page by page.
    fn all(&self, job: u64, stream: Option<Stream>) -> Vec<u8> {
        let mut read = read(job, stream);
        let mut all = Vec::new();
        loop {
            let page = self.page(read).unwrap();
            if page.pieces.is_empty() {
                return all;
            }
            page.pieces.iter().for_each(|piece| all.extend(&piece.data));
            read.from = page.next;
        }
    }
}

/// A history that says that these jobs have ended and did not fail.
fn ends(well: Vec<u64>) -> AskEnds {
    Box::new(move |asked| {
        let wanted = |job: &JobId| well.contains(&job.raw());
        let answer: Vec<JobId> = asked.into_iter().filter(wanted).collect();
        Box::new(move || Some(Some(answer.clone())))
    })
}

fn options(dir: &Path) -> Options {
    Options {
        files: Arc::new(output::SystemFiles),
        dir: PathBuf::from(dir),
        output_bytes_max: 16 << 20,
        segment_bytes: 1 << 20,
        keep: Duration::from_secs(3_600),
        keep_failed: Duration::from_secs(3_600),
        total_bytes_max: 1 << 40,
        linger: Duration::from_secs(100),
    }
}

fn read(job: u64, stream: Option<Stream>) -> Read {
    Read {
        job: JobId::new(job).unwrap(),
        attempt: None,
        stream,
        from: 0,
        max: 70_000,
        wait: false,
        newer: None,
    }
}

fn fence(job: u64, attempt: u16) -> Fence {
    Fence {
        job: JobId::new(job).unwrap(),
        epoch: Epoch::new(1),
        attempt: Attempt::new(attempt).unwrap(),
    }
}

fn chunk(fence: Fence, stream: Stream, offset: u64, data: &[u8]) -> Frame {
    Frame::Chunk(Chunk {
        fence,
        stream,
        offset,
        at_ms: 1,
        data: Bytes::copy_from_slice(data),
    })
}

fn end(fence: Fence, stdout_bytes: u64, stderr_bytes: u64) -> Frame {
    Frame::OutputEnd(OutputEnd {
        fence,
        stdout_bytes,
        stderr_bytes,
        dropped_bytes: 0,
    })
}

fn start(fence: Fence, mode: LogsMode, limit_bytes: u64, overflow: Overflow) -> Frame {
    Frame::OutputStart(OutputStart {
        fence,
        logs: Logs {
            mode,
            limit_bytes,
            overflow,
        },
    })
}

/// Bytes that differ from place to place and from seed to seed.
fn bytes(seed: u64, count: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..count).map(|_| next()).collect()
}

#[test]
fn interleaved_streams_of_several_jobs_come_back_byte_for_byte() {
    let dir = tempfile::tempdir().unwrap();
    let mut t = Trial::start(options(dir.path()));
    let size = 600_000;
    let texts: Vec<[Vec<u8>; 2]> = (1..=3)
        .map(|job| [bytes(job, size), bytes(job + 10, size)])
        .collect();
    for at in (0..size).step_by(10_000) {
        let mut frames = Vec::new();
        for (job, text) in (1..).zip(&texts) {
            for (stream, text) in [Stream::Stdout, Stream::Stderr].into_iter().zip(text) {
                frames.push(chunk(
                    fence(job, 1),
                    stream,
                    at as u64,
                    &text[at..at + 10_000],
                ));
            }
        }
        t.send(frames);
    }
    for (job, text) in (1..).zip(&texts) {
        t.send(vec![end(fence(job, 1), size as u64, size as u64)]);
        t.acked(fence(job, 1), |ack| ack.ended);
        assert_eq!(t.all(job, Some(Stream::Stdout)), text[0]);
        assert_eq!(t.all(job, Some(Stream::Stderr)), text[1]);
        assert_eq!(t.all(job, None).len(), 2 * size);
    }
    let page = t.page(read(1, None)).unwrap();
    assert_eq!((page.cut, page.stored), (0, 2 * size as u64));
    assert!(page.ended.is_some());
    t.stop();
}

#[test]
fn a_piece_sent_again_with_another_cut_is_stored_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut t = Trial::start(options(dir.path()));
    let f = fence(1, 1);
    t.send(vec![chunk(f, Stream::Stdout, 0, b"hello ")]);
    t.send(vec![chunk(f, Stream::Stdout, 0, b"hello world")]);
    t.send(vec![chunk(f, Stream::Stdout, 3, b"lo")]);
    t.send(vec![end(f, 11, 0), end(f, 11, 0)]);
    let ack = t.acked(f, |ack| ack.ended);
    assert_eq!(ack.stdout_through, 11);
    assert_eq!(t.all(1, None), b"hello world");
    t.stop();
}

#[test]
fn what_was_acknowledged_is_there_after_a_restart_and_the_rest_is_sent_again() {
    let dir = tempfile::tempdir().unwrap();
    let text = bytes(5, 3_000_000); // several segments
    let f = fence(7, 2);
    let mut acked = 0;
    for round in 0..6 {
        let mut t = Trial::start(options(dir.path()));
        let stop = (round + 1) * 500_000;
        let mut offset = acked;
        while offset < stop {
            t.send(vec![chunk(
                f,
                Stream::Stdout,
                offset as u64,
                &text[offset..offset + 50_000],
            )]);
            offset += 50_000;
        }
        let some = acked as u64;
        let ack = t.acked(f, |ack| ack.stdout_through > some);
        // The worker hears of part of it only; then the server is gone, without a farewell.
        acked = usize::try_from(ack.stdout_through).unwrap();
        acked -= acked % 50_000;
        t.stop();
    }
    let mut t = Trial::start(options(dir.path()));
    while acked < text.len() {
        t.send(vec![chunk(
            f,
            Stream::Stdout,
            acked as u64,
            &text[acked..acked + 50_000],
        )]);
        acked += 50_000;
    }
    t.send(vec![end(f, text.len() as u64, 0)]);
    t.acked(f, |ack| ack.ended);
    assert_eq!(t.all(7, Some(Stream::Stdout)), text);
    assert_eq!(t.page(read(7, None)).unwrap().attempt, 2);
    t.stop();
}

#[test]
fn too_much_output_keeps_head_and_tail_and_says_what_is_cut() {
    let dir = tempfile::tempdir().unwrap();
    let mut t = Trial::start(Options {
        output_bytes_max: 1 << 20,
        ..options(dir.path())
    });
    let text = bytes(9, 10 << 20);
    let f = fence(1, 1);
    for (i, piece) in text.chunks(60_000).enumerate() {
        t.send(vec![chunk(f, Stream::Stdout, i as u64 * 60_000, piece)]);
    }
    t.send(vec![end(f, text.len() as u64, 0)]);
    t.acked(f, |ack| ack.ended);
    let check = |t: &Trial| {
        let kept = t.all(1, Some(Stream::Stdout));
        let page = t.page(read(1, Some(Stream::Stdout))).unwrap();
        assert_eq!(page.cut, (text.len() - kept.len()) as u64);
        assert_eq!(page.stored, text.len() as u64);
        assert!(
            kept.len() <= 1 << 20 && kept.len() > (1 << 20) - (130 << 10),
            "{}",
            kept.len()
        );
        assert!(kept.starts_with(&text[..64 << 10]));
        let same = kept
            .iter()
            .rev()
            .zip(text.iter().rev())
            .take_while(|(a, b)| a == b)
            .count();
        assert!(
            same >= 850 << 10,
            "{same} of {} bytes at the end",
            kept.len()
        );
    };
    check(&t);
    // The dead middle's segments are gone: ten segments were written.
    let segments = std::fs::read_dir(dir.path()).unwrap();
    let segments = segments.filter(|f| f.as_ref().unwrap().path().extension().unwrap() == "seg");
    assert!(segments.count() <= 5);
    t.stop();
    let t = Trial::start(options_with_limit(dir.path()));
    check(&t);
    t.stop();
}

#[test]
fn each_piece_says_where_it_stands_also_before_a_gap() {
    let dir = tempfile::tempdir().unwrap();
    let mut t = Trial::start(Options {
        output_bytes_max: 16_000,
        ..options(dir.path())
    });
    let f = fence(1, 1);
    for n in 0..200 {
        let stream = [Stream::Stdout, Stream::Stderr][n % 2];
        t.send(vec![chunk(
            f,
            stream,
            n as u64 / 2 * 500,
            &bytes(n as u64, 500),
        )]);
    }
    t.send(vec![end(f, 50_000, 50_000)]);
    t.acked(f, |ack| ack.ended);
    for stream in [None, Some(Stream::Stdout), Some(Stream::Stderr)] {
        let all = t.page(read(1, stream)).unwrap().pieces;
        assert!(all.len() > 10);
        for pair in all.windows(2) {
            let from = pair[0].at + pair[0].data.len() as u64;
            let page = t
                .page(Read {
                    from,
                    ..read(1, stream)
                })
                .unwrap();
            let next = &page.pieces[0];
            assert_eq!((next.stream, next.offset), (pair[1].stream, pair[1].offset));
        }
    }
    t.stop();
}

#[test]
fn a_limit_of_its_own_holds_for_that_attempt_only_and_through_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let text = bytes(9, 5 << 20);
    let (own, least, other) = (fence(1, 1), fence(2, 1), fence(3, 1));
    let mut t = Trial::start(options(dir.path()));
    t.send(vec![
        start(own, LogsMode::Keep, 256 << 10, Overflow::Drop),
        start(least, LogsMode::Keep, 1, Overflow::Drop),
        start(other, LogsMode::Keep, u64::MAX, Overflow::Drop),
    ]);
    let pieces: Vec<_> = (0..).step_by(60_000).zip(text.chunks(60_000)).collect();
    let (first, second) = pieces.split_at(50);
    let send = |t: &Trial, pieces: &[(u64, &[u8])]| {
        for (offset, piece) in pieces {
            for fence in [own, least, other] {
                t.send(vec![chunk(fence, Stream::Stdout, *offset, piece)]);
            }
        }
    };
    send(&t, first);
    t.acked(other, |ack| ack.stdout_through == 3_000_000);
    // The server does not hear of it again: what it has on disk must do.
    t.stop();
    t = Trial::start(options(dir.path()));
    send(&t, second);
    let check = |t: &Trial| {
        for (job, limit) in [(1, 256 << 10), (2, 4_096)] {
            let kept = t.all(job, Some(Stream::Stdout));
            let page = t.page(read(job, Some(Stream::Stdout))).unwrap();
            assert_eq!(page.cut, (text.len() - kept.len()) as u64);
            assert!(
                kept.len() <= limit && kept.len() > limit - limit / 8,
                "{} of {limit}",
                kept.len()
            );
            assert!(kept.starts_with(&text[..limit / 16]));
            assert!(kept.ends_with(&text[text.len() - limit / 4 * 3..]));
        }
        assert_eq!(t.all(3, Some(Stream::Stdout)), text);
    };
    for fence in [own, least, other] {
        t.send(vec![end(fence, text.len() as u64, 0)]);
        t.acked(fence, |ack| ack.ended);
    }
    check(&t);
    t.stop();
    t = Trial::start(options(dir.path()));
    check(&t);
    t.stop();
    // Also if the indexes have to be made again.
    for file in std::fs::read_dir(dir.path()).unwrap() {
        let path = file.unwrap().path();
        if path.extension().unwrap() == "idx" {
            std::fs::remove_file(path).unwrap();
        }
    }
    let t = Trial::start(options(dir.path()));
    check(&t);
    t.stop();
}

#[test]
fn where_the_job_waits_nothing_is_cut() {
    let dir = tempfile::tempdir().unwrap();
    let text = bytes(4, 5 << 20);
    let f = fence(1, 1);
    let mut t = Trial::start(options_with_limit(dir.path()));
    t.send(vec![start(f, LogsMode::Keep, 5_000, Overflow::Block)]);
    for (offset, piece) in (0..).step_by(60_000).zip(text.chunks(60_000)) {
        t.send(vec![chunk(f, Stream::Stdout, offset, piece)]);
    }
    t.send(vec![end(f, text.len() as u64, 0)]);
    t.acked(f, |ack| ack.ended);
    for _ in 0..2 {
        assert_eq!(t.all(1, Some(Stream::Stdout)), text);
        assert_eq!(t.page(read(1, None)).unwrap().cut, 0);
        t.stop();
        t = Trial::start(options_with_limit(dir.path()));
    }
    t.stop();
}

#[test]
fn streamed_output_is_there_while_the_attempt_runs_and_gone_soon_after() {
    let dir = tempfile::tempdir().unwrap();
    let text = bytes(4, 3 << 20); // several segments
    let f = fence(1, 1);
    let mut t = Trial::start(options(dir.path()));
    t.send(vec![start(f, LogsMode::Stream, 16 << 20, Overflow::Drop)]);
    for (offset, piece) in (0..).step_by(60_000).zip(text.chunks(60_000)) {
        t.send(vec![chunk(f, Stream::Stdout, offset, piece)]);
    }
    t.acked(f, |ack| ack.stdout_through == text.len() as u64);
    for _ in 0..2 {
        assert_eq!(t.all(1, None), text, "it runs, also over a restart");
        t.stop();
        t = Trial::start(options(dir.path()));
    }
    t.send(vec![end(f, text.len() as u64, 0)]);
    t.acked(f, |ack| ack.ended);
    assert_eq!(t.all(1, None), text, "it has just ended");
    t.stop();

    // Nobody follows over a restart.
    let gone = |t: &Trial| {
        let page = t.page(read(1, None)).unwrap();
        assert_eq!((page.attempt, page.pieces.len()), (1, 0));
        assert_eq!(page.cut, text.len() as u64);
        assert!(page.ended.is_some());
    };
    let t = Trial::start(options(dir.path()));
    gone(&t);
    t.stop();

    let dir = tempfile::tempdir().unwrap();
    let mut t = Trial::start(Options {
        linger: Duration::from_millis(1),
        ..options(dir.path())
    });
    t.send(vec![
        start(f, LogsMode::Stream, 16 << 20, Overflow::Drop),
        chunk(f, Stream::Stdout, 0, b"soon gone"),
        end(f, 9, 0),
    ]);
    t.acked(f, |ack| ack.ended);
    let clock = Clock::resume(None);
    let begun = clock.now();
    while !t.all(1, None).is_empty() {
        assert!(
            u128::from(clock.now().since(begun).millis()) < PATIENCE.as_millis(),
            "it stays"
        );
        std::thread::yield_now();
    }
    let page = t.page(read(1, None)).unwrap();
    assert_eq!((page.cut, page.stored), (9, 9));
    t.stop();
}

fn options_with_limit(dir: &Path) -> Options {
    Options {
        output_bytes_max: 1 << 20,
        ..options(dir)
    }
}

#[test]
fn what_the_worker_dropped_is_a_counted_gap() {
    let dir = tempfile::tempdir().unwrap();
    let mut t = Trial::start(options(dir.path()));
    let f = fence(1, 1);
    t.send(vec![
        chunk(f, Stream::Stdout, 0, b"head"),
        chunk(f, Stream::Stdout, 1_000, b"tail"),
        end(f, 1_010, 0),
    ]);
    t.acked(f, |ack| ack.ended);
    let page = t.page(read(1, Some(Stream::Stdout))).unwrap();
    let pieces: Vec<_> = page
        .pieces
        .iter()
        .map(|p| (p.offset, &p.data[..]))
        .collect();
    assert_eq!(pieces, [(0, &b"head"[..]), (1_000, b"tail")]);
    assert_eq!(page.cut, 1_002);
    t.stop();
}

#[test]
fn a_follower_is_woken_by_a_piece_by_the_end_and_by_a_new_attempt() {
    let dir = tempfile::tempdir().unwrap();
    let t = Trial::start(options(dir.path()));
    let follow = |from, attempt| Read {
        from,
        attempt,
        wait: true,
        newer: attempt,
        ..read(1, None)
    };
    let first = t.output.read(follow(0, None));
    t.send(vec![chunk(fence(1, 1), Stream::Stdout, 0, b"one")]);
    let page = first.blocking_recv().unwrap().unwrap();
    assert_eq!(
        (page.attempt, &page.pieces[0].data[..], page.next),
        (1, &b"one"[..], 3)
    );

    drop(t.output.read(follow(3, None))); // one that gave up
    let second = t.output.read(follow(3, Some(1)));
    t.send(vec![chunk(fence(1, 2), Stream::Stdout, 0, b"two")]);
    let page = second.blocking_recv().unwrap().unwrap();
    assert!(page.pieces.is_empty() && page.ended.is_none());

    let third = t.output.read(follow(3, Some(2)));
    t.send(vec![end(fence(1, 2), 3, 0)]);
    let page = third.blocking_recv().unwrap().unwrap();
    assert!(page.pieces.is_empty() && page.ended.is_some());
    t.stop();
}

#[test]
fn a_reader_of_one_attempt_waits_for_that_one_whatever_newer_ones_do() {
    let dir = tempfile::tempdir().unwrap();
    let mut t = Trial::start(options(dir.path()));
    t.send(vec![
        chunk(fence(1, 1), Stream::Stdout, 0, b"old"),
        chunk(fence(1, 2), Stream::Stdout, 0, b"new"),
    ]);
    t.acked(fence(1, 2), |ack| ack.stdout_through == 3);
    let of_the_first = Read {
        attempt: Some(1),
        from: 3,
        wait: true,
        ..read(1, None)
    };
    let mut waits = t.output.read(of_the_first);
    t.send(vec![chunk(fence(1, 2), Stream::Stdout, 3, b"er")]);
    t.acked(fence(1, 2), |ack| ack.stdout_through == 5);
    assert!(waits.try_recv().is_err(), "answered with nothing to say");
    t.send(vec![chunk(fence(1, 1), Stream::Stdout, 3, b"er")]);
    let page = waits.blocking_recv().unwrap().unwrap();
    assert_eq!(&page.pieces[0].data[..], b"er");
    t.stop();
}

#[test]
fn a_purged_job_has_no_output_whatever_comes_later() {
    let dir = tempfile::tempdir().unwrap();
    let mut t = Trial::start(options(dir.path()));
    let (f, other) = (fence(1, 1), fence(2, 1));
    for at in 0..40 {
        t.send(vec![chunk(
            f,
            Stream::Stdout,
            at * 60_000,
            &bytes(at, 60_000),
        )]);
    }
    t.send(vec![
        end(f, 2_400_000, 0),
        chunk(other, Stream::Stdout, 0, b"stays"),
    ]);
    t.acked(f, |ack| ack.ended);
    let job = JobId::new(1).unwrap();
    t.output.purge(job).blocking_recv().unwrap();
    for _ in 0..2 {
        assert!(t.all(1, None).is_empty());
        assert_eq!(t.all(2, None), b"stays");
        assert!(t.output.attempts(job).blocking_recv().unwrap().is_empty());
        // A late piece is acknowledged, so that its worker forgets it, and not stored.
        t.send(vec![
            chunk(fence(1, 2), Stream::Stdout, 0, b"late"),
            end(fence(1, 2), 4, 0),
        ]);
        t.acked(fence(1, 2), |ack| ack.ended && ack.stdout_through == 4);
        assert!(t.all(1, None).is_empty());
        t.stop();
        t = Trial::start(options(dir.path()));
    }
    t.stop();
}

#[test]
fn output_of_jobs_that_did_not_fail_goes_after_its_time_and_that_of_others_stays() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        keep: Duration::ZERO,
        ..options(dir.path())
    };
    let well = (1..=60).filter(|job| job % 3 > 0).collect();
    let mut t = Trial::start_with(options, ends(well));
    for job in 1..=60 {
        let f = fence(job, 1);
        t.send(vec![
            chunk(f, Stream::Stdout, 0, &bytes(job, 60_000)),
            end(f, 60_000, 0),
        ]);
        t.acked(f, |ack| ack.ended);
    }
    // The last ones are in the segment being written, which has its time still before it.
    let gone = || !(1..=40).any(|job| job % 3 > 0 && !t.all(job, None).is_empty());
    for look in 0.. {
        if gone() {
            break;
        }
        assert!(look < 1_000, "it has not gone");
        std::thread::park_timeout(PATIENCE / 1_000);
    }
    for job in (3..=60).step_by(3) {
        assert_eq!(t.all(job, None), bytes(job, 60_000));
    }
    t.stop();
}

#[test]
fn a_hundred_thousand_attempts_are_each_found_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let count = 100_000;
    let mut t = Trial::start(options(dir.path()));
    for jobs in (1..=count).collect::<Vec<u64>>().chunks(1_000) {
        let frames = jobs.iter().flat_map(|job| {
            let line = format!("line of {job}\n");
            let bytes = line.len() as u64;
            [
                chunk(fence(*job, 1), Stream::Stdout, 0, line.as_bytes()),
                end(fence(*job, 1), bytes, 0),
            ]
        });
        t.send(frames.collect());
    }
    t.acked(fence(count, 1), |ack| ack.ended);
    for _ in 0..2 {
        for job in (1..=count).step_by(997) {
            assert_eq!(t.all(job, None), format!("line of {job}\n").into_bytes());
        }
        assert!(t.all(count + 1, None).is_empty());
        t.stop();
        t = Trial::start(options(dir.path()));
    }
    t.stop();
}
