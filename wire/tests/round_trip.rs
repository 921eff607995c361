//! Any frame survives the wire, and no bytes hurt a decoder: no panic, and no memory beyond a small multiple of what came.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]
#![expect(unsafe_code, reason = "a global allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use bytes::{Bytes, BytesMut};
use hostler_wire::codec::raw_frame;
use hostler_wire::decoder::Decoder;
use hostler_wire::frame::*;
use hostler_wire::{Attempt, Detail, Epoch, Fence, JobId, Outcome, SessionId, Usage, limits};
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use proptest::sample::{Index, select};

/// Length, kind, flags, two checksums.
const HEADER_BYTES: usize = 12;

fn fence() -> impl Strategy<Value = Fence> {
    (1..=JobId::MAX.raw(), any::<u32>(), 1..=u16::MAX).prop_map(|(job, epoch, attempt)| Fence {
        job: JobId::new(job).unwrap(),
        epoch: Epoch::new(epoch),
        attempt: Attempt::new(attempt).unwrap(),
    })
}

fn fences() -> impl Strategy<Value = Vec<Fence>> {
    vec(fence(), 0..20)
}

fn text() -> impl Strategy<Value = String> {
    ".{0,30}"
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..60)
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        Just(Outcome::Succeeded),
        (1..=255u8).prop_map(|code| Outcome::Exited { code }),
        (1..=255u8).prop_map(|signal| Outcome::Signalled { signal }),
        Just(Outcome::OutOfMemory),
        Just(Outcome::TimedOut),
        Just(Outcome::Stalled),
        any::<i32>().prop_map(|errno| Outcome::SpawnFailed { errno }),
        (any::<bool>(), any::<Option<u64>>()).prop_map(|(fatal, retry_after_ms)| {
            Outcome::HandlerFailed {
                fatal,
                retry_after_ms,
            }
        }),
        Just(Outcome::NoSuchHandler),
        Just(Outcome::Returned),
    ]
}

fn usage() -> impl Strategy<Value = Usage> {
    any::<[u64; 6]>().prop_map(
        |[
            wall_ms,
            user_ms,
            system_ms,
            peak_rss_bytes,
            stdout_bytes,
            stderr_bytes,
        ]| Usage {
            wall_ms,
            user_ms,
            system_ms,
            peak_rss_bytes,
            stdout_bytes,
            stderr_bytes,
        },
    )
}

fn detail() -> impl Strategy<Value = Detail> {
    (
        any::<Option<u8>>(),
        any::<Option<u8>>(),
        text(),
        bytes(),
        bytes(),
        of(usage()),
    )
        .prop_map(
            |(exit_code, signal, message, result, stderr_tail, usage)| Detail {
                exit_code,
                signal,
                message,
                result,
                stderr_tail,
                usage,
            },
        )
}

fn report() -> impl Strategy<Value = Report> {
    (fence(), outcome(), any::<(bool, bool, u64)>(), of(detail())).prop_map(
        |(fence, outcome, (cancelled, started, run_us), detail)| Report {
            fence,
            outcome,
            cancelled,
            started,
            run_us,
            detail: detail.map(Box::new),
        },
    )
}

fn live() -> impl Strategy<Value = Live> {
    (
        fence(),
        any::<(bool, u32, u32)>(),
        any::<([u64; 5], Option<u64>)>(),
        of(0f32..=1.0),
        text(),
    )
        .prop_map(
            |(
                fence,
                (started, pid, processes),
                ([cpu_ms, rss_bytes, stdout, stderr, quiet_ms], output_age_ms),
                progress,
                note,
            )| {
                Live {
                    fence: Some(fence),
                    started,
                    pid,
                    processes,
                    cpu_ms,
                    rss_bytes,
                    stdout_bytes: stdout,
                    stderr_bytes: stderr,
                    quiet_ms,
                    output_age_ms,
                    progress,
                    note,
                }
            },
        )
}

fn login() -> impl Strategy<Value = Login> {
    let held = (fence(), any::<bool>()).prop_map(|(fence, started)| Held { fence, started });
    let epochs = any::<(u32, [u8; 16])>().prop_map(|(epoch, nonce)| (Epoch::new(epoch), nonce));
    let numbers = any::<([u8; 32], u64, Option<u64>, u32, bool, u64)>();
    let names = (
        text(),
        vec(text(), 0..5),
        vec(text(), 0..5),
        vec((text(), text()), 0..5),
        text(),
    );
    (numbers, names, vec(held, 0..10), vec(epochs, 0..4)).prop_map(
        |(
            (proof, instance, session, slots, commands, last_report),
            (name, handlers, queues, labels, allocation),
            held,
            epochs,
        )| Login {
            proof,
            name,
            instance,
            session: session.map(SessionId::new),
            slots,
            commands,
            handlers,
            queues,
            labels,
            allocation,
            held,
            last_report,
            epochs,
        },
    )
}

fn logs() -> impl Strategy<Value = Logs> {
    (
        select(&[LogsMode::Keep, LogsMode::Stream, LogsMode::None]),
        any::<u64>(),
        select(&[Overflow::Drop, Overflow::Block]),
    )
        .prop_map(|(mode, limit_bytes, overflow)| Logs {
            mode,
            limit_bytes,
            overflow,
        })
}

fn work() -> impl Strategy<Value = Work> {
    let command = (
        vec(text(), 1..5),
        vec((text(), text()), 0..5),
        of(text()),
        of(bytes().prop_map(Bytes::from)),
    )
        .prop_map(|(argv, env, cwd, stdin)| {
            Task::Command(Command {
                argv,
                env,
                cwd,
                stdin,
            })
        });
    let handler = ("[a-z]{1,30}", bytes()).prop_map(|(name, payload)| {
        Task::Handler(Handler {
            name,
            payload: payload.into(),
        })
    });
    (
        any::<(Option<u64>, Option<u64>, Option<u64>)>(),
        select(&[OnPartition::Keep, OnPartition::Stop]),
        logs(),
        prop_oneof![command, handler],
    )
        .prop_map(
            |((timeout_ms, grace_ms, stall_ms), on_partition, logs, task)| Work {
                timeout_ms,
                grace_ms,
                stall_ms,
                on_partition,
                logs,
                task,
            },
        )
}

fn handshake_frame() -> impl Strategy<Value = Frame> {
    let hello = (
        any::<(u16, u16, u64, [u8; 32])>(),
        select(&[Role::Control, Role::Output]),
        text(),
    )
        .prop_map(
            |((version_min, version_max, capabilities, nonce), role, token_id)| {
                Frame::Hello(Hello {
                    version_min,
                    version_max,
                    capabilities,
                    role,
                    token_id,
                    nonce,
                })
            },
        );
    let challenge = any::<((u16, u64), [u8; 32], [u8; 16], u32, [u8; 16], [u8; 32])>().prop_map(
        |((version, capabilities), nonce, cluster, epoch, epoch_nonce, proof)| {
            Frame::Challenge(Challenge {
                version,
                capabilities,
                nonce,
                cluster,
                epoch: Epoch::new(epoch),
                epoch_nonce,
                proof,
            })
        },
    );
    let welcome =
        any::<(u64, u32, u32, u32)>().prop_map(|(session, beat_ms, grace_ms, result_bytes_max)| {
            let session = SessionId::new(session);
            Frame::Welcome(Welcome {
                session,
                beat_ms,
                grace_ms,
                result_bytes_max,
            })
        });
    let code = select(&[
        RefuseCode::Version,
        RefuseCode::Unauthorised,
        RefuseCode::NameInUse,
        RefuseCode::Invalid,
        RefuseCode::Busy,
        RefuseCode::Stopping,
        RefuseCode::NoSession,
    ]);
    prop_oneof![
        hello,
        challenge,
        login().prop_map(|login| Frame::Login(Box::new(login))),
        welcome,
        (code, text()).prop_map(|(code, message)| Frame::Refused(Refused { code, message })),
        vec(text(), 0..limits::ADDRESSES_MAX)
            .prop_map(|addresses| Frame::NotLeader(NotLeader { addresses })),
        (any::<u64>(), fences()).prop_map(|(acked, void)| Frame::Resumed(Resumed { acked, void })),
    ]
}

fn control_frame() -> impl Strategy<Value = Frame> {
    let assignment = (fence(), work()).prop_map(|(fence, work)| Assignment {
        fence,
        body: work.encode(),
    });
    prop_oneof![
        (any::<u64>(), vec(assignment, 0..5))
            .prop_map(|(seq, jobs)| Frame::Assign(Assign { seq, jobs })),
        fences().prop_map(|fences| Frame::Recall(Recall { fences })),
        (fence(), any::<bool>()).prop_map(|(fence, force)| Frame::Cancel(Cancel { fence, force })),
        fences().prop_map(|fences| Frame::Stop(Stop { fences })),
        fences().prop_map(|fences| Frame::Started(Started { fences })),
        (1..u64::MAX - 9, vec(report(), 0..9))
            .prop_map(|(first, reports)| Frame::Reports(Reports { first, reports })),
        (fences(), any::<bool>())
            .prop_map(|(fences, draining)| Frame::Returned(Returned { fences, draining })),
        any::<u64>().prop_map(|through| Frame::Ack(Ack { through })),
        any::<(u64, u32)>().prop_map(|(assign_seq, held)| Frame::Beat(Beat { assign_seq, held })),
        (any::<u64>(), fences()).prop_map(|(ask, fences)| Frame::Probe(Probe { ask, fences })),
        (any::<u64>(), vec(live(), 0..5))
            .prop_map(|(ask, lives)| Frame::ProbeReply(ProbeReply { ask, lives })),
    ]
}

fn output_frame() -> impl Strategy<Value = Frame> {
    let chunk = (
        fence(),
        any::<bool>(),
        0..u64::MAX - 60,
        any::<u64>(),
        bytes(),
    )
        .prop_map(|(fence, is_stdout, offset, at_ms, data)| {
            let stream = if is_stdout {
                Stream::Stdout
            } else {
                Stream::Stderr
            };
            Frame::Chunk(Chunk {
                fence,
                stream,
                offset,
                at_ms,
                data: data.into(),
            })
        });
    let end = (fence(), any::<[u64; 3]>()).prop_map(
        |(fence, [stdout_bytes, stderr_bytes, dropped_bytes])| {
            Frame::OutputEnd(OutputEnd {
                fence,
                stdout_bytes,
                stderr_bytes,
                dropped_bytes,
            })
        },
    );
    let ack = (fence(), any::<(u64, u64, bool)>()).prop_map(
        |(fence, (stdout_through, stderr_through, ended))| {
            Frame::OutputAck(OutputAck {
                fence,
                stdout_through,
                stderr_through,
                ended,
            })
        },
    );
    let start = (fence(), logs())
        .prop_filter("an output goes somewhere", |(_, logs)| {
            logs.mode != LogsMode::None
        })
        .prop_map(|(fence, logs)| Frame::OutputStart(OutputStart { fence, logs }));
    prop_oneof![chunk, end, ack, start]
}

fn frame() -> impl Strategy<Value = Frame> {
    prop_oneof![handshake_frame(), control_frame(), output_frame()]
}

fn encode(frame: &Frame) -> BytesMut {
    let mut out = BytesMut::new();
    frame.encode(&mut out);
    out
}

fn decoder() -> Decoder {
    let mut decoder = Decoder::new();
    decoder.accept_up_to(limits::FRAME_BYTES_MAX);
    decoder
}

proptest! {
    #[test]
    fn any_frames_come_back_whole_from_any_cuts(
        frames in vec(frame(), 1..4),
        cuts in vec(any::<Index>(), 0..6),
    ) {
        let mut stream = BytesMut::new();
        frames.iter().for_each(|frame| frame.encode(&mut stream));
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(stream.len())).collect();
        cuts.extend([0, stream.len()]);
        cuts.sort_unstable();

        let mut decoder = decoder();
        let mut back = Vec::new();
        for piece in cuts.windows(2) {
            decoder.buffer().extend_from_slice(&stream[piece[0]..piece[1]]);
            while let Some(frame) = decoder.next_frame().unwrap() {
                back.push(frame);
            }
        }
        prop_assert_eq!(back, frames);
    }

    #[test]
    fn any_work_comes_back(work in work()) {
        prop_assert_eq!(work.check(), Ok(()));
        prop_assert_eq!(Work::decode(work.encode()).unwrap(), work);
    }

    #[test]
    fn a_sender_can_tell_what_fits(report in report(), work in work()) {
        let empty = encode(&Frame::Reports(Reports { first: 1, reports: vec![] })).len();
        let bound = report.encoded_bytes();
        let full = encode(&Frame::Reports(Reports { first: 1, reports: vec![report] })).len();
        prop_assert!(full - empty <= bound);

        let assignment = Assignment {
            fence: Fence { job: JobId::MIN, epoch: Epoch::new(1), attempt: Attempt::FIRST },
            body: work.encode(),
        };
        let empty = encode(&Frame::Assign(Assign { seq: 1, jobs: vec![] })).len();
        let bound = assignment.encoded_bytes();
        let full = encode(&Frame::Assign(Assign { seq: 1, jobs: vec![assignment] })).len();
        prop_assert_eq!(full - empty, bound);
    }

    /// Changed, cut and lengthened frames; with length and checksums that fit again, so that the body is looked at.
    #[test]
    fn mutated_frames_are_refused_or_read_but_never_hurt(
        frame in frame(),
        changes in vec((any::<Index>(), any::<u8>()), 1..4),
        cut in of(any::<Index>()),
        more in vec(any::<u8>(), 0..20),
    ) {
        let mut bytes = encode(&frame).to_vec();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        is_harmless(&bytes)?;
        if let Some(cut) = cut {
            bytes.truncate(HEADER_BYTES + cut.index(bytes.len() - HEADER_BYTES + 1));
        }
        bytes.extend(more);
        is_harmless(&raw_frame(bytes[4], bytes[5], &bytes[HEADER_BYTES..]))?;
    }

    #[test]
    fn noise_is_refused_or_read_but_never_hurts(kind in select(Frame::KINDS), body in vec(any::<u8>(), 0..300)) {
        is_harmless(&raw_frame(kind.0, 0, &body))?;
        is_harmless(&body)?;
        if let Ok(work) = Work::decode(body.clone().into()) {
            prop_assert_eq!(work.encode(), body);
        }
    }
}

/// Decoding takes little memory, and what it gives encodes to the same bytes.
fn is_harmless(bytes: &[u8]) -> Result<(), TestCaseError> {
    let mut decoder = decoder();
    decoder.buffer().extend_from_slice(bytes);
    let (result, allocated) = counted(|| decoder.next_frame());
    // An empty text of two bytes becomes a String of 24, a pair of four 48: twelve times is the worst there is.
    prop_assert!(
        allocated <= 12 * bytes.len() + 256,
        "{allocated} bytes for {}",
        bytes.len()
    );
    if let Ok(Some(frame)) = result {
        let again = encode(&frame);
        // A known kind's flags have no meaning, and stand in the header only.
        prop_assert_eq!(&again[HEADER_BYTES..], &bytes[HEADER_BYTES..again.len()]);
    }
    Ok(())
}

#[test]
fn a_claimed_length_or_count_allocates_nothing() {
    let longest = vec![0; limits::FRAME_BYTES_MAX];
    for (kind, _) in Frame::KINDS {
        // Eight zero bytes first: where a number stands before the count.
        for body in [
            vec![0xff; 40],
            [vec![0; 8], vec![0xff; 8]].concat(),
            vec![0, 0x40, 0, 0],
        ] {
            let mut whole = decoder();
            whole
                .buffer()
                .extend_from_slice(&raw_frame(*kind, 0, &body));
            let (_, allocated) = counted(|| whole.next_frame());
            assert!(allocated <= 256, "{allocated} bytes for kind {kind:#04x}");
        }
        let mut header = decoder();
        let longest = raw_frame(*kind, 0, &longest);
        header.buffer().extend_from_slice(&longest[..HEADER_BYTES]);
        let (result, allocated) = counted(|| header.next_frame());
        assert_eq!((result, allocated), (Ok(None), 0));
    }
}

/// What `run` gives, and how many bytes this thread allocated meanwhile.
fn counted<T>(run: impl FnOnce() -> T) -> (T, usize) {
    let before = ALLOCATED.get();
    let result = run();
    (result, ALLOCATED.get() - before)
}

struct Counting;

thread_local! {
    static ALLOCATED: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.set(ALLOCATED.get() + layout.size());
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: `at` came from `System.alloc` with this layout.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;
