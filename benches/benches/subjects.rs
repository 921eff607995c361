//! What the micro benches measure: the pieces of work that a job costs most of on its way, each as a function that does it
//! so many times.

use std::hint::black_box;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use hostler_engine::Time;
use hostler_engine::fact::{Assigned, Ended, Fact, Started};
use hostler_engine::lanes::Lanes;
use hostler_engine::spec::ClassId;
use hostler_server::Config;
use hostler_wire::decoder::Decoder;
use hostler_wire::frame::{Assign, Assignment, Frame, Report, Reports};
use hostler_wire::{Attempt, Epoch, Fence, JobId, JobState, Outcome, Priority, Reason, WorkerId};

use crate::bare::Bare;

/// Its name, what one piece is, and the work.
pub(crate) struct Subject {
    pub(crate) name: &'static str,
    pub(crate) work: fn(u64),
}

pub(crate) const SUBJECTS: &[Subject] = &[
    Subject {
        name: "lanes: push and pop an entry",
        work: lanes,
    },
    Subject {
        name: "engine: a job's life, 1 worker, ends 100 at once",
        work: |jobs| life(jobs, 1, 100),
    },
    Subject {
        name: "engine: a job's life, 1,000 workers, ends one by one",
        work: |jobs| life(jobs, 1_000, 1),
    },
    Subject {
        name: "codec: an assignment of 100 out and in",
        work: assign,
    },
    Subject {
        name: "codec: a report of 100 out and in",
        work: report,
    },
    Subject {
        name: "fold: the facts of a job of 1,000",
        work: fold,
    },
    Subject {
        name: "intake: a small job of 100 in an array",
        work: small_jobs,
    },
    Subject {
        name: "intake: a rich job alone",
        work: rich_jobs,
    },
];

const BATCH: u64 = 100;

fn lanes(entries: u64) {
    let lanes = Lanes::new();
    for entry in 0..entries {
        let priority = Priority::new(i8::try_from(entry % 3).unwrap_or(0));
        lanes.push(priority, black_box(entry));
        black_box(lanes.pop());
    }
}

fn life(jobs: u64, workers: u32, at_once: usize) {
    // With more workers than one, work given ahead would be called back, which nobody here answers.
    let prefetch_max = if workers == 1 { 256 } else { 0 };
    let mut bare = Bare::new(workers, prefetch_max);
    bare.submit(jobs + 1_000);
    bare.turn();
    bare.run(jobs, at_once);
}

fn fence(job: u64) -> Fence {
    Fence {
        job: JobId::new(job + 1).expect("ids begin at one"),
        epoch: Epoch::new(1),
        attempt: Attempt::FIRST,
    }
}

/// Encodes a frame and decodes it, for every hundred of `count`.
fn there_and_back(count: u64, frame: &Frame) {
    let mut decoder = Decoder::new();
    decoder.accept_up_to(hostler_wire::limits::FRAME_BYTES_MAX);
    let mut bytes = BytesMut::new();
    for _ in 0..count.div_ceil(BATCH) {
        bytes.clear();
        black_box(frame).encode(&mut bytes);
        decoder.buffer().extend_from_slice(&bytes);
        black_box(decoder.next_frame().expect("it was encoded just now"));
    }
}

fn assign(count: u64) {
    let body = Bytes::from(vec![b'x'; 120]);
    let jobs = (0..BATCH).map(|job| Assignment {
        fence: fence(job),
        body: body.clone(),
    });
    let frame = Frame::Assign(Assign {
        seq: 1,
        jobs: jobs.collect(),
    });
    there_and_back(count, &frame);
}

fn report(count: u64) {
    let reports = (0..BATCH).map(|job| Report {
        fence: fence(job),
        outcome: Outcome::Succeeded,
        cancelled: false,
        started: true,
        run_us: 1,
        detail: None,
    });
    let frame = Frame::Reports(Reports {
        first: 1,
        reports: reports.collect(),
    });
    there_and_back(count, &frame);
}

fn fold(jobs: u64) {
    const JOBS: u64 = 1_000;
    let worker = WorkerId::new(1);
    let at = Time::from_micros(1);
    let mut facts = Vec::new();
    for first in (0..JOBS).step_by(100) {
        let fences = || (first..first + 100).map(fence);
        facts.push(Fact::Assigned(Assigned {
            worker,
            at,
            attempts: fences().map(|fence| (fence.job, fence.attempt)).collect(),
        }));
        facts.push(Fact::Started(Started {
            worker,
            at,
            fences: fences().collect(),
        }));
        facts.extend(fences().map(|fence| {
            Fact::Ended(Ended {
                job: fence.job,
                class: ClassId::new(1),
                state: JobState::Succeeded,
                reason: Reason::None,
                fence: Some(fence),
                worker: Some(worker),
                started: Some(at),
                at,
                detail: None,
            })
        }));
    }
    for _ in 0..jobs.div_ceil(JOBS) {
        let rows = hostler_server::store::folded_rows(Epoch::new(1), black_box(&facts));
        assert!(rows >= 1_000);
    }
}

fn read(times: u64, body: String) {
    let config = Config::new("unused".into());
    let bearer = Arc::new(hostler_server::auth::Bearer::anyone());
    let body = Bytes::from(body);
    for _ in 0..times {
        let jobs = hostler_server::http::read_jobs(&config, &bearer, black_box(&body));
        assert!(jobs.is_some());
    }
}

fn small_jobs(jobs: u64) {
    let job = format!(
        "{{\"handler\":\"noop\",\"payload\":\"{}\"}}",
        "x".repeat(98)
    );
    let all: Vec<&str> = (0..BATCH).map(|_| job.as_str()).collect();
    read(jobs.div_ceil(BATCH), format!("[{}]", all.join(",")));
}

fn rich_jobs(jobs: u64) {
    let job = r#"{"command":["ffmpeg","-i","in.mov","out.mp4"],"queue":"video","name":"encode",
        "priority":"high","env":{"A":"b","C":"d"},"cwd":"/srv","timeout_ms":1800000,
        "labels":{"team":"a","day":"friday"},"retry":{"max_attempts":4,"backoff_ms":5000,"factor":2.0}}"#;
    read(jobs, job.to_owned());
}
