//! Limits of a whole server, each reached once: the metric that `docs/limits.md` gives it is there, and counts.

#![expect(clippy::unwrap_used, reason = "this is a test, helpers and all")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::panic::catch_unwind;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hostler_server::{Config, Server};
use hostler_tls::{Channel, ClientFiles, Port, ServerFiles, ServerName};
use hostler_wire::codec::raw_frame;
use hostler_wire::decoder::Decoder;
use hostler_wire::frame::{
    Challenge, Chunk, Frame, Login, OutputEnd, Report, Reports, Role, Started, Stream,
};
use hostler_wire::handshake::ClientHandshake;
use hostler_wire::limits::{
    ARGS_MAX, BATCH_ITEMS_MAX, BODY_BYTES_MAX, CHUNK_BYTES_MAX, FRAME_BYTES_MAX,
    HANDSHAKE_FRAME_BYTES_MAX, HELLO_FRAME_BYTES_MAX,
};
use hostler_wire::token::Token;
use hostler_wire::{Attempt, Detail, Epoch, Fence, JobId, Outcome, SessionId};

const PATIENCE: Duration = Duration::from_secs(20);
const CASES_AT_ONCE: usize = 4;
const HEADER_BYTES: usize = 12;
const NOOP: &str = r#"{"handler":"noop"}"#;

/// A limit of the page, made small, and how it is reached.
struct Case {
    limit: &'static str,
    /// What shows it, and how much at least; a gauge that is back at 0 by then is only looked for.
    metrics: &'static [(&'static str, f64)],
    set: fn(&mut Config),
    /// What is to be held open while the metrics are read.
    reach: fn(&Trial) -> Vec<TcpStream>,
}

impl Case {
    fn show(&self) {
        let t = Trial::start(self.set);
        let held = (self.reach)(&t);
        for (metric, least) in self.metrics {
            t.await_metric(metric, *least);
        }
        drop(held);
    }
}

const CASES: &[Case] = &[
    Case {
        limit: "body_bytes_max",
        metrics: &[(r#"hostler_http_refused_total{code="body_too_large"}"#, 1.0)],
        set: |config| config.limits.body_bytes_max = 10,
        reach: |t| t.submit(NOOP, 413),
    },
    Case {
        limit: "batch_jobs_max",
        metrics: &[(r#"hostler_http_refused_total{code="batch_too_large"}"#, 1.0)],
        set: |config| config.limits.batch_jobs_max = 1,
        reach: |t| t.submit(&format!("[{NOOP},{NOOP}]"), 413),
    },
    Case {
        limit: "token_requests_per_second",
        metrics: &[("hostler_http_rate_limited_total", 10.0)],
        set: |config| config.limits.token_requests_per_second = Some(3),
        reach: |t| {
            for _ in 0..20 {
                t.ask("GET", "/jobs", "");
            }
            Vec::new()
        },
    },
    Case {
        limit: "token_jobs_per_second",
        metrics: &[("hostler_http_rate_limited_total", 1.0)],
        set: |config| config.limits.token_jobs_per_second = Some(1),
        reach: |t| {
            t.submit(&format!("[{NOOP},{NOOP},{NOOP},{NOOP},{NOOP}]"), 201);
            t.submit(NOOP, 429)
        },
    },
    Case {
        limit: "intake_bytes_max",
        metrics: &[(r#"hostler_http_refused_total{code="intake_full"}"#, 1.0)],
        set: |config| config.limits.intake_bytes_max = 10,
        reach: |t| {
            // A submission is refused while another waits for the disk.
            let request = t.head("POST", "/jobs", NOOP.len()) + NOOP;
            let is_full = (0..100).any(|_| {
                let mut all: Vec<_> = (0..16).map(|_| connect(t.http)).collect();
                for stream in &mut all {
                    stream.write_all(request.as_bytes()).unwrap();
                }
                let answers: Vec<String> = all.iter_mut().map(rest).collect();
                answers.iter().any(|answer| answer.contains("intake_full"))
            });
            assert!(is_full);
            Vec::new()
        },
    },
    Case {
        limit: "live_jobs_max",
        metrics: &[
            ("hostler_jobs_live", 1.0),
            (r#"hostler_http_refused_total{code="too_many_jobs"}"#, 1.0),
        ],
        set: |config| config.limits.live_jobs_max = 1,
        reach: |t| {
            t.submit(NOOP, 201);
            t.submit(NOOP, 429)
        },
    },
    Case {
        limit: "queue_jobs_max",
        metrics: &[
            ("hostler_queue_jobs", 1.0),
            (r#"hostler_http_refused_total{code="queue_full"}"#, 1.0),
        ],
        set: |config| config.limits.queue_jobs_max = Some(1),
        reach: |t| {
            t.submit(NOOP, 201);
            t.submit(NOOP, 429)
        },
    },
    Case {
        limit: "http_connections_max",
        metrics: &[
            ("hostler_http_connections", 1.0),
            (
                r#"hostler_http_refused_total{code="too_many_connections"}"#,
                1.0,
            ),
        ],
        set: |config| config.limits.http_connections_max = 2,
        reach: |t| t.crowd_http(2),
    },
    Case {
        limit: "http_connections_per_address_max",
        metrics: &[(
            r#"hostler_http_refused_total{code="too_many_connections"}"#,
            1.0,
        )],
        set: |config| config.limits.http_connections_per_address_max = 2,
        reach: |t| t.crowd_http(2),
    },
    Case {
        limit: "http_header_timeout",
        metrics: &[("hostler_http_timed_out_total", 1.0)],
        set: |config| config.limits.http_header_timeout = Duration::from_millis(100),
        reach: |t| {
            let mut stream = connect(t.http);
            stream.write_all(b"GET /heal").unwrap();
            assert_eq!(rest(&mut stream), "");
            Vec::new()
        },
    },
    Case {
        limit: "http_idle_timeout",
        metrics: &[("hostler_http_timed_out_total", 1.0)],
        set: |config| {
            config.limits.http_header_timeout = Duration::from_millis(100);
            config.limits.http_idle_timeout = Duration::from_millis(200);
        },
        reach: |t| {
            assert_eq!(rest(&mut connect(t.http)), "");
            Vec::new()
        },
    },
    Case {
        limit: "handshake_timeout",
        metrics: &[("hostler_worker_connections_timed_out_total", 1.0)],
        set: |config| config.limits.handshake_timeout = Duration::from_millis(100),
        reach: |t| {
            rest(&mut connect(t.workers));
            Vec::new()
        },
    },
    Case {
        limit: "http_body_timeout",
        metrics: &[(r#"hostler_http_refused_total{code="body_timeout"}"#, 1.0)],
        set: |config| config.limits.http_body_timeout = Duration::from_millis(100),
        reach: |t| {
            let mut stream = connect(t.http);
            let head = t.head("POST", "/jobs", 100);
            stream.write_all(head.as_bytes()).unwrap();
            assert!(rest(&mut stream).starts_with("HTTP/1.1 408 "));
            Vec::new()
        },
    },
    Case {
        limit: "worker_connections_max",
        metrics: &[
            ("hostler_worker_connections", 1.0),
            ("hostler_worker_connections_refused_total", 1.0),
        ],
        set: |config| config.limits.worker_connections_max = 1,
        reach: |t| {
            let worker = t.join(1);
            rest(&mut connect(t.workers));
            vec![worker.stream]
        },
    },
    Case {
        limit: "worker_connections_per_address_max",
        metrics: &[("hostler_worker_connections_refused_total", 1.0)],
        set: |config| config.limits.worker_connections_per_address_max = 1,
        reach: |t| {
            let worker = t.join(1);
            rest(&mut connect(t.workers));
            vec![worker.stream]
        },
    },
    Case {
        limit: "tls_handshakes_max",
        metrics: &[
            ("hostler_worker_tls_failed_total", 1.0),
            ("hostler_http_tls_failed_total", 1.0),
        ],
        set: |config| {
            config.limits.tls_handshakes_max = 1;
            config.limits.http_header_timeout = Duration::from_millis(100);
            config.tls = Some(certificate(&config.data_dir));
        },
        reach: |t| {
            // On the worker port the second makes the first go; on HTTP its time is over.
            let mut begun = [t.workers, t.workers, t.http].map(|port| {
                let mut stream = connect(port);
                stream
                    .write_all(&[22, 3, 1, 1, 0, 1, 0, 0, 252, 3, 3])
                    .unwrap();
                stream
            });
            rest(&mut begun[0]);
            rest(&mut begun[2]);
            Vec::new()
        },
    },
    Case {
        limit: "worker_send_bytes_max",
        metrics: &[("hostler_worker_connections_cut_off_total", 1.0)],
        set: |config| config.limits.worker_send_bytes_max = 1 << 20,
        reach: |t| {
            // Far more than both sockets hold, for a worker that reads none of it.
            let payload = "x".repeat(500_000);
            let job = format!(r#"{{"handler":"noop","payload":"{payload}"}}"#);
            let jobs = format!("[{}]", vec![&*job; 14].join(","));
            let worker = t.join(1_000);
            for _ in 0..6 {
                t.submit(&jobs, 201);
            }
            vec![worker.stream]
        },
    },
    Case {
        limit: "resident_bytes_max",
        metrics: &[
            ("hostler_bodies_resident_bytes", 1_000.0),
            ("hostler_bodies_read_total", 1.0),
        ],
        set: |config| config.limits.resident_bytes_max = 1_500,
        reach: |t| {
            // One waits in memory for a worker of its queue; so the other is read back when it is its turn.
            let worker = t.join(1);
            let payload = "x".repeat(1_000);
            for queue in ["elsewhere", "default"] {
                let job =
                    format!(r#"{{"handler":"noop","queue":"{queue}","payload":"{payload}"}}"#);
                t.submit(&job, 201);
            }
            vec![worker.stream]
        },
    },
    Case {
        limit: "http_write_timeout",
        metrics: &[("hostler_http_timed_out_total", 1.0)],
        set: |config| config.limits.http_write_timeout = Duration::from_millis(100),
        reach: |t| {
            // Far more than both sockets hold, for a client that reads none of it.
            let mut stream = connect(t.http);
            let request = "GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n";
            stream.write_all(request.repeat(500).as_bytes()).unwrap();
            vec![stream]
        },
    },
    Case {
        limit: "wait_max",
        metrics: &[(r#"hostler_http_refused_total{code="bad_parameter"}"#, 1.0)],
        set: |config| config.limits.wait_max = Duration::from_secs(1),
        reach: |t| t.expect("GET", "/jobs/1?wait=2s", "", 400),
    },
    Case {
        limit: "credits",
        metrics: &[
            ("hostler_attempts_ahead", 1.0),
            ("hostler_attempts_held", 2.0),
            ("hostler_slots", 1.0),
        ],
        set: |_| {},
        reach: |t| {
            // Once the worker has shown how fast they are, it is given more of them than it has slots.
            let mut worker = t.join(1);
            let jobs = format!("[{}]", vec![NOOP; 20].join(","));
            t.submit(&jobs, 201);
            worker.succeed(Vec::new());
            vec![worker.stream]
        },
    },
    Case {
        limit: "result_bytes_max",
        metrics: &[("hostler_results_too_large_total", 1.0)],
        set: |config| config.limits.result_bytes_max = 200,
        reach: |t| {
            // A worker that sends more than it was told it may.
            let mut worker = t.join(1);
            t.submit(NOOP, 201);
            let job = worker.succeed(vec![b'7'; 300]);
            t.await_metric("hostler_results_too_large_total", 1.0);
            let answer = t.ask("GET", &format!("/jobs/{job}"), "");
            assert!(answer.contains(r#""bytes":300,"#), "{answer}");
            vec![worker.stream]
        },
    },
    Case {
        limit: "output_bytes_max",
        metrics: &[
            ("hostler_output_cut_bytes_total", 120_000.0),
            ("hostler_output_cut_attempts_total", 1.0),
        ],
        set: |config| config.limits.output_bytes_max = 4_096,
        reach: |t| {
            let (worker, mut pipe) = t.join_with_pipe();
            for n in 0..2 {
                say(&mut pipe.stream, &chunk(1, n * 64_000, 64_000));
            }
            vec![worker.stream, pipe.stream]
        },
    },
    Case {
        limit: "output_total_bytes_max",
        metrics: &[
            ("hostler_output_stored_bytes", 1.0),
            (
                r#"hostler_output_retired_bytes_total{limit="output_total_bytes_max"}"#,
                1.0,
            ),
        ],
        set: |config| config.limits.output_total_bytes_max = 1,
        reach: |t| t.fill_a_segment(),
    },
    Case {
        limit: "output_keep",
        metrics: &[(
            r#"hostler_output_retired_bytes_total{limit="output_keep"}"#,
            1.0,
        )],
        set: |config| config.limits.output_keep = Duration::ZERO,
        reach: |t| {
            t.submit(NOOP, 201);
            t.expect("DELETE", "/jobs/1", "", 200);
            t.fill_a_segment()
        },
    },
    Case {
        limit: "output_keep_failed",
        metrics: &[(
            r#"hostler_output_retired_bytes_total{limit="output_keep_failed"}"#,
            1.0,
        )],
        set: |config| config.limits.output_keep_failed = Duration::ZERO,
        reach: |t| t.fill_a_segment(),
    },
    Case {
        limit: "output_pending_bytes_max",
        metrics: &[
            ("hostler_output_pending_bytes", 0.0),
            ("hostler_output_pipes_held_total", 1.0),
        ],
        set: |config| config.limits.output_pending_bytes_max = 1,
        reach: |t| {
            let (worker, mut pipe) = t.join_with_pipe();
            for n in 0..100 {
                say(&mut pipe.stream, &chunk(1, n * 64_000, 64_000));
            }
            vec![worker.stream, pipe.stream]
        },
    },
    Case {
        limit: "HELLO_FRAME_BYTES_MAX",
        metrics: &[("hostler_worker_connections_refused_total", 1.0)],
        set: |_| {},
        reach: |t| {
            let mut stream = connect(t.workers);
            stream
                .write_all(&head_of_frame(HELLO_FRAME_BYTES_MAX + 1))
                .unwrap();
            vec![stream]
        },
    },
    Case {
        limit: "HANDSHAKE_FRAME_BYTES_MAX",
        metrics: &[("hostler_worker_connections_refused_total", 1.0)],
        set: |_| {},
        reach: |t| {
            let mut peer = Peer::new(t);
            peer.hello(t, Role::Control);
            let head = head_of_frame(HANDSHAKE_FRAME_BYTES_MAX + 1);
            peer.stream.write_all(&head).unwrap();
            vec![peer.stream]
        },
    },
    Case {
        limit: "FRAME_BYTES_MAX",
        metrics: &[("hostler_worker_connections_refused_total", 1.0)],
        set: |_| {},
        reach: |t| {
            let mut worker = t.join(1);
            let head = head_of_frame(FRAME_BYTES_MAX + 1);
            worker.stream.write_all(&head).unwrap();
            vec![worker.stream]
        },
    },
    Case {
        limit: "BATCH_ITEMS_MAX",
        metrics: &[("hostler_worker_connections_refused_total", 1.0)],
        set: |_| {},
        reach: |t| {
            let mut worker = t.join(1);
            let started = Frame::Started(Started {
                fences: vec![fence(1); BATCH_ITEMS_MAX],
            });
            let mut bytes = BytesMut::new();
            started.encode(&mut bytes);
            // The list begins with its length.
            let mut body = bytes.split_off(HEADER_BYTES);
            let length = u32::try_from(BATCH_ITEMS_MAX + 1).unwrap();
            body[..4].copy_from_slice(&length.to_le_bytes());
            let frame = raw_frame(started.kind(), 0, &body);
            worker.stream.write_all(&frame).unwrap();
            vec![worker.stream]
        },
    },
    Case {
        limit: "CHUNK_BYTES_MAX",
        metrics: &[("hostler_worker_connections_refused_total", 1.0)],
        set: |_| {},
        reach: |t| {
            let (worker, mut pipe) = t.join_with_pipe();
            let head = head_of_frame(CHUNK_BYTES_MAX + 1_025);
            pipe.stream.write_all(&head).unwrap();
            vec![worker.stream, pipe.stream]
        },
    },
    Case {
        limit: "BODY_BYTES_MAX",
        metrics: &[(r#"hostler_http_refused_total{code="invalid_job"}"#, 1.0)],
        set: |_| {},
        reach: |t| {
            let payload = "x".repeat(BODY_BYTES_MAX);
            let job = format!(r#"{{"handler":"noop","payload":"{payload}"}}"#);
            t.submit(&job, 422)
        },
    },
    Case {
        limit: "ARGS_MAX",
        metrics: &[(r#"hostler_http_refused_total{code="invalid_job"}"#, 2.0)],
        set: |_| {},
        reach: |t| {
            let argv = vec![r#""a""#; ARGS_MAX + 1].join(",");
            t.submit(&format!(r#"{{"command":[{argv}]}}"#), 422);
            let set = |n| format!(r#""V{n}":"x""#);
            let env = (0..=ARGS_MAX).map(set).collect::<Vec<_>>().join(",");
            t.submit(&format!(r#"{{"command":["a"],"env":{{{env}}}}}"#), 422)
        },
    },
    Case {
        limit: "a request's target",
        metrics: &[(r#"hostler_http_refused_total{code="uri_too_long"}"#, 1.0)],
        set: |_| {},
        reach: |t| t.expect("GET", &format!("/jobs?{}", "x".repeat(9 << 10)), "", 414),
    },
    Case {
        limit: "a request's head",
        metrics: &[(
            r#"hostler_http_refused_total{code="headers_too_large"}"#,
            2.0,
        )],
        set: |_| {},
        reach: |t| {
            for headers in [
                "x: y\r\n".repeat(200),
                format!("x: {}\r\n", "y".repeat(140 << 10)),
            ] {
                let mut stream = connect(t.http);
                let request = format!("GET /jobs HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n");
                // It may be refused, and closed, before all of it is sent.
                stream.write_all(request.as_bytes()).ok();
                let answer = rest(&mut stream);
                assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
            }
            Vec::new()
        },
    },
    Case {
        limit: "Idempotency-Key",
        metrics: &[(r#"hostler_http_refused_total{code="bad_header"}"#, 1.0)],
        set: |_| {},
        reach: |t| {
            let key = format!("\r\nidempotency-key: {}\r\nhost:", "k".repeat(256));
            let head = t.head("POST", "/jobs", NOOP.len());
            let mut stream = connect(t.http);
            let request = head.replacen("\r\nhost:", &key, 1) + NOOP;
            stream.write_all(request.as_bytes()).unwrap();
            assert!(rest(&mut stream).starts_with("HTTP/1.1 400 "));
            Vec::new()
        },
    },
    Case {
        limit: "?limit=",
        metrics: &[(r#"hostler_http_refused_total{code="bad_parameter"}"#, 1.0)],
        set: |_| {},
        reach: |t| t.expect("GET", "/jobs?limit=1001", "", 400),
    },
    Case {
        limit: "?tail=",
        metrics: &[(r#"hostler_http_refused_total{code="bad_parameter"}"#, 1.0)],
        set: |_| {},
        reach: |t| {
            t.submit(NOOP, 201);
            t.expect("GET", "/jobs/1/logs?tail=100001", "", 400)
        },
    },
    Case {
        limit: "wrong tokens of an address",
        metrics: &[(r#"hostler_http_refused_total{code="rate_limited"}"#, 1.0)],
        set: |_| {},
        reach: |t| {
            let head = t.head("GET", "/jobs", 0);
            let (before, _) = head.split_once("Bearer ").unwrap();
            let request = format!("{before}Bearer hst_none\r\nconnection: close\r\n\r\n");
            let ask = |_| {
                let mut stream = connect(t.http);
                stream.write_all(request.as_bytes()).unwrap();
                rest(&mut stream)
            };
            let is_limited = |answer: String| answer.starts_with("HTTP/1.1 429 ");
            assert!((0..100).map(ask).any(is_limited));
            Vec::new()
        },
    },
    Case {
        limit: "GET /metrics",
        metrics: &[("hostler_queues_omitted", 1.0)],
        set: |_| {},
        reach: |t| {
            let job = |queue| format!(r#"{{"handler":"noop","queue":"q-{queue}"}}"#);
            let jobs: Vec<String> = (0..257).map(job).collect();
            t.submit(&format!("[{}]", jobs.join(",")), 201)
        },
    },
    Case {
        limit: "hostler.db-wal",
        metrics: &[("hostler_wal_bytes", 1.0)],
        set: |_| {},
        reach: |t| t.submit(NOOP, 201),
    },
];

/// A whole server in a directory of its own.
struct Trial {
    http: SocketAddr,
    workers: SocketAddr,
    server: Option<Server>,
    dir: tempfile::TempDir,
    is_tls: bool,
}

impl Trial {
    fn start(set: fn(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::new(dir.path().to_path_buf());
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        (config.listen, config.worker_listen) = (any, any);
        set(&mut config);
        let is_tls = config.tls.is_some();
        let server = Server::start(config).unwrap();
        Self {
            http: server.http_addr(),
            workers: server.worker_addr(),
            server: Some(server),
            dir,
            is_tls,
        }
    }

    fn head(&self, method: &str, path: &str, length: usize) -> String {
        let token = fs::read_to_string(self.dir.path().join("admin.token")).unwrap();
        format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {length}\r\n\r\n",
            token.trim()
        )
    }

    /// One request on a connection of its own, and all of its answer.
    fn ask(&self, method: &str, path: &str, body: &str) -> String {
        let request = self.head(method, path, body.len()) + body;
        let mut stream = connect(self.http);
        let mut channel = Channel::plain();
        if self.is_tls {
            let files = ClientFiles {
                ca: Some(self.dir.path().join("server.pem")),
                ..ClientFiles::default()
            };
            let name = ServerName::try_from("localhost").unwrap();
            channel = Channel::client(files.load(Port::Http).unwrap(), name).unwrap();
        }
        let mut out = BytesMut::from(request.as_bytes());
        let (mut answer, mut room) = (BytesMut::new(), [0; 4_096]);
        loop {
            // A refusal may come, and the end with it, before all of it is sent.
            channel.write(&mut stream, &mut out).ok();
            match channel.read(&mut stream, &mut room, &mut answer) {
                Ok(taken) if taken.wire > 0 => {}
                _ => return String::from_utf8_lossy(&answer).into_owned(),
            }
        }
    }

    fn submit(&self, jobs: &str, status: u16) -> Vec<TcpStream> {
        self.expect("POST", "/jobs", jobs, status)
    }

    fn expect(&self, method: &str, path: &str, body: &str, status: u16) -> Vec<TcpStream> {
        let answer = self.ask(method, path, body);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{answer}"
        );
        Vec::new()
    }

    /// So many connections, and one too many, which is told so.
    fn crowd_http(&self, count: usize) -> Vec<TcpStream> {
        let mut all: Vec<_> = (0..count).map(|_| connect(self.http)).collect();
        // They are let in once they have been answered.
        for stream in &mut all {
            stream
                .write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
                .unwrap();
            assert!(stream.read(&mut [0; 4_096]).unwrap() > 0);
        }
        let refused = rest(&mut connect(self.http));
        assert!(refused.contains("too_many_connections"), "{refused}");
        Vec::new()
    }

    /// A worker that has joined.
    fn join(&self, slots: u32) -> Peer {
        let mut worker = Peer::new(self);
        worker.login(self, Role::Control, slots, None);
        worker
    }

    /// One that has an output socket too.
    fn join_with_pipe(&self) -> (Peer, Peer) {
        let (mut worker, mut pipe) = (Peer::new(self), Peer::new(self));
        let session = worker.login(self, Role::Control, 1, None);
        pipe.login(self, Role::Output, 1, Some(session));
        (worker, pipe)
    }

    /// Ends of so many attempts that the segment of output which is written is sealed: jobs 1 to that.
    fn fill_a_segment(&self) -> Vec<TcpStream> {
        const SEGMENT_ATTEMPTS_MAX: u64 = 16_384;
        let (worker, mut pipe) = self.join_with_pipe();
        let mut bytes = BytesMut::new();
        for job in 1..=SEGMENT_ATTEMPTS_MAX {
            let end = OutputEnd {
                fence: fence(job),
                stdout_bytes: 0,
                stderr_bytes: 0,
                dropped_bytes: 0,
            };
            Frame::OutputEnd(end).encode(&mut bytes);
        }
        pipe.stream.write_all(&bytes).unwrap();
        vec![worker.stream, pipe.stream]
    }

    /// Waits until the metric has come to that.
    fn await_metric(&self, metric: &str, least: f64) {
        let mut last = String::new();
        for _ in 0..400 {
            last = self.ask("GET", "/metrics", "");
            if value(&last, metric).is_some_and(|value| value >= least) {
                return;
            }
            std::thread::park_timeout(Duration::from_millis(50));
        }
        panic!(
            "{metric} did not come to {least}: {:?}",
            value(&last, metric)
        );
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.stopper().stop();
            server.wait().ok();
        }
    }
}

/// A connection to the worker port, and what came on it.
struct Peer {
    stream: TcpStream,
    decoder: Decoder,
}

impl Peer {
    fn new(t: &Trial) -> Self {
        let mut decoder = Decoder::new();
        decoder.accept_up_to(FRAME_BYTES_MAX);
        Self {
            stream: connect(t.workers),
            decoder,
        }
    }

    /// The first half of the handshake.
    fn hello(&mut self, t: &Trial, role: Role) -> (ClientHandshake, Challenge) {
        let text = fs::read_to_string(t.dir.path().join("worker.token")).unwrap();
        let token = Token::parse(text.trim()).unwrap();
        let (handshake, hello) = ClientHandshake::new(&token, role, [5; 32]);
        say(&mut self.stream, &Frame::Hello(hello));
        let Frame::Challenge(challenge) = self.hear() else {
            panic!("no challenge")
        };
        (handshake, challenge)
    }

    /// All of it.
    fn login(
        &mut self,
        t: &Trial,
        role: Role,
        slots: u32,
        session: Option<SessionId>,
    ) -> SessionId {
        let (handshake, challenge) = self.hello(t, role);
        let mut login = Login {
            proof: [0; 32],
            name: "w-1".into(),
            instance: 1,
            session,
            slots,
            commands: false,
            handlers: vec!["noop".into()],
            queues: vec!["default".into()],
            labels: Vec::new(),
            allocation: String::new(),
            held: Vec::new(),
            last_report: 0,
            epochs: Vec::new(),
        };
        handshake.login(&challenge, &mut login).unwrap();
        say(&mut self.stream, &Frame::Login(Box::new(login)));
        let Frame::Welcome(welcome) = self.hear() else {
            panic!("no welcome")
        };
        welcome.session
    }

    /// Takes the next job and says that it succeeded at once, with this result.
    fn succeed(&mut self, result: Vec<u8>) -> JobId {
        let fence = loop {
            if let Frame::Assign(assign) = self.hear() {
                break assign.jobs[0].fence;
            }
        };
        let detail = Detail {
            result,
            ..Detail::default()
        };
        let report = Report {
            fence,
            outcome: Outcome::Succeeded,
            cancelled: false,
            started: true,
            run_us: 10,
            detail: Some(Box::new(detail)),
        };
        let reports = Reports {
            first: 1,
            reports: vec![report],
        };
        say(&mut self.stream, &Frame::Reports(reports));
        fence.job
    }

    fn hear(&mut self) -> Frame {
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return frame;
            }
            let mut piece = [0; 4_096];
            let count = self.stream.read(&mut piece).unwrap();
            assert!(count > 0, "it was closed");
            self.decoder.buffer().extend_from_slice(&piece[..count]);
        }
    }
}

/// What the rows of a metric add up to.
fn value(text: &str, metric: &str) -> Option<f64> {
    let rows = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(metric)?;
        let is_it = rest.starts_with([' ', '{']);
        is_it.then(|| rest.rsplit(' ').next()?.parse::<f64>().ok())?
    });
    rows.fold(None, |sum, row| Some(sum.unwrap_or(0.0) + row))
}

fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// What still comes, to the end.
fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    // It may be reset: what came before that counts.
    stream.read_to_end(&mut bytes).ok();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn say(stream: &mut TcpStream, frame: &Frame) {
    let mut out = BytesMut::new();
    frame.encode(&mut out);
    stream.write_all(&out).unwrap();
}

/// The head of a frame whose body has so many bytes.
fn head_of_frame(bytes: usize) -> Vec<u8> {
    // What the length counts of the head itself.
    let length = u32::try_from(bytes + 8).unwrap();
    let mut head = length.to_le_bytes().to_vec();
    head.extend([Frame::KINDS[0].0, 0]);
    let [low, high, ..] = crc32fast::hash(&head).to_le_bytes();
    head.extend([low, high, 0, 0, 0, 0]);
    head
}

fn fence(job: u64) -> Fence {
    Fence {
        job: JobId::new(job).unwrap(),
        epoch: Epoch::new(1),
        attempt: Attempt::FIRST,
    }
}

fn chunk(job: u64, offset: u64, bytes: usize) -> Frame {
    Frame::Chunk(Chunk {
        fence: fence(job),
        stream: Stream::Stdout,
        offset,
        at_ms: 0,
        data: Bytes::from(vec![b'x'; bytes]),
    })
}

/// One that vouches for itself.
fn certificate(dir: &std::path::Path) -> ServerFiles {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let files = ServerFiles {
        cert: dir.join("server.pem"),
        key: dir.join("server.key"),
        client_ca: None,
    };
    fs::write(&files.cert, made.cert.pem()).unwrap();
    fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
    files
}

#[test]
fn each_limit_that_the_page_gives_a_metric_has_it_and_it_counts() {
    // They mostly wait, so several go at once.
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some(case) = CASES.get(next.fetch_add(1, Ordering::Relaxed)) {
            if catch_unwind(|| case.show()).is_err() {
                failed.lock().unwrap().push(case.limit);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..CASES_AT_ONCE {
            scope.spawn(work);
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn the_page_and_this_test_know_the_same_metrics() {
    let page = include_str!("../../docs/limits.md");
    let mut told = BTreeSet::new();
    for line in page.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let last = cells[cells.len() - 2];
        let metrics = last.split('`').filter(|text| text.starts_with("hostler_"));
        let limit = cells[1].split('`').nth(1).unwrap_or(cells[1]);
        told.extend(metrics.map(|metric| (limit, metric)));
    }
    let shown = CASES
        .iter()
        .flat_map(|case| case.metrics.iter().map(|(metric, _)| (case.limit, *metric)));
    assert_eq!(told, shown.collect());
}
