//! A real HTTP side between a raw socket and one thread that stands in for writer, reader, dispatch and output.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, mpsc};
use std::time::Duration;

use bytes::Bytes;
use hostler_engine::effect::CancelAnswer;
use hostler_engine::spec::{Class, ClassId};
use hostler_engine::{Counts, QueueView, WallTime};
use hostler_server::auth::{Auth, TokenChange};
use hostler_server::clock::Clock;
use hostler_server::config::Config;
use hostler_server::dispatch::{self, Ask, Glance, JobStatus, WorkerStatus};
use hostler_server::http::{self, Parts};
use hostler_server::mailbox::{Wake, mailbox};
use hostler_server::metrics::Health;
use hostler_server::net;
use hostler_server::output::{self, AttemptOutput, Output, Page, Piece, Read};
use hostler_server::store::reader::{self, Query};
use hostler_server::store::seam::{
    AttemptRecord, AuditEntry, AuditPage, AuditQuery, EndRecord, KeyRecord, ListPage, ListQuery,
    Lookup, Moment, Record, StoreError, Submission,
};
use hostler_server::store::writer::{self, Accepted, SubmitError, Write};
use hostler_wire::frame::{OutputEnd, Stream};
use hostler_wire::{Attempt, Epoch, Fence, JobId, JobState, Priority, Reason};
use serde_json::Value;
use tokio::sync::oneshot;

type End = (JobState, Reason);

/// What the stand-in knows; a test may change it at any time.
#[derive(Default)]
pub(crate) struct Fake {
    pub(crate) records: BTreeMap<u64, Record>,
    pub(crate) live: BTreeMap<u64, JobStatus>,
    pub(crate) cancels: BTreeMap<u64, CancelAnswer>,
    pub(crate) queues: Vec<QueueView>,
    pub(crate) notes: Vec<(u64, bool, Option<String>)>,
    pub(crate) purge_mark: u64,
    pub(crate) submissions: usize,
    pub(crate) keys: Vec<KeyRecord>,
    pub(crate) tokens: Vec<TokenChange>,
    pub(crate) audit: Vec<AuditEntry>,
    pub(crate) refuse_tokens: Option<StoreError>,
    pub(crate) refuse: Option<SubmitError>,
    pub(crate) output: BTreeMap<(u64, u16), Printed>,
    pub(crate) next: u64,
    waits: Vec<(JobId, oneshot::Sender<Option<End>>)>,
    reads: Vec<(Read, oneshot::Sender<Result<Page, output::ReadError>>)>,
    stop: bool,
}

#[derive(Default)]
pub(crate) struct Printed {
    pub(crate) pieces: Vec<Piece>,
    pub(crate) ended: Option<OutputEnd>,
    pub(crate) cut: u64,
}

pub(crate) struct World {
    pub(crate) fake: Arc<Mutex<Fake>>,
    pub(crate) address: SocketAddr,
    pub(crate) token: String,
    pub(crate) worker_token: String,
    pub(crate) health: Arc<Health>,
    pub(crate) auth: Arc<Auth>,
    http: Option<http::Handle>,
    _dir: tempfile::TempDir,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(|_config| {})
    }

    pub(crate) fn with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::new(dir.path().to_owned());
        change(&mut config);
        let auth = Arc::new(Auth::open(&config, &[]).unwrap());
        let text = |file| {
            std::fs::read_to_string(dir.path().join(file))
                .unwrap()
                .trim()
                .to_owned()
        };
        let fake = Arc::new(Mutex::new(Fake {
            next: 1,
            ..Fake::default()
        }));
        let handles = stand_in(&fake, config.limits.intake_bytes_max);
        let health = Arc::new(Health::default());
        health.set_ready();
        let parts = Parts {
            writer: handles.0,
            reader: handles.1,
            dispatch: handles.2,
            output: handles.3,
            net: handles.4,
            auth: Arc::clone(&auth),
            counters: Arc::default(),
            counts: Arc::default(),
            health: Arc::clone(&health),
            clock: Clock::resume(None),
            config: Arc::new(config),
            cluster: [0xab; 16],
            epoch: Epoch::new(7),
            tls: None,
        };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let http = http::spawn(listener, parts, 1).unwrap();
        Self {
            fake,
            address: http.address(),
            token: text("admin.token"),
            worker_token: text("worker.token"),
            health,
            auth,
            http: Some(http),
            _dir: dir,
        }
    }

    pub(crate) fn fake(&self) -> MutexGuard<'_, Fake> {
        self.fake.lock().unwrap()
    }

    /// Waits until that holds.
    pub(crate) fn eventually(&self, holds: impl Fn(&Fake) -> bool) {
        for _ in 0..2_000 {
            if holds(&self.fake()) {
                return;
            }
            std::thread::park_timeout(Duration::from_millis(5));
        }
        panic!("it never came to that");
    }

    pub(crate) fn connect(&self) -> Client {
        Client::new(self)
    }

    /// One request on a connection of its own.
    pub(crate) fn ask(&self, method: &str, path: &str) -> Answer {
        self.connect().ask(method, path, &[], b"")
    }

    pub(crate) fn post(&self, body: &str) -> Answer {
        let json = [("content-type", "application/json")];
        self.connect().ask("POST", "/jobs", &json, body.as_bytes())
    }

    pub(crate) fn stop(&self, within: Duration) {
        self.http.as_ref().unwrap().stop(within);
    }

    pub(crate) fn join(&mut self) {
        self.http.take().unwrap().join();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(http) = self.http.take() {
            http.stop(Duration::ZERO);
            http.join();
        }
        if let Ok(mut fake) = self.fake.lock() {
            fake.stop = true;
        }
    }
}

pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    token: String,
    read: Vec<u8>,
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    pub(crate) fn code(&self) -> String {
        self.json()["code"].as_str().unwrap_or_default().to_owned()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (other, value) = line.split_once(": ")?;
            other.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

impl Client {
    pub(crate) fn new(world: &World) -> Self {
        let stream = TcpStream::connect(world.address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            token: world.token.clone(),
            read: Vec::new(),
        }
    }

    pub(crate) fn head(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        length: Option<usize>,
    ) -> String {
        let mut head = format!("{method} {path} HTTP/1.1\r\n");
        let given = |name: &str| {
            headers
                .iter()
                .any(|(other, _)| other.eq_ignore_ascii_case(name))
        };
        if !given("host") {
            head.push_str("host: localhost\r\n");
        }
        if !given("authorization") {
            head.push_str(&format!("authorization: Bearer {}\r\n", self.token));
        }
        for (name, value) in headers.iter().filter(|(_, value)| *value != "-") {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if let Some(length) = length {
            head.push_str(&format!("content-length: {length}\r\n"));
        }
        head + "\r\n"
    }

    pub(crate) fn ask(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Answer {
        let length = (!body.is_empty() || method == "POST").then_some(body.len());
        let head = self.head(method, path, headers, length);
        self.send(head.as_bytes());
        self.send(body);
        self.answer(method == "HEAD")
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        // A server that has closed already has answered before.
        drop(self.stream.write_all(bytes));
    }

    /// The next whole answer.
    pub(crate) fn answer(&mut self, is_head: bool) -> Answer {
        let head = self.until(b"\r\n\r\n").expect("an answer");
        self.rest(head, is_head)
    }

    /// The next whole answer, if one comes.
    pub(crate) fn try_answer(&mut self) -> Option<Answer> {
        let head = self.until(b"\r\n\r\n")?;
        Some(self.rest(head, false))
    }

    fn rest(&mut self, head: Vec<u8>, is_head: bool) -> Answer {
        let head = String::from_utf8(head).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let mut answer = Answer {
            status,
            head,
            body: Vec::new(),
        };
        if is_head || status == 204 || status == 304 {
            return answer;
        }
        if answer.header("transfer-encoding").is_some() {
            while let Some(piece) = self.chunk() {
                answer.body.extend(piece);
            }
        } else {
            let length = answer.header("content-length").unwrap().parse().unwrap();
            answer.body = self.exactly(length).expect("the whole body");
        }
        answer
    }

    /// The head of an answer whose pieces come one by one; its status.
    pub(crate) fn streaming_head(&mut self) -> u16 {
        let head = String::from_utf8(self.until(b"\r\n\r\n").expect("a head")).unwrap();
        head.split(' ').nth(1).unwrap().parse().unwrap()
    }

    /// The next chunk; none after the last. Panics if the connection breaks off.
    pub(crate) fn chunk(&mut self) -> Option<Vec<u8>> {
        let line = self.until(b"\r\n").expect("a chunk's length");
        let text = String::from_utf8(line).unwrap();
        let length = usize::from_str_radix(text.trim(), 16).unwrap();
        let mut piece = self.exactly(length + 2).expect("a whole chunk");
        piece.truncate(length);
        (length > 0).then_some(piece)
    }

    fn until(&mut self, end: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self
                .read
                .windows(end.len())
                .position(|window| window == end)
            {
                return Some(self.read.drain(..at + end.len()).collect());
            }
            self.more()?;
        }
    }

    fn exactly(&mut self, length: usize) -> Option<Vec<u8>> {
        while self.read.len() < length {
            self.more()?;
        }
        Some(self.read.drain(..length).collect())
    }

    fn more(&mut self) -> Option<()> {
        let mut buffer = [0; 65_536];
        match self.stream.read(&mut buffer) {
            // A fuzzer's alarm.
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => Some(()),
            Ok(0) | Err(_) => None,
            Ok(n) => {
                self.read.extend_from_slice(&buffer[..n]);
                Some(())
            }
        }
    }

    /// The connection ends without another byte.
    pub(crate) fn is_closed(&mut self) -> bool {
        let mut buffer = [0; 1];
        self.read.is_empty() && !matches!(self.stream.read(&mut buffer), Ok(1))
    }
}

type Handles = (
    writer::Handle,
    reader::Handle,
    dispatch::Handle,
    output::Handle,
    net::Handle,
);

fn stand_in(fake: &Arc<Mutex<Fake>>, intake_bytes_max: usize) -> Handles {
    let fake = Arc::clone(fake);
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        let wake = Wake::parking();
        let (writes, write) = mailbox(&wake);
        let (queries, query) = mailbox(&wake);
        let (messages, _message) = mailbox::<dispatch::Message>(&wake);
        let (asks, ask) = mailbox(&wake);
        let (outputs, output) = mailbox(&wake);
        let (posts, _post) = mailbox(&wake);
        let handles = (
            writer::Handle::new(writes, intake_bytes_max),
            reader::Handle::new(queries),
            dispatch::Handle::new(messages, asks),
            output::Handle::new(outputs),
            net::Handle::new(posts),
        );
        tell.send(handles).unwrap();
        let (mut w, mut q, mut a, mut o) = (vec![], vec![], vec![], vec![]);
        while !fake.lock().unwrap().stop {
            write.drain(&mut w, 100);
            query.drain(&mut q, 100);
            ask.drain(&mut a, 100);
            output.drain(&mut o, 100);
            {
                let mut fake = fake.lock().unwrap();
                a.drain(..).for_each(|ask| fake.on_ask(ask));
                w.drain(..).for_each(|write| fake.on_write(write));
                q.drain(..).for_each(|query| fake.on_query(query));
                o.drain(..).for_each(|output| fake.on_output(output));
                fake.look_again();
            }
            wake.sleep(Some(Duration::from_millis(5)), || {
                write.is_empty() && query.is_empty() && ask.is_empty() && output.is_empty()
            });
        }
    });
    told.recv().unwrap()
}

impl Fake {
    fn on_write(&mut self, write: Write) {
        match write {
            Write::Submit { submission, reply } => reply.send(self.submit(submission)),
            Write::Purge { job, reply } => {
                self.records.get_mut(&job.raw()).unwrap().body = None;
                tell(reply, Ok(()));
            }
            Write::Token {
                change,
                entry,
                reply,
            } => {
                self.tokens.push(change);
                self.audit.push(entry);
                tell(reply, self.refuse_tokens.clone().map_or(Ok(()), Err));
            }
            Write::Used(change) => self.tokens.push(change),
            Write::Note(entry) => self.audit.push(entry),
            Write::Facts { .. } | Write::Stop => {}
        }
    }

    fn submit(&mut self, submission: Submission) -> Result<Accepted, SubmitError> {
        self.submissions += 1;
        if let Some(error) = self.refuse.clone() {
            return Err(error);
        }
        let first = JobId::new(self.next).unwrap();
        let count = u32::try_from(submission.jobs.len()).unwrap();
        if let Some((key, body_hash)) = submission.key {
            if let Some(old) = self.keys.iter().find(|old| old.key == key) {
                if old.body_hash != body_hash {
                    return Err(SubmitError::KeyReused(Box::new(old.clone())));
                }
                return Ok(Accepted {
                    first: old.first,
                    count: old.count,
                    replayed: true,
                });
            }
            self.keys.push(KeyRecord {
                token: submission.by.clone(),
                key,
                body_hash,
                first,
                count,
                at: hostler_engine::Time::ZERO,
            });
        }
        let classes: Vec<_> = (0..)
            .zip(submission.classes)
            .map(|(n, spec)| {
                Arc::new(Class {
                    id: ClassId::new(n),
                    spec,
                })
            })
            .collect();
        for draft in submission.jobs {
            let id = JobId::new(self.next).unwrap();
            self.next += 1;
            let wall = |moment: Option<Moment>| {
                moment.map(|moment| match moment {
                    Moment::In(span) => WallTime::from_millis(1_000 + span.millis()),
                    Moment::At(at) => at,
                })
            };
            self.records.insert(
                id.raw(),
                Record {
                    id,
                    class: Arc::clone(&classes[draft.class as usize]),
                    priority: draft.priority,
                    name: draft.name,
                    labels: draft.labels,
                    created: WallTime::from_millis(1_000),
                    by: submission.by.as_ref().into(),
                    due: wall(draft.due),
                    expires: wall(draft.expires),
                    deadline: wall(draft.deadline),
                    sync: draft.sync,
                    retry_of: draft.retry_of,
                    body: Some(draft.body),
                    attempts: Vec::new(),
                    end: None,
                },
            );
        }
        Ok(Accepted {
            first,
            count,
            replayed: false,
        })
    }

    fn on_query(&self, query: Query) {
        match query {
            Query::Job { id, reply } => {
                let answer = match self.records.get(&id.raw()) {
                    Some(record) => Lookup::Found(Box::new(record.clone())),
                    None if id.raw() <= self.purge_mark => Lookup::Purged,
                    None => Lookup::Never,
                };
                tell(reply, Ok(answer));
            }
            Query::Ends { jobs, reply } => {
                let end = |id: &JobId| {
                    let end = self.records.get(&id.raw())?.end.as_ref()?;
                    Some((*id, end.state, end.attempt.reason))
                };
                tell(reply, Ok(jobs.iter().filter_map(end).collect()));
            }
            Query::List { query, reply } => tell(reply, Ok(self.list(&query))),
            Query::Audit { query, reply } => tell(reply, Ok(self.audit_page(&query))),
            Query::Bodies { .. } | Query::Stop => {}
        }
    }

    fn audit_page(&self, query: &AuditQuery) -> AuditPage {
        let below = query.below.unwrap_or(u64::MAX);
        let mut entries: Vec<_> = (1..).zip(self.audit.iter().cloned()).collect();
        entries.retain(|(n, _)| *n < below);
        entries.reverse();
        let more = entries.len() > query.limit;
        entries.truncate(query.limit);
        let next = more.then(|| entries.last().unwrap().0);
        AuditPage { entries, next }
    }

    fn list(&self, query: &ListQuery) -> ListPage {
        let mut all: Vec<_> = self
            .records
            .values()
            .filter(|record| {
                query.states.is_empty()
                    || record
                        .end
                        .as_ref()
                        .is_some_and(|end| query.states.contains(&end.state))
            })
            .filter(|record| {
                let queue = &record.class.spec.queue;
                query.queues.is_empty() || query.queues.iter().any(|one| **one == **queue)
            })
            .filter(|record| match query.after {
                Some(after) if query.descending => record.id < after,
                Some(after) => record.id > after,
                None => true,
            })
            .cloned()
            .collect();
        if query.descending {
            all.reverse();
        }
        let more = all.len() > query.limit;
        all.truncate(query.limit);
        let next = more.then(|| all.last().unwrap().id);
        ListPage { records: all, next }
    }

    fn on_ask(&mut self, ask: Ask) {
        match ask {
            Ask::State { job, live, reply } => {
                let mut status = self.live.get(&job.raw()).cloned().map(Box::new);
                if let Some(status) = &mut status
                    && !live
                {
                    status.live = None;
                }
                tell(reply, status);
            }
            Ask::States { jobs, reply } => {
                let all = jobs
                    .iter()
                    .filter_map(|id| self.live.get(&id.raw()).cloned());
                tell(reply, all.collect());
            }
            Ask::List {
                states,
                queues,
                after,
                descending,
                limit,
                reply,
            } => {
                let mut all: Vec<_> = self
                    .live
                    .values()
                    .filter(|status| states.contains(&status.state))
                    .filter(|status| {
                        queues.is_empty() || queues.iter().any(|one| **one == *status.queue)
                    })
                    .filter(|status| match after {
                        Some(after) if descending => status.id < after,
                        Some(after) => status.id > after,
                        None => true,
                    })
                    .cloned()
                    .collect();
                if descending {
                    all.reverse();
                }
                let more = all.len() > limit;
                all.truncate(limit);
                let next = more.then(|| all.last().unwrap().id);
                tell(reply, (all, next));
            }
            Ask::Cancel {
                job,
                force,
                note,
                reply,
            } => {
                self.notes.push((job.raw(), force, note.map(String::from)));
                let answer = self.cancels.get(&job.raw()).copied();
                tell(reply, answer.unwrap_or(CancelAnswer::Unknown));
            }
            Ask::Wait { job, reply } => {
                if self.live.contains_key(&job.raw()) {
                    self.waits.push((job, reply));
                } else {
                    tell(reply, None);
                }
            }
            Ask::Workers { reply } => tell(
                reply,
                vec![WorkerStatus {
                    name: "w-1".into(),
                    connected: true,
                    draining: false,
                    slots: 2,
                    held: 1,
                    last_heard_ms: 12,
                    queues: vec!["default".into()],
                    labels: vec![("zone".into(), "a".into())],
                }],
            ),
            Ask::Lives { jobs, reply } => {
                let found = jobs.iter().filter_map(|id| {
                    let live = self.live.get(&id.raw())?.live.clone()?;
                    Some((*id, live))
                });
                tell(reply, found.collect());
            }
            Ask::Glance { reply } => tell(
                reply,
                Glance {
                    counts: Counts {
                        queued: 3,
                        ..Counts::default()
                    },
                    queues: self.queues.clone(),
                    probes: 5,
                    ..Glance::default()
                },
            ),
        }
    }

    fn on_output(&mut self, output: Output) {
        match output {
            Output::Read { read, reply } => self.reads.push((read, reply)),
            Output::Attempts { job, reply } => {
                let all = self.output.iter().filter(|((id, _), _)| *id == job.raw());
                let all = all.map(|((_, attempt), printed)| AttemptOutput {
                    attempt: *attempt,
                    epoch: Epoch::new(7),
                    stdout_bytes: 0,
                    stderr_bytes: 0,
                    ended: printed.ended.is_some(),
                });
                tell(reply, all.collect());
            }
            Output::Purge { job, reply } => {
                self.output.retain(|(id, _), _| *id != job.raw());
                tell(reply, ());
            }
            Output::Frames { .. } | Output::PipeClosed { .. } | Output::Stop => {}
        }
    }

    /// Answers whoever waited for something that is there now.
    fn look_again(&mut self) {
        for (read, reply) in std::mem::take(&mut self.reads) {
            let page = self.page(&read);
            if read.wait && page.pieces.is_empty() && page.ended.is_none() && !reply.is_closed() {
                self.reads.push((read, reply));
            } else {
                tell(reply, Ok(page));
            }
        }
        for (job, reply) in std::mem::take(&mut self.waits) {
            let end = self
                .records
                .get(&job.raw())
                .and_then(|record| record.end.as_ref());
            match end {
                Some(end) => tell(reply, Some((end.state, end.attempt.reason))),
                None => self.waits.push((job, reply)),
            }
        }
    }

    fn page(&self, read: &Read) -> Page {
        let latest = self
            .output
            .keys()
            .filter(|(id, _)| *id == read.job.raw())
            .map(|(_, n)| *n)
            .max();
        let attempt = read.attempt.or(latest).unwrap_or(0);
        let Some(printed) = self.output.get(&(read.job.raw(), attempt)) else {
            return Page {
                next: read.from,
                ..Page::default()
            };
        };
        let chosen = printed
            .pieces
            .iter()
            .filter(|piece| read.stream.is_none_or(|s| s == piece.stream));
        let (mut at, mut room) = (0, read.max as u64);
        let mut pieces = Vec::new();
        for piece in chosen {
            let length = piece.data.len() as u64;
            let skip = read.from.saturating_sub(at).min(length);
            let take = (length - skip).min(room);
            if take > 0 {
                let (from, to) = (
                    usize::try_from(skip).unwrap(),
                    usize::try_from(skip + take).unwrap(),
                );
                pieces.push(Piece {
                    offset: piece.offset + skip,
                    at: at + skip,
                    data: piece.data.slice(from..to),
                    ..piece.clone()
                });
                room -= take;
            }
            at += length;
        }
        let taken: u64 = pieces.iter().map(|piece| piece.data.len() as u64).sum();
        Page {
            attempt,
            next: read.from + taken,
            stored: at,
            ended: printed.ended.filter(|_| read.from + taken >= at),
            cut: printed.cut,
            pieces,
        }
    }

    /// Somebody waits for more output than there is.
    pub(crate) fn awaits_output(&self) -> bool {
        !self.reads.is_empty()
    }

    /// A live job, in that state.
    pub(crate) fn set_live(&mut self, id: u64, state: JobState) -> &mut JobStatus {
        let status = JobStatus {
            id: JobId::new(id).unwrap(),
            state,
            reason: Reason::None,
            due: None,
            queue: "default".into(),
            priority: Priority::NORMAL,
            attempt: u16::from(state == JobState::Running),
            failures: 0,
            max_attempts: 1,
            worker: (state == JobState::Running).then(|| "w-1".into()),
            worker_connected: state == JobState::Running,
            started: None,
            live: None,
        };
        self.live.insert(id, status);
        self.live.get_mut(&id).unwrap()
    }

    /// The job's end, committed.
    pub(crate) fn end(&mut self, id: u64, state: JobState, reason: Reason) -> &mut AttemptRecord {
        self.live.remove(&id);
        let record = self.records.get_mut(&id).unwrap();
        record.end = Some(EndRecord {
            state,
            attempt: AttemptRecord {
                number: 1,
                epoch: Epoch::new(7),
                reason,
                worker: Some("w-1".into()),
                started: Some(WallTime::from_millis(2_000)),
                finished: WallTime::from_millis(3_000),
                detail: None,
            },
        });
        &mut record.end.as_mut().unwrap().attempt
    }

    /// The job prints something.
    pub(crate) fn print(&mut self, id: u64, attempt: u16, stream: Stream, at_ms: u64, data: &[u8]) {
        let printed = self.output.entry((id, attempt)).or_default();
        let before = printed.pieces.iter().filter(|piece| piece.stream == stream);
        let offset = before.map(|piece| piece.data.len() as u64).sum();
        printed.pieces.push(Piece {
            stream,
            offset,
            at: 0, // set as it is read
            at_ms,
            data: Bytes::copy_from_slice(data),
        });
    }

    /// It will print nothing more.
    pub(crate) fn end_output(&mut self, id: u64, attempt: u16) {
        self.output.entry((id, attempt)).or_default().ended = Some(OutputEnd {
            fence: Fence {
                job: JobId::new(id).unwrap(),
                epoch: Epoch::new(7),
                attempt: Attempt::new(attempt).unwrap(),
            },
            stdout_bytes: 0,
            stderr_bytes: 0,
            dropped_bytes: 0,
        });
    }
}

/// Answers; whoever asked may have gone.
fn tell<T>(reply: oneshot::Sender<T>, answer: T) {
    reply.send(answer).ok();
}
