//! Segments and indexes that were written, then changed, cut or lengthened anywhere: `verify`, a start and every read hold
//! up, and what is read was printed (damage may lose output, never make it up).

#![no_main]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use hostler_server::clock::Clock;
use hostler_server::output::{self, AskEnds, Options, Read, Ways};
use hostler_server::{Config, Report};
use hostler_wire::frame::{Chunk, Frame, OutputEnd, Stream};
use hostler_wire::{Attempt, Epoch, Fence, JobId};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    printed: Vec<Print>,
    small_segments: bool,
    damage: Vec<Damage>,
}

#[derive(Arbitrary, Debug)]
struct Print {
    job: u8,
    stderr: bool,
    bytes: u16,
    end: bool,
}

#[derive(Arbitrary, Debug)]
struct Damage {
    file: u8,
    at: u32,
    how: How,
}

#[derive(Arbitrary, Debug)]
enum How {
    Flip(u8),
    Cut,
    Zero(u8),
    Append(Vec<u8>),
    /// Bytes from elsewhere in the file, as they were.
    Copy(u32, u8),
    Remove,
}

const JOBS: u64 = 4;

fuzz_target!(|input: Input| {
    let dir = tempfile::tempdir_in("/dev/shm").expect("memory for files");
    let mut options = Options::new(&Config::new(dir.path().to_owned()));
    if input.small_segments {
        options.segment_bytes = 4_096;
    }
    let mut offsets = [[0u64; 2]; JOBS as usize];
    live(&options, |output| {
        for print in input.printed.iter().take(40) {
            let job = u64::from(print.job) % JOBS;
            let side = usize::from(print.stderr);
            let offset = &mut offsets[job as usize][side];
            let data: Vec<u8> = (0..u64::from(print.bytes % 3_000) + 1)
                .map(|i| byte_of(job, side, *offset + i))
                .collect();
            let chunk = Chunk {
                fence: fence(job),
                stream: [Stream::Stdout, Stream::Stderr][side],
                offset: *offset,
                at_ms: 5,
                data: Bytes::from(data),
            };
            *offset += chunk.data.len() as u64;
            let mut frames = vec![Frame::Chunk(chunk)];
            if print.end {
                frames.push(Frame::OutputEnd(OutputEnd {
                    fence: fence(job),
                    stdout_bytes: offsets[job as usize][0],
                    stderr_bytes: offsets[job as usize][1],
                    dropped_bytes: 0,
                }));
            }
            output.frames(1, frames, 1);
        }
    });
    let mut report = Report::default();
    output::verify(&options.dir, false, &mut report);
    assert!(report.is_sound(), "{report:?}");

    for damage in &input.damage {
        harm(&options.dir, damage);
    }
    output::verify(&options.dir, false, &mut Report::default());
    live(&options, |output| {
        for job in 0..JOBS {
            for (side, stream) in [Stream::Stdout, Stream::Stderr].into_iter().enumerate() {
                let mut from = 0;
                for _ in 0..1_000 {
                    let read = Read {
                        job: id(job),
                        attempt: None,
                        stream: Some(stream),
                        from,
                        max: 1_000,
                        wait: false,
                        newer: None,
                    };
                    let Ok(Ok(page)) = output.read(read).blocking_recv() else {
                        break;
                    };
                    if page.pieces.is_empty() {
                        break;
                    }
                    for piece in &page.pieces {
                        for (i, byte) in (0..).zip(&piece.data) {
                            assert_eq!(*byte, byte_of(job, side, piece.offset + i), "made up");
                        }
                    }
                    assert!(page.next > from, "it does not get on");
                    from = page.next;
                }
            }
        }
    });
});

/// A life of the output thread.
fn live(options: &Options, during: impl FnOnce(&output::Handle)) {
    let ends: AskEnds = Box::new(|_jobs| Box::new(|| Some(None)));
    let answers = Box::new(|batch: &mut Vec<_>| batch.clear());
    let clock = Clock::resume(None);
    // Damage may be such that there is no start; then it says so.
    let ways = Ways {
        answers,
        ends,
        commits: Arc::default(),
    };
    let Ok((handle, thread)) = output::spawn(options.clone(), clock, ways) else {
        return;
    };
    during(&handle);
    handle.stop();
    thread.join().expect("the output thread does not panic");
}

fn harm(dir: &Path, damage: &Damage) {
    let mut files: Vec<PathBuf> = fs::read_dir(dir)
        .expect("it was made")
        .map(|entry| entry.expect("it can be read").path())
        .collect();
    files.sort();
    if files.is_empty() {
        return;
    }
    let path = &files[usize::from(damage.file) % files.len()];
    let mut bytes = fs::read(path).expect("it is there");
    let at = damage.at as usize % (bytes.len() + 1);
    match &damage.how {
        How::Flip(change) => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= change;
            }
        }
        How::Cut => bytes.truncate(at),
        How::Zero(count) => bytes.iter_mut().skip(at).take((*count).into()).for_each(|byte| *byte = 0),
        How::Append(more) => bytes.extend(more),
        How::Copy(from, count) => {
            let from = *from as usize % (bytes.len() + 1);
            let copied: Vec<u8> = bytes.iter().skip(from).take((*count).into()).copied().collect();
            for (to, byte) in bytes.iter_mut().skip(at).zip(copied) {
                *to = byte;
            }
        }
        How::Remove => return fs::remove_file(path).expect("it is there"),
    }
    fs::write(path, bytes).expect("memory for files");
}

/// What a job prints tells where it stands.
fn byte_of(job: u64, side: usize, offset: u64) -> u8 {
    let mixed = (offset * 31 + job * 7 + side as u64 * 3) ^ (offset >> 8);
    mixed.to_le_bytes()[0]
}

fn id(job: u64) -> JobId {
    JobId::new(job + 1).expect("above 0")
}

fn fence(job: u64) -> Fence {
    Fence {
        job: id(job),
        epoch: Epoch::new(1),
        attempt: Attempt::FIRST,
    }
}
