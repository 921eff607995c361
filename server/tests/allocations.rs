//! What a no-op job costs the dispatch thread and the codec in memory asked for, once everything has found its size: a
//! batch costs a few buffers, a job nothing.
#![expect(
    unsafe_code,
    reason = "an allocator that counts, and leaves the work to the system's"
)]
#![expect(clippy::unwrap_used, reason = "this is a test, helpers and all")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use bytes::Bytes;
use hostler_engine::spec::{Class, ClassId, ClassSpec, Kind, Retry, Run};
use hostler_engine::{Config, Engine, Span};
use hostler_server::clock::Clock;
use hostler_server::dispatch::{Dispatch, Handle, Message, Parts};
use hostler_server::mailbox::{Receiver, Wake, mailbox};
use hostler_server::net::{self, Arrival, Post};
use hostler_server::store::reader;
use hostler_server::store::writer::{self, JobLanes, Write};
use hostler_wire::decoder::Decoder;
use hostler_wire::frame::{Frame, Login, Report, Reports};
use hostler_wire::limits::FRAME_BYTES_MAX;
use hostler_wire::{Epoch, Fence, JobId, Outcome, Priority, SessionId};

const SESSION: SessionId = SessionId::new(1);
const BATCH: u32 = 1_000;
/// Rounds until everything has found its size, and rounds that are counted.
const ROUNDS: [u64; 2] = [20, 50];
/// For a batch of jobs: mailboxes' blocks, the lists and frames that leave with their contents, pages of bodies.
const DISPATCH_MAX: f64 = 64.0;
/// The list of a frame's items, and the frame's buffer.
const CODEC_MAX: f64 = 12.0;

struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // A thread that is ending has no count any more.
    let (Ok(()) | Err(_)) = COUNT.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: all of it is done by the system's allocator; counting touches no memory of the caller's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count();
        // SAFETY: as the caller promises.
        unsafe { System.realloc(at, layout, bytes) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn counted<T>(total: &mut u64, work: impl FnOnce() -> T) -> T {
    let before = COUNT.get();
    let done = work();
    *total += COUNT.get() - before;
    done
}

/// Dispatch without its thread, and the ends it sends to.
struct Bench {
    dispatch: Dispatch,
    tell: Handle,
    lanes: JobLanes,
    facts: Receiver<Write>,
    posts: Receiver<Post>,
    class: Arc<Class>,
    committed: u64,
    next_job: u64,
    reported: u64,
    /// Asked for in dispatch's turns, and by the codec.
    turns: u64,
    codec: u64,
}

impl Bench {
    fn new() -> Self {
        let wake = Wake::parking();
        let (messages, message_inbox) = mailbox(&wake);
        let (asks, ask_inbox) = mailbox(&wake);
        let (writes, facts) = mailbox(&Wake::parking());
        let (queries, _) = mailbox(&Wake::parking());
        let (to_net, posts) = mailbox(&Wake::parking());
        let lanes = JobLanes::default();
        let engine = Engine::new(Config {
            epoch: Epoch::new(1),
            cluster: [0; 16],
            worker_grace: Span::from_millis(30_000),
            beat: Span::from_millis(2_000),
            kill_grace: Span::from_millis(10_000),
            prefetch_max: 0,
            fetch_ahead: 1,
        });
        let parts = Parts {
            wake,
            messages: message_inbox,
            asks: ask_inbox,
            lanes: Arc::clone(&lanes),
            resident_bytes: Arc::default(),
            idle: Arc::default(),
            writer: writer::Handle::new(writes, usize::MAX),
            reader: reader::Handle::new(queries),
            net: net::Handle::new(to_net),
            clock: Clock::resume(None),
            epochs: vec![(Epoch::new(1), [1; 16])],
            probe_timeout: Span::from_millis(250),
        };
        let spec = ClassSpec {
            queue: "default".into(),
            kind: Kind::Handler,
            retry: Retry::default(),
            max_losses: 3,
            timeout: None,
            grace: None,
            stall: None,
            stop_on_partition: false,
        };
        let id = ClassId::new(1);
        let mut bench = Self {
            dispatch: Dispatch::new(parts, engine),
            tell: Handle::new(messages, asks),
            lanes,
            facts,
            posts,
            class: Arc::new(Class { id, spec }),
            committed: 0,
            next_job: 1,
            reported: 0,
            turns: 0,
            codec: 0,
        };
        bench.tell.tell(Message::Ready);
        bench.tell.tell(Message::Worker(Arrival::Joined {
            session: SESSION,
            login: Box::new(login()),
        }));
        bench.turn();
        bench.commit();
        bench
    }

    fn turn(&mut self) {
        let dispatch = &mut self.dispatch;
        counted(&mut self.turns, || dispatch.turn());
    }

    /// What dispatch has told the writer is durable; returns how many facts that were.
    fn commit(&mut self) -> usize {
        let mut writes = Vec::new();
        self.facts.drain(&mut writes, usize::MAX);
        let mut told = 0;
        for write in writes {
            let Write::Facts { facts, through } = write else {
                panic!("dispatch tells facts only")
            };
            told += facts.len();
            self.committed = through;
        }
        let through = self.committed;
        self.tell.tell(Message::Committed { through });
        self.turn();
        told
    }

    /// The attempts in the frames that dispatch has sent.
    fn assigned(&mut self) -> Vec<Fence> {
        let mut posts = Vec::new();
        self.posts.drain(&mut posts, usize::MAX);
        let mut fences = Vec::new();
        for post in posts {
            let Post::Control { bytes, .. } = post else {
                panic!("a frame, not {post:?}")
            };
            let mut decoder = Decoder::new();
            decoder.accept_up_to(FRAME_BYTES_MAX);
            decoder.buffer().extend_from_slice(&bytes);
            while let Some(frame) = counted(&mut self.codec, || decoder.next_frame()).unwrap() {
                if let Frame::Assign(assign) = frame {
                    fences.extend(assign.jobs.iter().map(|job| job.fence));
                }
            }
        }
        fences
    }

    /// A batch of jobs from the lanes to their ends.
    fn round(&mut self) {
        let first = JobId::new(self.next_job).unwrap();
        self.next_job += u64::from(BATCH);
        let run = Run {
            first,
            count: BATCH,
            priority: Priority::NORMAL,
            class: Arc::clone(&self.class),
            due: None,
            expires: None,
            deadline: None,
            resident: true,
        };
        let bodies = (0..BATCH).map(|_| Bytes::from(vec![7; 100])).collect();
        self.lanes
            .push(run.priority, writer::Arrival { run, bodies });
        self.turn();
        assert_eq!(self.commit(), 1, "one fact tells of all that was given out");
        let fences = self.assigned();
        assert_eq!(fences.len(), BATCH as usize);
        let reports = Frame::Reports(Reports {
            first: self.reported + 1,
            reports: fences.into_iter().map(succeeded).collect(),
        });
        self.reported += u64::from(BATCH);
        let mut decoder = Decoder::new();
        decoder.accept_up_to(FRAME_BYTES_MAX);
        let frame = counted(&mut self.codec, || {
            reports.encode(decoder.buffer());
            decoder.next_frame()
        });
        let frames = vec![frame.unwrap().unwrap()];
        self.tell.tell(Message::Worker(Arrival::Frames {
            session: SESSION,
            frames,
        }));
        self.turn();
        assert_eq!(self.commit(), BATCH as usize, "each job has ended");
        assert!(self.assigned().is_empty(), "and is acknowledged");
    }
}

fn succeeded(fence: Fence) -> Report {
    Report {
        fence,
        outcome: Outcome::Succeeded,
        cancelled: false,
        started: true,
        run_us: 5,
        detail: None,
    }
}

fn login() -> Login {
    Login {
        proof: [0; 32],
        name: "w".to_owned(),
        instance: 1,
        session: None,
        slots: BATCH,
        commands: false,
        handlers: Vec::new(),
        queues: vec!["default".to_owned()],
        labels: Vec::new(),
        allocation: String::new(),
        held: Vec::new(),
        last_report: 0,
        epochs: Vec::new(),
    }
}

#[test]
fn a_job_asks_for_no_memory_on_its_way_through_dispatch_and_codec() {
    let mut bench = Bench::new();
    let [warm, measured] = ROUNDS;
    (0..warm).for_each(|_| bench.round());
    (bench.turns, bench.codec) = (0, 0);
    (0..measured).for_each(|_| bench.round());
    #[expect(clippy::cast_precision_loss, reason = "small counts, for a mean")]
    let mean = |count: u64| count as f64 / measured as f64;
    let (turns, codec) = (mean(bench.turns), mean(bench.codec));
    eprintln!("a batch of {BATCH} jobs: {turns} times in dispatch, {codec} in the codec");
    assert!(turns <= DISPATCH_MAX, "{turns} times a batch in dispatch");
    assert!(codec <= CODEC_MAX, "{codec} times a batch in the codec");
}
