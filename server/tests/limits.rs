//! Limits of a whole server, each reached once: the metric that `docs/limits.md` gives it is there, and counts.

#![expect(clippy::unwrap_used, reason = "this is a test, helpers and all")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use bytes::BytesMut;
use hostler_server::{Config, Server};
use hostler_tls::{Channel, ClientFiles, Port, ServerFiles, ServerName};
use hostler_wire::decoder::Decoder;
use hostler_wire::frame::{Frame, Login, Role};
use hostler_wire::handshake::ClientHandshake;
use hostler_wire::limits::FRAME_BYTES_MAX;
use hostler_wire::token::Token;

const PATIENCE: Duration = Duration::from_secs(20);
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
            let worker = t.join();
            rest(&mut connect(t.workers));
            vec![worker]
        },
    },
    Case {
        limit: "worker_connections_per_address_max",
        metrics: &[("hostler_worker_connections_refused_total", 1.0)],
        set: |config| config.limits.worker_connections_per_address_max = 1,
        reach: |t| {
            let worker = t.join();
            rest(&mut connect(t.workers));
            vec![worker]
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
            let worker = t.join();
            for _ in 0..6 {
                t.submit(&jobs, 201);
            }
            vec![worker]
        },
    },
    Case {
        limit: "output_pending_bytes_max",
        // `net.rs` has output that nobody takes.
        metrics: &[("hostler_output_pending_bytes", 0.0)],
        set: |_| {},
        reach: |_| Vec::new(),
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
        let answer = self.ask("POST", "/jobs", jobs);
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

    /// A worker that has joined, and reads nothing more.
    fn join(&self) -> TcpStream {
        let text = fs::read_to_string(self.dir.path().join("worker.token")).unwrap();
        let token = Token::parse(text.trim()).unwrap();
        let mut stream = connect(self.workers);
        let mut decoder = Decoder::new();
        decoder.accept_up_to(FRAME_BYTES_MAX);
        let (handshake, hello) = ClientHandshake::new(&token, Role::Control, [5; 32]);
        say(&mut stream, &Frame::Hello(hello));
        let Frame::Challenge(challenge) = hear(&mut stream, &mut decoder) else {
            panic!("no challenge")
        };
        let mut login = Login {
            proof: [0; 32],
            name: "w-1".into(),
            instance: 1,
            session: None,
            slots: 1_000,
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
        say(&mut stream, &Frame::Login(Box::new(login)));
        let welcome = hear(&mut stream, &mut decoder);
        assert!(matches!(welcome, Frame::Welcome(_)), "{welcome:?}");
        stream
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
        panic!("{metric} did not come to {least}: {last}");
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

fn hear(stream: &mut TcpStream, decoder: &mut Decoder) -> Frame {
    loop {
        if let Some(frame) = decoder.next_frame().unwrap() {
            return frame;
        }
        let mut piece = [0; 4_096];
        let count = stream.read(&mut piece).unwrap();
        assert!(count > 0, "it was closed");
        decoder.buffer().extend_from_slice(&piece[..count]);
    }
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
    for case in CASES {
        eprintln!("{}", case.limit);
        let t = Trial::start(case.set);
        let held = (case.reach)(&t);
        for (metric, least) in case.metrics {
            t.await_metric(metric, *least);
        }
        drop(held);
    }
}

#[test]
fn the_page_and_this_test_know_the_same_metrics() {
    let page = include_str!("../../docs/limits.md");
    let mut told = BTreeSet::new();
    for line in page.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let last = cells[cells.len() - 2];
        let metrics = last.split('`').filter(|text| text.starts_with("hostler_"));
        let limit = cells[1].split('`').nth(1).unwrap_or_default();
        told.extend(metrics.map(|metric| (limit, metric)));
    }
    let shown = CASES
        .iter()
        .flat_map(|case| case.metrics.iter().map(|(metric, _)| (case.limit, *metric)));
    assert_eq!(told, shown.collect());
}
