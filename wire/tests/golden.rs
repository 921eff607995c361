//! PROTOCOL.md against the codec, both ways: each golden block decodes to what it says and encodes to the same bytes.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Bytes, BytesMut};
use hostler_wire::decoder::Decoder;
use hostler_wire::frame::*;
use hostler_wire::handshake::{ClientHandshake, Identity, ServerHandshake, Verifier};
use hostler_wire::token::Token;
use hostler_wire::{
    Attempt, Detail, Epoch, Fence, JobId, Outcome, SessionId, Usage, codec, limits,
};

const PROTOCOL: &str = include_str!("../PROTOCOL.md");

/// Text of each fenced block whose opening line begins with `language`, by the name after it.
fn blocks(language: &str) -> BTreeMap<&'static str, String> {
    let mut found = BTreeMap::new();
    let mut lines = PROTOCOL.lines();
    while let Some(line) = lines.next() {
        let Some(info) = line.strip_prefix("```") else {
            continue;
        };
        let body: Vec<_> = lines.by_ref().take_while(|line| *line != "```").collect();
        if let Some(name) = info
            .strip_prefix(language)
            .and_then(|rest| rest.strip_prefix(' '))
        {
            assert!(
                found.insert(name, body.join("\n")).is_none(),
                "two blocks are named {name}"
            );
        }
    }
    found
}

fn golden() -> BTreeMap<&'static str, Bytes> {
    blocks("hex")
        .into_iter()
        .map(|(name, text)| (name, unhex(&text)))
        .collect()
}

fn unhex(text: &str) -> Bytes {
    let digits: String = text
        .lines()
        .flat_map(|line| line.split('#').next())
        .flat_map(str::chars)
        .filter(|c| !c.is_whitespace())
        .collect();
    assert!(digits.len().is_multiple_of(2), "half a byte in {text}");
    (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap())
        .collect()
}

fn decode(bytes: &[u8]) -> Result<Vec<Frame>, codec::DecodeError> {
    let mut decoder = Decoder::new();
    decoder.accept_up_to(limits::FRAME_BYTES_MAX);
    decoder.buffer().extend_from_slice(bytes);
    let mut frames = Vec::new();
    while let Some(frame) = decoder.next_frame()? {
        frames.push(frame);
    }
    assert!(decoder.buffer().is_empty(), "the frame is not whole");
    Ok(frames)
}

fn encode(frame: &Frame) -> Bytes {
    let mut out = BytesMut::new();
    frame.encode(&mut out);
    out.freeze()
}

fn count_up(from: u8) -> [u8; 32] {
    std::array::from_fn(|i| from + u8::try_from(i).unwrap())
}

fn count_up_16(from: u8) -> [u8; 16] {
    std::array::from_fn(|i| from + u8::try_from(i).unwrap())
}

fn fence(job: u64, epoch: u32, attempt: u16) -> Fence {
    Fence {
        job: JobId::new(job).unwrap(),
        epoch: Epoch::new(epoch),
        attempt: Attempt::new(attempt).unwrap(),
    }
}

fn report(job: u64, attempt: u16, outcome: Outcome, run_us: u64) -> Report {
    Report {
        fence: fence(job, 7, attempt),
        outcome,
        cancelled: false,
        started: true,
        run_us,
        detail: None,
    }
}

fn noop() -> Work {
    Work {
        timeout_ms: None,
        grace_ms: None,
        stall_ms: None,
        on_partition: OnPartition::Keep,
        logs: Logs {
            mode: LogsMode::Keep,
            limit_bytes: 16 << 20,
            overflow: Overflow::Drop,
        },
        task: Task::Handler(Handler {
            name: "noop".to_owned(),
            payload: "null".into(),
        }),
    }
}

fn echo() -> Work {
    Work {
        timeout_ms: Some(60_000),
        grace_ms: Some(5_000),
        stall_ms: Some(10_000),
        on_partition: OnPartition::Stop,
        logs: Logs {
            mode: LogsMode::Stream,
            limit_bytes: 1 << 20,
            overflow: Overflow::Block,
        },
        task: Task::Command(Command {
            argv: vec!["echo".to_owned(), "grüezi".to_owned()],
            env: vec![("LANG".to_owned(), "C.UTF-8".to_owned())],
            cwd: Some("/tmp".to_owned()),
            stdin: Some("a\nb".into()),
        }),
    }
}

fn token() -> Token {
    Token {
        role: "worker".to_owned(),
        id: "Ab3dE6gH".to_owned(),
        secret: count_up(0),
    }
}

fn login() -> Login {
    Login {
        proof: [0; 32],
        name: "build-7".to_owned(),
        instance: 0x1122_3344_5566_7788,
        session: None,
        slots: 4,
        commands: true,
        handlers: vec!["noop".to_owned(), "echo".to_owned()],
        queues: vec!["default".to_owned()],
        labels: vec![("zone".to_owned(), "eu-1".to_owned())],
        allocation: String::new(),
        held: vec![
            Held {
                fence: fence(1042, 6, 2),
                started: true,
            },
            Held {
                fence: fence(1043, 7, 1),
                started: false,
            },
        ],
        last_report: 310,
        epochs: vec![
            (Epoch::new(6), count_up_16(0xe0)),
            (Epoch::new(7), count_up_16(0xd0)),
        ],
    }
}

fn output_login() -> Login {
    Login {
        session: Some(SessionId::new(3)),
        slots: 0,
        handlers: vec![],
        queues: vec![],
        labels: vec![],
        held: vec![],
        last_report: 0,
        epochs: vec![],
        ..login()
    }
}

/// What both ends say in a handshake with the golden token.
fn handshake(role: Role, nonce: u8, random: u8, login: Login) -> [Frame; 3] {
    handshake_in(None, role, nonce, random, login)
}

/// The same in the TLS session with that exporter.
fn handshake_in(
    tls: Option<[u8; 32]>,
    role: Role,
    nonce: u8,
    random: u8,
    mut login: Login,
) -> [Frame; 3] {
    let identity = Identity {
        cluster: count_up_16(0xc0),
        epoch: Epoch::new(7),
        epoch_nonce: count_up_16(0xd0),
    };
    let (mut client, hello) = ClientHandshake::new(&token(), role, count_up(nonce));
    if let Some(exporter) = tls {
        client.bind(exporter);
    }
    let verifier = Verifier::new(&token());
    let (server, challenge) =
        ServerHandshake::bound(identity, &hello, Some(&verifier), count_up(random), tls).unwrap();
    client.login(&challenge, &mut login).unwrap();
    server.login(&login).unwrap();
    [
        Frame::Hello(hello),
        Frame::Challenge(challenge),
        Frame::Login(Box::new(login)),
    ]
}

/// What each golden frame says.
fn frames() -> Vec<(&'static str, Frame)> {
    let two = || vec![fence(1044, 7, 1), fence(1045, 7, 1)];
    let [hello, challenge, login] = handshake(Role::Control, 0x20, 0xa0, login());
    let [output_hello, output_challenge, output_login] =
        handshake(Role::Output, 0x40, 0x80, output_login());
    vec![
        ("hello", hello),
        ("challenge", challenge),
        ("login", login),
        ("hello/output", output_hello),
        ("challenge/output", output_challenge),
        ("login/output", output_login),
        (
            "welcome",
            Frame::Welcome(Welcome {
                session: SessionId::new(3),
                beat_ms: 2_000,
                grace_ms: 30_000,
                result_bytes_max: 256 << 10,
            }),
        ),
        (
            "refused",
            Frame::Refused(Refused {
                code: RefuseCode::Version,
                message:
                    "no protocol version in common: the client speaks 3 to 5, the server 2 to 2"
                        .to_owned(),
            }),
        ),
        (
            "not_leader",
            Frame::NotLeader(NotLeader {
                addresses: vec!["10.0.0.2:7441".to_owned(), "[fd00::3]:7441".to_owned()],
            }),
        ),
        (
            "resumed",
            Frame::Resumed(Resumed {
                acked: 309,
                void: vec![fence(1042, 6, 2)],
            }),
        ),
        (
            "assign",
            Frame::Assign(Assign {
                seq: 17,
                jobs: vec![
                    Assignment {
                        fence: fence(1044, 7, 1),
                        body: noop().encode(),
                    },
                    Assignment {
                        fence: fence(JobId::MAX.raw(), 7, u16::MAX),
                        body: noop().encode(),
                    },
                ],
            }),
        ),
        ("recall", Frame::Recall(Recall { fences: two() })),
        (
            "cancel",
            Frame::Cancel(Cancel {
                fence: fence(1044, 7, 1),
                force: true,
            }),
        ),
        (
            "stop",
            Frame::Stop(Stop {
                fences: vec![fence(1042, 6, 2)],
            }),
        ),
        ("started", Frame::Started(Started { fences: two() })),
        (
            "reports",
            Frame::Reports(Reports {
                first: 311,
                reports: vec![
                    report(1044, 1, Outcome::Succeeded, 184),
                    report(1045, 1, Outcome::Succeeded, 201),
                ],
            }),
        ),
        (
            "reports/outcomes",
            Frame::Reports(Reports {
                first: 313,
                reports: every_other_outcome(),
            }),
        ),
        (
            "reports/result",
            Frame::Reports(Reports {
                first: 321,
                reports: vec![Report {
                    detail: Some(Box::new(Detail {
                        result: br#"{"ok":true}"#.to_vec(),
                        ..Detail::default()
                    })),
                    ..report(1046, 1, Outcome::Succeeded, 950)
                }],
            }),
        ),
        (
            "returned",
            Frame::Returned(Returned {
                fences: vec![fence(1045, 7, 1)],
                draining: true,
            }),
        ),
        ("ack", Frame::Ack(Ack { through: 320 })),
        (
            "beat",
            Frame::Beat(Beat {
                assign_seq: 17,
                held: 3,
            }),
        ),
        (
            "beat/server",
            Frame::Beat(Beat {
                assign_seq: 0,
                held: 0,
            }),
        ),
        (
            "probe",
            Frame::Probe(Probe {
                ask: 5,
                fences: two(),
            }),
        ),
        (
            "probe_reply",
            Frame::ProbeReply(ProbeReply {
                ask: 5,
                lives: vec![
                    Live {
                        fence: Some(fence(1044, 7, 1)),
                        started: true,
                        pid: 4711,
                        processes: 3,
                        cpu_ms: 3_120,
                        rss_bytes: 64 << 20,
                        stdout_bytes: 1_812,
                        stderr_bytes: 0,
                        quiet_ms: 120,
                        output_age_ms: Some(120),
                        progress: Some(0.44),
                        note: "frame 440/1000".to_owned(),
                    },
                    Live {
                        fence: Some(fence(1045, 7, 1)),
                        ..Live::default()
                    },
                ],
            }),
        ),
        (
            "chunk",
            Frame::Chunk(Chunk {
                fence: fence(1044, 7, 1),
                stream: Stream::Stdout,
                offset: 1_806,
                at_ms: 1_764_057_600_123,
                data: "hello\n".into(),
            }),
        ),
        (
            "output_end",
            Frame::OutputEnd(OutputEnd {
                fence: fence(1044, 7, 1),
                stdout_bytes: 1_812,
                stderr_bytes: 14,
                dropped_bytes: 0,
            }),
        ),
        (
            "output_ack",
            Frame::OutputAck(OutputAck {
                fence: fence(1044, 7, 1),
                stdout_through: 1_812,
                stderr_through: 14,
                ended: true,
            }),
        ),
        (
            "output_start",
            Frame::OutputStart(OutputStart {
                fence: fence(1044, 7, 1),
                logs: Logs {
                    mode: LogsMode::Stream,
                    limit_bytes: 1 << 20,
                    overflow: Overflow::Drop,
                },
            }),
        ),
    ]
}

fn every_other_outcome() -> Vec<Report> {
    let exited = Detail {
        exit_code: Some(75),
        message: "the disk is full".to_owned(),
        stderr_tail: b"write: ENOSPC\n".to_vec(),
        usage: Some(Usage {
            wall_ms: 1_494,
            user_ms: 1_200,
            system_ms: 80,
            peak_rss_bytes: 9 << 20,
            stdout_bytes: 4_096,
            stderr_bytes: 14,
        }),
        ..Detail::default()
    };
    let signalled = Detail {
        signal: Some(15),
        ..Detail::default()
    };
    let failed = Outcome::HandlerFailed {
        fatal: true,
        retry_after_ms: Some(5_000),
    };
    vec![
        Report {
            detail: Some(Box::new(exited)),
            ..report(1, 1, Outcome::Exited { code: 75 }, 1_500_000)
        },
        Report {
            cancelled: true,
            detail: Some(Box::new(signalled)),
            ..report(2, 1, Outcome::Signalled { signal: 15 }, 900)
        },
        report(3, 1, Outcome::OutOfMemory, 77),
        report(4, 1, Outcome::TimedOut, 60_000_000),
        Report {
            started: false,
            ..report(5, 1, Outcome::SpawnFailed { errno: 2 }, 0)
        },
        report(6, 2, failed, 50),
        Report {
            started: false,
            ..report(7, 1, Outcome::NoSuchHandler, 0)
        },
        Report {
            started: false,
            cancelled: true,
            ..report(8, 3, Outcome::Returned, 0)
        },
        report(9, 1, Outcome::Stalled, 10_000_000),
    ]
}

#[test]
fn every_golden_frame_says_what_we_say_both_ways() {
    let golden = golden();
    for (name, frame) in frames() {
        let bytes = golden
            .get(name)
            .unwrap_or_else(|| panic!("PROTOCOL.md has no block `hex {name}`"));
        assert_eq!(
            decode(bytes).unwrap(),
            std::slice::from_ref(&frame),
            "{name}"
        );
        assert_eq!(encode(&frame), bytes, "{name}");
    }
}

#[test]
fn every_kind_of_frame_has_a_golden_block_and_every_block_a_test() {
    let golden = golden();
    for (kind, name) in Frame::KINDS {
        let bytes = golden
            .get(name)
            .unwrap_or_else(|| panic!("PROTOCOL.md has no block `hex {name}`"));
        assert_eq!(bytes[4], *kind, "{name}");
        assert!(
            PROTOCOL.contains(&format!("| {kind:#04x} | `{name}` |")),
            "{name} in the table"
        );
    }
    let tested: BTreeSet<_> = frames().iter().map(|(name, _)| *name).collect();
    for name in golden.keys() {
        let elsewhere = ["work/", "key/", "skipped/", "bad/"]
            .iter()
            .any(|p| name.starts_with(p));
        assert!(
            elsewhere || tested.contains(name),
            "nothing tests the block {name}"
        );
    }
}

#[test]
fn a_golden_frame_cut_short_is_waited_for() {
    for (name, _) in frames() {
        let bytes = &golden()[name];
        for len in 0..bytes.len() {
            let mut decoder = Decoder::new();
            decoder.accept_up_to(limits::FRAME_BYTES_MAX);
            decoder.buffer().extend_from_slice(&bytes[..len]);
            assert_eq!(decoder.next_frame(), Ok(None), "{name} cut to {len}");
        }
    }
}

#[test]
fn golden_bodies_say_what_we_say_both_ways() {
    let golden = golden();
    for (name, work) in [("work/handler", noop()), ("work/command", echo())] {
        assert_eq!(Work::decode(golden[name].clone()).unwrap(), work, "{name}");
        assert_eq!(work.encode(), golden[name], "{name}");
    }
    assert_eq!(
        golden
            .keys()
            .filter(|name| name.starts_with("work/"))
            .count(),
        2
    );
}

#[test]
fn the_golden_token_and_its_keys_are_ours() {
    let golden = golden();
    let text = blocks("text").remove("token").unwrap();
    assert_eq!(Token::parse(&text), Ok(token()));
    assert_eq!(token().to_string(), text);

    let verifier = Verifier::new(&token());
    assert_eq!(golden["key/secret"], token().secret[..]);
    assert_eq!(golden["key/stored_key"], verifier.stored_key[..]);
    assert_eq!(golden["key/server_key"], verifier.server_key[..]);
    assert_eq!(golden["key/server_random"], count_up(0xa0)[..]);
    assert_eq!(golden["key/server_random_output"], count_up(0x80)[..]);
    let client_key = <sha2::Sha256 as sha2::Digest>::digest(&golden["key/client_key"]);
    assert_eq!(client_key[..], verifier.stored_key);
}

#[test]
fn the_golden_handshake_under_tls_has_the_golden_proofs() {
    let golden = golden();
    assert_eq!(golden["key/tls_exporter"], count_up(0x60)[..]);
    let [hello, challenge, login] =
        handshake_in(Some(count_up(0x60)), Role::Control, 0x20, 0xa0, login());
    assert_eq!(encode(&hello), golden["hello"]);
    for (frame, plain, proof) in [
        (challenge, "challenge", "key/tls_challenge_proof"),
        (login, "login", "key/tls_login_proof"),
    ] {
        // Their headers, of 12 bytes, differ by the checksum.
        let (bytes, plain) = (encode(&frame), &golden[plain]);
        let (body, proof) = (12..plain.len() - 32, &golden[proof]);
        assert_eq!(bytes[body.clone()], plain[body.clone()]);
        assert_eq!(bytes[body.end..], proof[..]);
    }
}

#[test]
fn golden_frames_to_pass_over_are_passed_over() {
    assert_eq!(decode(&golden()["skipped/unknown_kind"]), Ok(vec![]));
}

#[test]
fn golden_frames_to_refuse_are_refused() {
    let mut count = 0;
    for (name, bytes) in golden() {
        if name.starts_with("bad/") {
            let error = decode(&bytes).expect_err(name);
            assert_eq!(
                error.is_damage(),
                name.contains("checksum"),
                "{name}: {error}"
            );
            count += 1;
        }
    }
    assert!(count > 10);
}

#[test]
fn the_limits_in_the_document_are_ours() {
    let ours = [
        ("HELLO_FRAME_BYTES_MAX", limits::HELLO_FRAME_BYTES_MAX),
        (
            "HANDSHAKE_FRAME_BYTES_MAX",
            limits::HANDSHAKE_FRAME_BYTES_MAX,
        ),
        ("FRAME_BYTES_MAX", limits::FRAME_BYTES_MAX),
        ("BATCH_ITEMS_MAX", limits::BATCH_ITEMS_MAX),
        ("PROBE_ITEMS_MAX", limits::PROBE_ITEMS_MAX),
        ("HELD_MAX", limits::HELD_MAX),
        ("EPOCHS_MAX", limits::EPOCHS_MAX),
        ("SLOTS_MAX", limits::SLOTS_MAX as usize),
        ("NAME_BYTES_MAX", limits::NAME_BYTES_MAX),
        ("QUEUES_MAX", limits::QUEUES_MAX),
        ("LABELS_MAX", limits::LABELS_MAX),
        ("HANDLERS_MAX", limits::HANDLERS_MAX),
        ("WORK_BYTES_MAX", limits::WORK_BYTES_MAX),
        ("BODY_BYTES_MAX", limits::BODY_BYTES_MAX),
        ("ARGS_MAX", limits::ARGS_MAX),
        ("RESULT_BYTES_MAX", limits::RESULT_BYTES_MAX),
        ("MESSAGE_BYTES_MAX", limits::MESSAGE_BYTES_MAX),
        ("STDERR_TAIL_BYTES_MAX", limits::STDERR_TAIL_BYTES_MAX),
        ("CHUNK_BYTES_MAX", limits::CHUNK_BYTES_MAX),
        ("ADDRESSES_MAX", limits::ADDRESSES_MAX),
        ("ADDRESS_BYTES_MAX", limits::ADDRESS_BYTES_MAX),
    ];
    for (name, value) in ours {
        assert!(
            PROTOCOL.contains(&format!("\n| {name} | {value} |")),
            "{name} is {value}"
        );
    }
    let declared = include_str!("../src/limits.rs")
        .matches("pub const")
        .count();
    assert_eq!(
        declared,
        ours.len(),
        "a limit is in limits.rs and not in PROTOCOL.md"
    );
}

#[test]
fn the_largest_login_fits_into_a_frame_of_the_handshake() {
    let name = || "n".repeat(limits::NAME_BYTES_MAX);
    let login = Login {
        name: name(),
        handlers: vec![name(); limits::HANDLERS_MAX],
        queues: vec![name(); limits::QUEUES_MAX],
        labels: vec![(name(), name()); limits::LABELS_MAX],
        allocation: name(),
        held: vec![
            Held {
                fence: fence(1, 1, 1),
                started: true
            };
            limits::HELD_MAX
        ],
        epochs: vec![(Epoch::new(1), [0; 16]); limits::EPOCHS_MAX],
        session: Some(SessionId::new(1)),
        ..login()
    };
    assert!(encode(&Frame::Login(Box::new(login))).len() <= limits::HANDSHAKE_FRAME_BYTES_MAX);
}

#[test]
fn the_longest_body_of_a_job_fits_into_an_assign() {
    let mut argv = vec![String::new(); limits::ARGS_MAX];
    argv[0] = "a".repeat(limits::BODY_BYTES_MAX);
    let command = |argv| Work {
        task: Task::Command(Command {
            argv,
            env: vec![(String::new(), String::new()); limits::ARGS_MAX],
            cwd: Some(String::new()),
            stdin: Some(Bytes::new()),
        }),
        ..echo()
    };
    let work = command(argv.clone());
    assert_eq!(work.check(), Ok(()));
    let body = work.encode();
    assert!(body.len() <= limits::WORK_BYTES_MAX);
    let jobs = vec![Assignment {
        fence: fence(1, 1, 1),
        body: body.clone(),
    }];
    let assign = Frame::Assign(Assign { seq: 1, jobs });
    assert_eq!(decode(&encode(&assign)).unwrap(), [assign]);
    assert_eq!(Work::decode(body).unwrap(), work);

    argv[1].push('b');
    let over = command(argv);
    assert!(over.check().is_err());
    assert!(Work::decode(over.encode()).is_err());
}
