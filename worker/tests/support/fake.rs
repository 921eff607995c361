//! A server played by the test: real sockets, real handshake, real frames, and no rules of its own.

#![expect(
    clippy::unwrap_used,
    reason = "this is a test, though clippy sees a module of its own"
)]
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a test names the frames it waits for"
)]

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hostler_wire::decoder::Decoder;
use hostler_wire::frame::{
    Ack, Assign, Assignment, Command, Frame, Handler, Login, Logs, LogsMode, OnPartition,
    OutputAck, OutputEnd, Overflow, Report, Resumed, Role, Stream, Task, Welcome, Work,
};
use hostler_wire::handshake::{Identity, ServerHandshake, Verifier};
use hostler_wire::limits::FRAME_BYTES_MAX;
use hostler_wire::{Attempt, Epoch, Fence, JobId, SessionId};
use hostler_worker::{Exit, Stopper, Token, Worker, WorkerError};

/// Nothing here takes longer, unless it never comes.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct FakeServer {
    listener: TcpListener,
    pub(crate) token: Token,
    sessions: std::cell::Cell<u64>,
}

/// One connection of a worker.
pub(crate) struct Conn {
    stream: TcpStream,
    decoder: Decoder,
    pub(crate) login: Login,
    seq: u64,
}

/// A worker on a thread of the test; dropped, it is stopped.
pub(crate) struct RunningWorker {
    stopper: Stopper,
    thread: Option<JoinHandle<Result<Exit, WorkerError>>>,
}

impl FakeServer {
    pub(crate) fn new() -> Self {
        let token = Token {
            role: "worker".to_owned(),
            id: "abcdefgh".to_owned(),
            secret: [9; 32],
        };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Self {
            listener,
            token,
            sessions: std::cell::Cell::new(0),
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    pub(crate) fn worker(&self) -> Worker {
        let address = self.address().to_string();
        Worker::connect([address])
            .token(&self.token.to_string())
            .name("w-1")
            .commands()
            .without_signals()
    }

    /// The next connection, which must be of that role, welcomed.
    pub(crate) fn accept(&self, role: Role) -> Conn {
        let (stream, _) = self.listener.accept().unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let login = Login {
            proof: [0; 32],
            name: String::new(),
            instance: 0,
            session: None,
            slots: 0,
            commands: false,
            handlers: Vec::new(),
            queues: Vec::new(),
            labels: Vec::new(),
            allocation: String::new(),
            held: Vec::new(),
            last_report: 0,
            epochs: Vec::new(),
        };
        let mut conn = Conn {
            stream,
            decoder: Decoder::new(),
            login,
            seq: 0,
        };
        conn.decoder.accept_up_to(FRAME_BYTES_MAX);
        let identity = Identity {
            cluster: [1; 16],
            epoch: Epoch::new(5),
            epoch_nonce: [5; 16],
        };
        let Frame::Hello(hello) = conn.next() else {
            panic!("no hello")
        };
        assert_eq!(hello.role, role);
        let verifier = Verifier::new(&self.token);
        let (handshake, challenge) =
            ServerHandshake::new(identity, &hello, Some(&verifier), [3; 32]).unwrap();
        conn.send(&Frame::Challenge(challenge));
        let Frame::Login(login) = conn.next() else {
            panic!("no login")
        };
        handshake.login(&login).unwrap();
        conn.login = *login;
        self.sessions.set(self.sessions.get() + 1);
        conn.send(&Frame::Welcome(Welcome {
            session: SessionId::new(self.sessions.get()),
            beat_ms: 500,
            grace_ms: 10_000,
            result_bytes_max: 1_000,
        }));
        conn
    }

    /// The next control connection, resumed with nothing void.
    pub(crate) fn control(&self) -> Conn {
        let mut conn = self.accept(Role::Control);
        conn.send(&Frame::Resumed(Resumed {
            acked: 0,
            void: Vec::new(),
        }));
        conn
    }
}

impl Conn {
    pub(crate) fn send(&mut self, frame: &Frame) {
        let mut out = BytesMut::new();
        frame.encode(&mut out);
        self.stream.write_all(&out).unwrap();
    }

    pub(crate) fn assign(&mut self, jobs: impl IntoIterator<Item = (u64, Work)>) {
        self.seq += 1;
        let jobs = jobs.into_iter();
        let jobs = jobs.map(|(job, work)| Assignment {
            fence: fence(job),
            body: work.encode(),
        });
        let seq = self.seq;
        self.send(&Frame::Assign(Assign {
            seq,
            jobs: jobs.collect(),
        }));
    }

    /// The next frame that is no beat; beats are answered.
    pub(crate) fn next(&mut self) -> Frame {
        let mut buffer = [0; 64 << 10];
        loop {
            match self.decoder.next_frame().unwrap() {
                Some(Frame::Beat(beat)) => self.send(&Frame::Beat(beat)),
                Some(frame) => return frame,
                None => {
                    let n = match self.stream.read(&mut buffer) {
                        Ok(n) => n,
                        Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                        Err(error) => panic!("nothing comes: {error}"),
                    };
                    assert!(n > 0, "the worker closed the connection");
                    self.decoder.buffer().extend_from_slice(&buffer[..n]);
                }
            }
        }
    }

    /// Passes over `Started` and takes one report, which is acknowledged.
    pub(crate) fn report(&mut self) -> Report {
        loop {
            match self.next() {
                Frame::Started(_) => {}
                Frame::Reports(mut reports) => {
                    assert_eq!(reports.reports.len(), 1, "one at a time");
                    self.send(&Frame::Ack(Ack {
                        through: reports.first,
                    }));
                    return reports.reports.remove(0);
                }
                frame => panic!("{frame:?} instead of a report"),
            }
        }
    }

    /// The first that comes of an attempt on an output connection.
    pub(crate) fn output_start(&mut self, job: u64) -> Logs {
        match self.next() {
            Frame::OutputStart(start) => {
                assert_eq!(start.fence, fence(job));
                start.logs
            }
            frame => panic!("{frame:?} before the start of an attempt's output"),
        }
    }

    /// Everything one attempt printed, put together by its offsets, and its end, which is acknowledged.
    pub(crate) fn output(&mut self, job: u64) -> (Vec<u8>, Vec<u8>, OutputEnd) {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        self.output_start(job);
        loop {
            match self.next() {
                Frame::Chunk(chunk) => {
                    assert_eq!(chunk.fence, fence(job));
                    let whole = match chunk.stream {
                        Stream::Stdout => &mut stdout,
                        Stream::Stderr => &mut stderr,
                    };
                    assert_eq!(chunk.offset, whole.len() as u64, "no gap and no overlap");
                    whole.extend_from_slice(&chunk.data);
                    self.output_ack(job, stdout.len(), stderr.len(), false);
                }
                Frame::OutputEnd(end) => {
                    assert_eq!(end.fence, fence(job));
                    self.output_ack(job, stdout.len(), stderr.len(), true);
                    return (stdout, stderr, end);
                }
                frame => panic!("{frame:?} on the output connection"),
            }
        }
    }

    pub(crate) fn output_ack(&mut self, job: u64, stdout: usize, stderr: usize, ended: bool) {
        let (stdout_through, stderr_through) = (stdout as u64, stderr as u64);
        self.send(&Frame::OutputAck(OutputAck {
            fence: fence(job),
            stdout_through,
            stderr_through,
            ended,
        }));
    }

    pub(crate) fn cut(self) {
        // The worker may have been faster.
        drop(self.stream.shutdown(Shutdown::Both));
    }
}

impl RunningWorker {
    pub(crate) fn start(worker: Worker) -> Self {
        let stopper = worker.stopper();
        Self {
            stopper,
            thread: Some(std::thread::spawn(|| worker.run())),
        }
    }

    pub(crate) fn stop(&self) {
        self.stopper.stop();
    }

    pub(crate) fn join(&mut self) -> Result<Exit, WorkerError> {
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for RunningWorker {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.stopper.stop();
            self.stopper.stop();
            drop(thread.join());
        }
    }
}

pub(crate) fn fence(job: u64) -> Fence {
    Fence {
        job: JobId::new(job).unwrap(),
        epoch: Epoch::new(5),
        attempt: Attempt::FIRST,
    }
}

pub(crate) fn command(argv: &[&str]) -> Work {
    let argv = argv.iter().map(|&argument| argument.to_owned()).collect();
    let task = Task::Command(Command {
        argv,
        env: Vec::new(),
        cwd: None,
        stdin: None,
    });
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
        task,
    }
}

pub(crate) fn shell(script: &str) -> Work {
    command(&["sh", "-c", script])
}

pub(crate) fn handler(name: &str, payload: &str) -> Work {
    let payload = Bytes::copy_from_slice(payload.as_bytes());
    Work {
        task: Task::Handler(Handler {
            name: name.to_owned(),
            payload,
        }),
        ..command(&["-"])
    }
}
