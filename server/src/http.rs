//! HTTP: the intake of jobs and the answers about them.
//!
//! A few threads, each with a runtime of its own on the same listener, hyper on top. Whatever lies behind an endpoint is
//! another thread, reached by its mailbox and answered by a oneshot: an endpoint waits, its thread does not. Every
//! request passes the guard, then shows its access token, then finds its endpoint; every refusal is a problem
//! (RFC 9457) made in one place. A panic in a request is its 500 and the end of its connection, nothing more.
//!
//! Keeps P7: connections, heads, bodies, waits and answers to slow readers are bounded in number, size or time, each
//! with its clear refusal. And P1's visible half: a 2xx to a submission leaves after the writer's answer.
//!
//! Not here: SQL (`store`), scheduling (`engine`), worker sockets (`net`).

mod audit;
mod body;
mod conn;
mod crowd;
mod guard;
mod intake;
mod jobs;
mod logs;
#[cfg(test)]
mod openapi;
mod ops;
mod params;
mod problem;
mod query;
mod route;
mod scrape;
mod stream;
mod tokens;

use std::convert::Infallible;
use std::error::Error as _;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::Duration;

use hostler_tls::Live;
use hostler_wire::Epoch;
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::{Notify, oneshot, watch};

use crate::auth::{Auth, Bearer};
use crate::clock::Clock;
use crate::config::Config;
use crate::http::body::Body;
use crate::http::conn::{Conn, Socket};
use crate::http::crowd::{Crowd, Full};
use crate::http::problem::{Code, Refusal};
use crate::http::stream::{Begun, Stream, Tls};
use crate::mailbox::{Receiver, Wake, mailbox};
use crate::metrics::Health;
use crate::store::writer::Answer;
use crate::{dispatch, net, output, store};

pub use problem::Counts;

/// Most bytes of a request's head.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// Most headers.
const HEADERS_MAX: usize = 100;
/// How long another thread may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long accepting rests when the process has no descriptors left.
const ACCEPT_REST: Duration = Duration::from_millis(50);
/// Longest request id taken over from a client.
const REQUEST_ID_BYTES_MAX: usize = 128;
/// The request's name, from the client or made here.
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What HTTP works with: the other threads' ends, and what the server knows of itself.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Takes submissions and purges.
    pub writer: store::writer::Handle,
    /// Records.
    pub reader: store::reader::Handle,
    /// Live jobs and workers.
    pub dispatch: dispatch::Handle,
    /// The wire thread, whose figures are shown.
    pub net: net::Handle,
    /// What jobs print.
    pub output: output::Handle,
    /// Who may.
    pub auth: Arc<Auth>,
    /// What the writer counts.
    pub counters: Arc<store::writer::Counters>,
    /// What HTTP counts.
    pub counts: Arc<Counts>,
    /// Whether the server is well.
    pub health: Arc<Health>,
    /// The time of day.
    pub clock: Clock,
    /// Limits and what is allowed.
    pub config: Arc<Config>,
    /// Which cluster this is.
    pub cluster: [u8; 16],
    /// Which start of the server.
    pub epoch: Epoch,
    /// What connections begin with; none: they are plain.
    pub tls: Option<Arc<Live>>,
}

/// The HTTP threads.
#[derive(Debug)]
pub struct Handle {
    address: SocketAddr,
    stop: watch::Sender<Option<Duration>>,
    threads: Vec<JoinHandle<()>>,
}

impl Handle {
    /// Where HTTP listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts nothing more; what is in flight has this long to finish.
    pub fn stop(&self, within: Duration) {
        self.stop.send_replace(Some(within));
    }

    /// Waits for the threads, after `stop`.
    pub fn join(self) {
        self.stop.send_if_modified(|stop| {
            stop.is_none()
                .then(|| *stop = Some(Duration::ZERO))
                .is_some()
        });
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("an HTTP thread panicked");
            }
        }
    }
}

/// Serves HTTP on that listener with so many threads, at least one.
pub fn spawn(listener: TcpListener, parts: Parts, threads: usize) -> io::Result<Handle> {
    let address = listener.local_addr()?;
    listener.set_nonblocking(true)?;
    let (stop, stopped) = watch::channel(None);
    let all = Arc::new(All::new(&parts)?);
    let threads = (0..threads.max(1))
        .map(|number| {
            // Clones of one socket: with SO_REUSEPORT a second server would share the port in silence.
            let listener = listener.try_clone()?;
            let (sender, answers) = mailbox(&Wake::task());
            let parts = Parts {
                writer: parts.writer.through(sender),
                ..parts.clone()
            };
            let shared = Arc::new(Shared::new(parts, Arc::clone(&all)));
            let stopped = stopped.clone();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            std::thread::Builder::new()
                .name(format!("http-{number}"))
                .spawn(move || {
                    runtime.block_on(async {
                        tokio::spawn(deliver(answers));
                        tokio::spawn(pulse(shared.pulse()));
                        accept(listener, shared, stopped).await;
                    });
                })
        })
        .collect::<io::Result<_>>()?;
    Ok(Handle {
        address,
        stop,
        threads,
    })
}

/// Reads a body of JSON as intake does; how many jobs it has. For the micro benches.
#[doc(hidden)]
pub fn read_jobs(config: &Config, bearer: &Arc<Bearer>, body: &bytes::Bytes) -> Option<usize> {
    let who = route::Who {
        bearer: Arc::clone(bearer),
        from: IpAddr::V4(Ipv4Addr::LOCALHOST),
    };
    let read = intake::read(config, &who, guard::Media::Json, body).ok()?;
    Some(read.submission.jobs.len())
}

/// Takes the writer's answers to where they are awaited.
async fn deliver(answers: Receiver<Answer>) {
    const AT_ONCE_MAX: usize = 1_024;
    let mut some = Vec::new();
    loop {
        std::future::poll_fn(|cx| answers.poll_filled(cx)).await;
        answers.drain(&mut some, AT_ONCE_MAX);
        some.drain(..).for_each(Answer::deliver);
    }
}

/// A timer that is due before all others. A runtime wakes itself, by a system call and a vain look at its sockets, for
/// each new timer that is due before all it had: without this one that was each request's, nearly twice.
async fn pulse(every: Duration) {
    loop {
        tokio::time::sleep(every).await;
    }
}

/// What a thread works with.
struct Shared {
    parts: Parts,
    routes: route::Routes,
    http: http1::Builder,
    all: Arc<All>,
}

/// What the threads share.
struct All {
    tls: Option<Tls>,
    /// Open connections of all threads.
    crowd: Crowd,
    /// Connections being told that there are too many.
    refusing: AtomicUsize,
    /// Makes request ids: random digits of this start, and a count.
    id_prefix: String,
    ids: AtomicU64,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("parts", &self.parts)
            .finish_non_exhaustive()
    }
}

impl All {
    fn new(parts: &Parts) -> io::Result<Self> {
        let limits = &parts.config.limits;
        let tls = parts.tls.clone().map(|live| {
            let (max, timeout) = (limits.tls_handshakes_max, limits.http_header_timeout);
            Tls::new(live, max, timeout)
        });
        Ok(Self {
            tls,
            crowd: Crowd::new(limits),
            refusing: AtomicUsize::new(0),
            id_prefix: format!("{:08x}-", getrandom::u32().map_err(io::Error::other)?),
            ids: AtomicU64::new(0),
        })
    }
}

impl Shared {
    fn new(parts: Parts, all: Arc<All>) -> Self {
        let limits = &parts.config.limits;
        let mut http = http1::Builder::new();
        // Without a timer hyper drops its timeouts in silence. Its header timeout runs between requests too, so it is
        // the idle timeout; the time from a head's first byte to its last is the socket's to watch.
        http.timer(TokioTimer::new())
            .header_read_timeout(limits.http_idle_timeout.max(limits.http_header_timeout))
            .max_headers(HEADERS_MAX)
            .max_buf_size(HEAD_BYTES_MAX);
        Self {
            parts,
            routes: route::Routes::new(),
            http,
            all,
        }
    }

    /// Half of the shortest time that a timer of a connection waits, so that it is due first however late in it.
    fn pulse(&self) -> Duration {
        const LEAST: Duration = Duration::from_millis(100);
        let limits = &self.parts.config.limits;
        let shortest = limits
            .http_header_timeout
            .min(limits.http_body_timeout)
            .min(limits.http_idle_timeout);
        (shortest / 2).max(LEAST)
    }

    /// The client's name for the request, or a new one.
    fn request_id(&self, headers: &HeaderMap) -> HeaderValue {
        let theirs = headers.get(X_REQUEST_ID).filter(|id| {
            (1..=REQUEST_ID_BYTES_MAX).contains(&id.len())
                && id.as_bytes().iter().all(u8::is_ascii_graphic)
        });
        theirs.cloned().unwrap_or_else(|| {
            let number = self.all.ids.fetch_add(1, Ordering::Relaxed);
            let id = [&*self.all.id_prefix, &number.to_string()].concat();
            HeaderValue::try_from(id).expect("hex digits, a dash and digits")
        })
    }
}

/// One thread: accepts until it is told to stop, then waits for its connections.
async fn accept(
    listener: TcpListener,
    shared: Arc<Shared>,
    mut stop: watch::Receiver<Option<Duration>>,
) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "HTTP cannot listen"),
    };
    let here = Arc::new(Here::default());
    let stopping = stop.clone();
    let mut no_room = false;
    while let Either::Left(accepted) = race(listener.accept(), told(&mut stop)).await {
        match accepted {
            Ok((stream, from)) => {
                no_room = false;
                admit(stream, from.ip(), &shared, &here, stopping.clone());
            }
            Err(error) => {
                // Descriptors or memory ran out, or the client has gone already: the next one may do better.
                if !std::mem::replace(&mut no_room, true) {
                    tracing::warn!(%error, "connections cannot be accepted at the moment");
                }
                tokio::time::sleep(ACCEPT_REST).await;
            }
        }
    }
    drop(listener);
    let within = stopping.borrow().unwrap_or_default();
    if tokio::time::timeout(within, here.empty()).await.is_err() {
        tracing::warn!(
            open = here.open.load(Ordering::Relaxed),
            "connections were cut at the end"
        );
    }
}

/// The connections of one thread.
#[derive(Debug, Default)]
struct Here {
    open: AtomicUsize,
    gone: Notify,
}

impl Here {
    async fn empty(&self) {
        while self.open.load(Ordering::Relaxed) > 0 {
            self.gone.notified().await;
        }
    }
}

/// A connection's place among the open ones.
struct Place {
    shared: Arc<Shared>,
    here: Arc<Here>,
    address: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.all.crowd.leave(self.address);
        let open = &self.shared.parts.counts.connections;
        open.fetch_sub(1, Ordering::Relaxed);
        self.here.open.fetch_sub(1, Ordering::Relaxed);
        self.here.gone.notify_one();
    }
}

/// Serves a connection, or tells it that there are too many.
fn admit(
    stream: TcpStream,
    address: IpAddr,
    shared: &Arc<Shared>,
    here: &Arc<Here>,
    stop: watch::Receiver<Option<Duration>>,
) {
    if let Err(full) = shared.all.crowd.enter(address) {
        return refuse(stream, shared, full);
    }
    here.open.fetch_add(1, Ordering::Relaxed);
    let open = &shared.parts.counts.connections;
    open.fetch_add(1, Ordering::Relaxed);
    let place = Place {
        shared: Arc::clone(shared),
        here: Arc::clone(here),
        address,
    };
    tokio::spawn(async move {
        serve(stream, address, &place.shared, stop).await;
        drop(place);
    });
}

/// A 503 for a connection too many; beyond a few at once they are closed without a word.
fn refuse(stream: TcpStream, shared: &Arc<Shared>, full: Full) {
    const AT_ONCE_MAX: usize = 64;
    shared.parts.counts.refused(Code::Connections);
    if shared.all.tls.is_some() {
        return; // it would have to agree on TLS first, only to be told
    }
    if shared.all.refusing.fetch_add(1, Ordering::Relaxed) >= AT_ONCE_MAX {
        shared.all.refusing.fetch_sub(1, Ordering::Relaxed);
        return;
    }
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let answer = problem::raw(Code::Connections, &full.to_string());
        // A few hundred bytes always fit into a fresh socket's buffer.
        if stream.writable().await.is_ok() && stream.try_write(&answer).is_ok() {
            let limits = &shared.parts.config.limits;
            let conn = Arc::new(Conn::default());
            let stream = Stream::Plain(stream);
            let (head, write) = (limits.http_header_timeout, limits.http_write_timeout);
            Socket::new(stream, conn, head, write).close_slowly().await;
        }
        shared.all.refusing.fetch_sub(1, Ordering::Relaxed);
    });
}

/// One connection, from its first request to its close.
async fn serve(
    stream: TcpStream,
    from: IpAddr,
    shared: &Arc<Shared>,
    mut stop: watch::Receiver<Option<Duration>>,
) {
    // Without it an answer may wait for the acknowledgement of the one before.
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let conn = Arc::new(Conn::default());
    let socket = match &shared.all.tls {
        None => Stream::Plain(stream),
        Some(tls) => match race(secure(stream, tls, shared), told(&mut stop)).await {
            Either::Left(Some(stream)) => stream,
            Either::Left(None) | Either::Right(()) => return,
        },
    };
    let limits = &shared.parts.config.limits;
    let socket = Socket::new(
        socket,
        Arc::clone(&conn),
        limits.http_header_timeout,
        limits.http_write_timeout,
    );
    let service = service_fn(|request| Box::pin(answer(shared, &conn, from, request)));
    let mut http = shared.http.serve_connection(TokioIo::new(socket), service);
    let ended = {
        let served = std::future::poll_fn(|cx| http.poll_without_shutdown(cx));
        race(served, told(&mut stop)).await
    };
    match ended {
        Either::Left(Err(error)) if is_timeout(&error) => {
            shared
                .parts
                .counts
                .timed_out
                .fetch_add(1, Ordering::Relaxed);
        }
        Either::Left(_) => {}
        Either::Right(()) => {
            Pin::new(&mut http).graceful_shutdown();
            // Whatever it came to, the connection ends.
            drop(std::future::poll_fn(|cx| http.poll_without_shutdown(cx)).await);
        }
    }
    let socket = http.into_parts().io.into_inner();
    if let Some(code) = socket.told() {
        shared.parts.counts.refused(code);
    }
    if conn.lingers() {
        socket.close_slowly().await;
    } else {
        socket.close().await;
    }
}

/// Nothing came, or nothing was taken, in time: hyper's clock, or that of the socket.
fn is_timeout(error: &hyper::Error) -> bool {
    let of_socket = error.source().and_then(|source| source.downcast_ref());
    error.is_timeout()
        || of_socket.is_some_and(|error: &io::Error| error.kind() == io::ErrorKind::TimedOut)
}

/// TLS, or none: then the client has been told why, where that can be done.
async fn secure(stream: TcpStream, tls: &Tls, shared: &Shared) -> Option<Stream> {
    let peer = stream.peer_addr().ok();
    let (stream, answer, error) = match tls.begin(stream).await {
        Ok(Begun::Tls(stream)) => return Some(stream),
        Ok(Begun::Plain(stream, answer)) => (Some(stream), answer, "it speaks plain HTTP".into()),
        Ok(Begun::Refused(stream, error)) => (Some(stream), Vec::new(), error.to_string()),
        Err(error) => (None, Vec::new(), error.to_string()),
    };
    tracing::info!(?peer, %error, "a client found no TLS in common with this server");
    if let Some(stream) = stream {
        let limits = &shared.parts.config.limits;
        let (head, write) = (limits.http_header_timeout, limits.http_write_timeout);
        let socket = Socket::new(stream, Arc::default(), head, write);
        socket.close_with(&answer).await;
    }
    None
}

/// One request. What waits for its answer is small on purpose, each thing in it once: it is made anew for each request,
/// and what is larger than 1 KiB costs the allocator a search.
fn answer(
    shared: &Shared,
    conn: &Arc<Conn>,
    from: IpAddr,
    request: Request<Incoming>,
) -> impl Future<Output = Result<Response<Body>, Infallible>> {
    let busy = conn.begin();
    let id = shared.request_id(request.headers());
    let (mut head, body) = request.into_parts();
    let path: Box<str> = head.uri.path().into();
    let in_chunks = head.headers.contains_key(header::TRANSFER_ENCODING);
    async move {
        let endpoint = pin!(shared.routes.answer(&shared.parts, from, &mut head, body));
        let mut response = caught(endpoint).await.unwrap_or_else(|refusal| {
            shared.parts.counts.refused(refusal.code);
            if refusal.close {
                conn.linger();
            }
            refusal.respond(&path, id.to_str().unwrap_or_default())
        });
        if in_chunks {
            // It may have carried a Content-Length too: hyper then closes, so that nothing that follows is taken for a
            // request (RFC 9112, 6.1), and the answer must not be lost with what is left unread.
            conn.linger();
        }
        let headers = response.headers_mut();
        headers.insert(X_REQUEST_ID, id);
        headers
            .entry(header::CACHE_CONTROL)
            .or_insert(HeaderValue::from_static("no-store"));
        headers.insert(
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        );
        response.body_mut().hold(busy);
        Ok(response)
    }
}

type Outcome = Result<Response<Body>, Box<Refusal>>;

/// Turns a panic into a 500: it is a mistake of ours in one request, and no other one's matter.
async fn caught(mut endpoint: Pin<&mut impl Future<Output = Outcome>>) -> Outcome {
    let caught = std::future::poll_fn(move |cx| {
        catch_unwind(AssertUnwindSafe(|| endpoint.as_mut().poll(cx))).unwrap_or_else(|_panic| {
            Poll::Ready(Err(Refusal::new(
                Code::Internal,
                "a mistake of the server; its standard error has the place, please report it",
            )))
        })
    });
    caught.await
}

/// Another thread's answer, within a time.
async fn asked<T>(reply: oneshot::Receiver<T>) -> Result<T, Box<Refusal>> {
    match tokio::time::timeout(ANSWER_TIMEOUT, reply).await {
        Ok(Ok(answer)) => Ok(answer),
        // Replies are dropped when the server stops.
        Ok(Err(_dropped)) => Err(problem::stopping()),
        Err(_elapsed) => Err(Refusal::new(
            Code::NoAnswer,
            format!(
                "no answer within {} s; the server is overloaded",
                ANSWER_TIMEOUT.as_secs()
            ),
        )),
    }
}

/// When the server was told to stop.
async fn told(stop: &mut watch::Receiver<Option<Duration>>) {
    // A handle that was dropped without a word is a stop as well.
    drop(stop.wait_for(Option::is_some).await);
}

/// What came first.
enum Either<A, B> {
    Left(A),
    Right(B),
}

/// Whichever of two is ready first; the other is dropped.
async fn race<A, B>(a: impl Future<Output = A>, b: impl Future<Output = B>) -> Either<A, B> {
    let (mut a, mut b) = (pin!(a), pin!(b));
    std::future::poll_fn(move |cx: &mut Context<'_>| {
        if let Poll::Ready(a) = a.as_mut().poll(cx) {
            return Poll::Ready(Either::Left(a));
        }
        b.as_mut().poll(cx).map(Either::Right)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_in_an_endpoint_is_its_own_500() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let outcome = runtime.block_on(caught(pin!(async { panic!("a mistake") })));
        let refusal = outcome.unwrap_err();
        assert_eq!(refusal.code, Code::Internal);
        assert!(refusal.close);
    }
}
