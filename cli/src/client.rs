//! The HTTP client: one kept connection to the first of several addresses that answers, and the manners of a good
//! caller: timeouts on every step, bounded bodies, repeats only where a repeat is harmless.
//!
//! A request may be repeated if it changes nothing, or if an Idempotency-Key makes its repeat harmless (semantics 13).
//! Such a request outlives a lost connection, a restarting server and a 503, for [`REPEAT_FOR`] in all; one that
//! never reached any server fails at once, since there waiting would only hide a wrong address.
//!
//! Not here: what an answer means (`cmd`), how an error becomes an exit code (`exit`).

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;

use hostler_tls::{ClientConfig, ClientFiles, Port, ServerName, Words, explain_any};
use hostler_wire::api::Problem;

use crate::clock::Moment;
use crate::exit::{Exit, Failure};

/// Until a connection must stand.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Until the head of an ordinary answer must be there: a commit waits for the disk, not for minutes.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest silence within a body. The server breaks its own silences every 15 s.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(45);
/// How long a harmless request is repeated: a restart of the server, and some.
const REPEAT_FOR: Duration = Duration::from_secs(20);
/// Between the first repeats; it doubles up to [`REPEAT_PAUSE_MAX`].
const REPEAT_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause between repeats, whatever `Retry-After` says.
const REPEAT_PAUSE_MAX: Duration = Duration::from_secs(3);
/// Largest answer read into memory: a list page, a job with its history.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    host: String,
    port: u16,
    is_tls: bool,
}

impl Address {
    /// A server on this machine's loopback.
    pub(crate) fn of_socket(address: std::net::SocketAddr) -> Self {
        Self {
            host: address.ip().to_string(),
            port: address.port(),
            is_tls: false,
        }
    }

    /// Whether it is certainly on this machine.
    pub(crate) fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
    }

    /// Whether it is asked under TLS.
    pub(crate) const fn is_tls(&self) -> bool {
        self.is_tls
    }

    /// `host:port`, as the Host header and a connect want it.
    pub(crate) fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl Address {
    /// Reads one. Without a scheme it is `https` if there is anything said about TLS.
    pub(crate) fn parse(text: &str, is_tls: bool) -> Result<Self, String> {
        let wrong = |why: &str| Err(format!("\"{text}\" is no server address: {why}"));
        let (rest, is_tls) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
            (Some(rest), _) => (rest, true),
            (None, Some(rest)) => (rest, false),
            (None, None) => (text, is_tls),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.is_empty() || rest.contains(['/', '@', '?', '#', ' ']) {
            return wrong("write http://HOST:PORT");
        }
        let (host, port) = match rest.strip_prefix('[').map(|rest| rest.split_once(']')) {
            Some(Some((host, port))) => (host, port.strip_prefix(':').unwrap_or(port)),
            Some(None) => return wrong("a ] is missing"),
            None => rest.rsplit_once(':').unwrap_or((rest, "")),
        };
        if host.is_empty() || (host.contains(':') && host.parse::<IpAddr>().is_err()) {
            return wrong("write http://HOST:PORT");
        }
        let port = match port {
            "" => 7440,
            port => match port.parse() {
                Ok(port) if port != 0 => port,
                _ => return wrong("the port is a number from 1 to 65535"),
            },
        };
        Ok(Self {
            host: host.to_owned(),
            port,
            is_tls,
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_tls { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.authority())
    }
}

/// A request.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    method: Method,
    path: String,
    headers: Vec<(HeaderName, HeaderValue)>,
    body: Bytes,
    patience: Duration,
    repeatable: bool,
}

impl Ask {
    fn new(method: Method, path: impl Into<String>, repeatable: bool) -> Self {
        Self {
            method,
            path: path.into(),
            headers: Vec::new(),
            body: Bytes::new(),
            patience: ANSWER_TIMEOUT,
            repeatable,
        }
    }

    /// Reads something.
    pub(crate) fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path, true)
    }

    /// Ends something; twice is as good as once.
    pub(crate) fn delete(path: impl Into<String>) -> Self {
        Self::new(Method::DELETE, path, true)
    }

    /// Adds something, under a key of its own that makes a repeat harmless.
    pub(crate) fn post(path: impl Into<String>, content_type: &'static str, body: Bytes) -> Self {
        let mut ask = Self::new(Method::POST, path, true);
        let key = HeaderValue::from_str(&random_key()).expect("hex is a header value");
        ask.headers = vec![
            (header::CONTENT_TYPE, HeaderValue::from_static(content_type)),
            (HeaderName::from_static("idempotency-key"), key),
        ];
        ask.body = body;
        ask
    }

    /// Adds a header; a value that is none (a control character in an id from the server) is left out.
    pub(crate) fn header(mut self, name: HeaderName, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.push((name, value));
        }
        self
    }

    /// Allows the answer this much longer: the server was asked to wait.
    pub(crate) fn wait(mut self, more: Duration) -> Self {
        self.patience = self.patience.saturating_add(more);
        self
    }

    /// Fails at the first trouble: for callers who repeat by themselves.
    pub(crate) fn once(mut self) -> Self {
        self.repeatable = false;
        self
    }
}

/// An answer whose body is still to be read.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    body: Incoming,
}

/// An answer that says no.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    pub(crate) problem: Problem,
}

impl Refusal {
    /// The error the user sees.
    pub(crate) fn into_failure(self) -> Failure {
        let Problem {
            detail,
            title,
            code,
            errors,
            ..
        } = self.problem;
        let mut message = if detail.is_empty() { title } else { detail };
        if message.is_empty() {
            message = format!("the server answered with status {}", self.status);
        }
        // A problem about one field often says the same twice; the pointer is what the person needs.
        for error in errors.iter().take(10) {
            let text = error.to_string();
            if !message.contains(&text) {
                message.push_str(&format!("\n  {text}"));
            }
        }
        if errors.len() > 10 {
            message.push_str(&format!("\n  … and {} more", errors.len() - 10));
        }
        let failure = Failure::new(Exit::of_status(self.status, &code), message);
        match self.status {
            401 => failure.hint(
                "set HOSTLER_TOKEN, or give --token-file DATA_DIR/admin.token (the server wrote it at its first start)",
            ),
            429 | 503 => failure.hint("try again in a moment"),
            _ => failure,
        }
    }
}

impl Answer {
    /// The next piece of the body; none at its end.
    pub(crate) async fn piece(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            let frame = match timeout(SILENCE_TIMEOUT, self.body.frame()).await {
                Err(_) => return Err(lost("it stopped in the middle of an answer")),
                Ok(None) => return Ok(None),
                Ok(Some(Err(error))) => return Err(lost(&error.to_string())),
                Ok(Some(Ok(frame))) => frame,
            };
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
    }

    /// The whole body.
    pub(crate) async fn bytes(mut self) -> Result<Bytes, Failure> {
        let mut whole = BytesMut::new();
        while let Some(piece) = self.piece().await? {
            if whole.len() + piece.len() > ANSWER_BYTES_MAX {
                return Err(lost(&format!(
                    "its answer is larger than {ANSWER_BYTES_MAX} bytes"
                )));
            }
            whole.extend_from_slice(&piece);
        }
        Ok(whole.freeze())
    }

    /// Itself if it says yes, else what it says.
    pub(crate) async fn yes(self) -> Result<Result<Self, Refusal>, Failure> {
        if (200..300).contains(&self.status) {
            return Ok(Ok(self));
        }
        let status = self.status;
        let bytes = self.bytes().await?;
        let problem = serde_json::from_slice(&bytes).unwrap_or_else(|_| Problem {
            detail: format!("the server answered with status {status}"),
            ..Problem::default()
        });
        Ok(Err(Refusal { status, problem }))
    }

    /// The body of an answer that must say yes.
    pub(crate) async fn body(self) -> Result<Bytes, Failure> {
        match self.yes().await? {
            Ok(answer) => answer.bytes().await,
            Err(refusal) => Err(refusal.into_failure()),
        }
    }
}

/// Reads a shape from an answer.
pub(crate) fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(body).map_err(|error| {
        lost(&format!("its answer is not understood ({error})"))
            .hint("is it a Hostler server, of this version? compare with `hostler version`")
    })
}

/// Connections to one server, known by one or more addresses.
#[derive(Debug)]
pub(crate) struct Client {
    addresses: Vec<Address>,
    /// Which address answered last.
    current: usize,
    authorization: Option<HeaderValue>,
    tls: Option<Arc<ClientConfig>>,
    verdict: Verdict,
    idle: Option<SendRequest<Full<Bytes>>>,
}

/// What TLS had to say at the end of the present connection. A server that does not accept our certificate says so only
/// once we have begun, and the request that meets a closed connection does not hear of it.
type Verdict = Arc<OnceLock<Words>>;

/// Why an attempt at a request came to nothing.
enum Trouble {
    /// No address could be connected to.
    NotReached(Failure),
    /// The connection was lost, or the answer did not come.
    Lost(Failure),
}

impl Client {
    /// A client that has not connected yet.
    pub(crate) fn new(
        addresses: Vec<Address>,
        token: Option<&str>,
        tls: &ClientFiles,
    ) -> Result<Self, Failure> {
        let authorization = match token {
            None => None,
            Some(token) => {
                let mut value =
                    HeaderValue::from_str(&format!("Bearer {token}")).or(Err(Failure::new(
                        Exit::Forbidden,
                        "the access token holds characters no token has",
                    )))?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        // The files are looked at where they are needed only: reading the system's authorities takes a while.
        let is_wanted = addresses.iter().any(|address| address.is_tls);
        let tls = is_wanted.then(|| tls.load(Port::Http)).transpose();
        Ok(Self {
            addresses,
            current: 0,
            authorization,
            tls: tls.map_err(|error| Failure::usage(format!("TLS: {error}")))?,
            verdict: Verdict::default(),
            idle: None,
        })
    }

    /// Another client for the same server: for answers that take long, so that this one stays free.
    pub(crate) fn another(&self) -> Self {
        Self {
            addresses: self.addresses.clone(),
            current: self.current,
            authorization: self.authorization.clone(),
            tls: self.tls.clone(),
            verdict: Verdict::default(),
            idle: None,
        }
    }

    /// The address in use.
    pub(crate) fn address(&self) -> &Address {
        &self.addresses[self.current]
    }

    /// Sends a request and gives the head of the answer, whatever its status.
    pub(crate) async fn ask(&mut self, ask: &Ask) -> Result<Answer, Failure> {
        let give_up = Moment::after(REPEAT_FOR);
        let mut pause = REPEAT_PAUSE;
        let mut reached = false;
        loop {
            let (failure, wait) = match self.attempt(ask).await {
                Ok(answer) if answer.status == 503 && ask.repeatable => {
                    let wait = retry_after(&answer.headers).unwrap_or(pause);
                    match answer.yes().await? {
                        Ok(answer) => return Ok(answer),
                        Err(refusal) => (refusal.into_failure(), wait),
                    }
                }
                Ok(answer) => return Ok(answer),
                Err(Trouble::NotReached(failure)) if !reached => return Err(failure),
                Err(Trouble::NotReached(failure) | Trouble::Lost(failure)) => (failure, pause),
            };
            reached = true;
            let wait = wait.min(REPEAT_PAUSE_MAX);
            if !ask.repeatable || give_up.is_none_or(|moment| moment.left() <= wait) {
                return Err(failure);
            }
            sleep(wait).await;
            pause = (pause * 2).min(REPEAT_PAUSE_MAX);
        }
    }

    /// The body of a request that must succeed.
    pub(crate) async fn body(&mut self, ask: &Ask) -> Result<Bytes, Failure> {
        self.ask(ask).await?.body().await
    }

    /// The shape in the body of a request that must succeed.
    pub(crate) async fn fetch<T: DeserializeOwned>(&mut self, ask: &Ask) -> Result<T, Failure> {
        read(&self.body(ask).await?)
    }

    async fn attempt(&mut self, ask: &Ask) -> Result<Answer, Trouble> {
        let mut sender = match self.reuse().await {
            Some(sender) => sender,
            None => self.connect().await.map_err(Trouble::NotReached)?,
        };
        let request = self.request(ask);
        let sent = timeout(ask.patience, sender.send_request(request)).await;
        let answer = match sent {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                let words = explain_any(&error).or_else(|| self.verdict.get().cloned());
                return Err(match words.filter(|words| words.is_final) {
                    Some(words) => Trouble::NotReached(self.not_reached(&words.what, words.hint)),
                    None => Trouble::Lost(lost(&reason(&error))),
                });
            }
            Err(_) => {
                return Err(Trouble::Lost(lost(&format!(
                    "no answer within {}",
                    crate::duration::took(crate::duration::millis(ask.patience))
                ))));
            }
        };
        self.idle = Some(sender);
        let (head, body) = answer.into_parts();
        Ok(Answer {
            status: head.status.as_u16(),
            headers: head.headers,
            body,
        })
    }

    /// The kept connection, if it is free and still stands.
    async fn reuse(&mut self) -> Option<SendRequest<Full<Bytes>>> {
        let mut sender = self.idle.take()?;
        // An answer that was not read to its end still occupies it; such a connection is given up.
        match timeout(Duration::from_millis(50), sender.ready()).await {
            Ok(Ok(())) => Some(sender),
            Ok(Err(_)) | Err(_) => None,
        }
    }

    async fn connect(&mut self) -> Result<SendRequest<Full<Bytes>>, Failure> {
        let count = self.addresses.len();
        let mut reasons = Vec::new();
        let mut hint = None;
        for turn in 0..count {
            let index = (self.current + turn) % count;
            let address = &self.addresses[index];
            let tls = self.tls.as_ref().filter(|_| address.is_tls);
            self.verdict = Verdict::default();
            let error = match connect_to(address, tls, &self.verdict).await {
                Ok(sender) => {
                    self.current = index;
                    return Ok(sender);
                }
                Err(error) => error,
            };
            reasons.push(format!("{address}: {}", error.what));
            hint = error.hint.or(hint);
        }
        Err(self.failure(&reasons.join(", at "), hint))
    }

    fn not_reached(&self, why: &str, hint: Option<&str>) -> Failure {
        self.failure(&format!("{}: {why}", self.address()), hint)
    }

    fn failure(&self, reasons: &str, hint: Option<&str>) -> Failure {
        let local = self.addresses.iter().all(Address::is_loopback);
        Failure::new(
            Exit::Unreachable,
            format!("cannot reach the server at {reasons}"),
        )
        .hint(hint.unwrap_or(if local {
            "start one with `hostler dev`, or point to yours with --server or HOSTLER_URL"
        } else {
            "is it running? the address comes from --server, HOSTLER_URL or the configuration"
        }))
    }

    fn request(&self, ask: &Ask) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(ask.body.clone()));
        *request.method_mut() = ask.method.clone();
        *request.uri_mut() = ask
            .path
            .parse()
            .expect("paths are made of literals, ids and encoded values");
        let headers = request.headers_mut();
        let host = HeaderValue::from_str(&self.address().authority())
            .expect("an address holds no control characters");
        headers.insert(header::HOST, host);
        headers.insert(
            header::USER_AGENT,
            HeaderValue::from_static(concat!("hostler/", env!("CARGO_PKG_VERSION"))),
        );
        if let Some(authorization) = &self.authorization {
            headers.insert(header::AUTHORIZATION, authorization.clone());
        }
        for (name, value) in &ask.headers {
            headers.insert(name.clone(), value.clone());
        }
        request
    }
}

/// Why a connection does not stand, and what to do about it where that is known.
struct NotConnected {
    what: String,
    hint: Option<&'static str>,
}

impl From<String> for NotConnected {
    fn from(what: String) -> Self {
        Self { what, hint: None }
    }
}

async fn connect_to(
    address: &Address,
    tls: Option<&Arc<ClientConfig>>,
    verdict: &Verdict,
) -> Result<SendRequest<Full<Bytes>>, NotConnected> {
    let late = || NotConnected::from(format!("no connection within {CONNECT_TIMEOUT:?}"));
    let connecting = TcpStream::connect(address.authority());
    let stream = match timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(plain_io(&error).into()),
        Err(_) => return Err(late()),
    };
    stream.set_nodelay(true).map_err(|error| plain_io(&error))?;
    let Some(config) = tls else {
        return begin(stream, verdict).await;
    };
    let name = ServerName::try_from(address.host.clone())
        .map_err(|_no_name| format!("no certificate can be for \"{}\"", address.host))?;
    let connecting = TlsConnector::from(Arc::clone(config)).connect(name, stream);
    match timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(Ok(stream)) => begin(stream, verdict).await,
        Ok(Err(error)) => Err(match explain_any(&error) {
            Some(words) => NotConnected {
                what: words.what,
                hint: words.hint,
            },
            None => plain_io(&error).into(),
        }),
        Err(_) => Err(late()),
    }
}

/// HTTP on a connection that stands.
async fn begin(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    verdict: &Verdict,
) -> Result<SendRequest<Full<Bytes>>, NotConnected> {
    let (sender, connection) = handshake(TokioIo::new(stream))
        .await
        .map_err(|error| reason(&error))?;
    let verdict = Arc::clone(verdict);
    tokio::spawn(async move {
        // Its error also reaches whoever waits for an answer on it, and no other: so this is kept.
        if let Err(error) = connection.await
            && let Some(words) = explain_any(&error)
        {
            verdict.get_or_init(|| words);
        }
    });
    Ok(sender)
}

fn plain_io(error: &std::io::Error) -> String {
    if error.kind() == std::io::ErrorKind::ConnectionRefused {
        "connection refused".into()
    } else {
        error.to_string()
    }
}

/// The innermost reason of a hyper error: the outer ones say little.
fn reason(error: &hyper::Error) -> String {
    let mut inner: &dyn std::error::Error = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}

fn lost(why: &str) -> Failure {
    Failure::new(
        Exit::Unreachable,
        format!("the server cannot be understood or went away: {why}"),
    )
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(header::RETRY_AFTER)?.to_str().ok()?;
    Some(Duration::from_secs(seconds.parse().ok()?))
}

/// 128 random bits in hex.
fn random_key() -> String {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the kernel gives random bytes");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A value as it may stand in a query.
pub(crate) fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~,:".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_with_and_without_scheme_and_port() {
        for (text, shown) in [
            ("http://127.0.0.1:7440", "http://127.0.0.1:7440"),
            ("http://example.com/", "http://example.com:7440"),
            ("db-1:80", "http://db-1:80"),
            ("[::1]:7", "http://[::1]:7"),
            ("http://[::1]", "http://[::1]:7440"),
            ("https://q1", "https://q1:7440"),
        ] {
            assert_eq!(Address::parse(text, false).unwrap().to_string(), shown);
        }
        let secure = Address::parse("q1:7", true).unwrap();
        assert_eq!(secure.to_string(), "https://q1:7");
        for text in [
            "", "http://", "https://", "ftp://a", "a:0", "a:70000", "a:b", "::1", "[::1", "u@h:1",
            "a/b",
        ] {
            assert!(Address::parse(text, false).is_err(), "{text:?}");
        }
    }

    #[test]
    fn only_this_machine_is_loopback() {
        let loopback = |text: &str| Address::parse(text, false).unwrap().is_loopback();
        assert!(loopback("localhost:1") && loopback("127.8.0.1") && loopback("[::1]:2"));
        assert!(!loopback("localhost.example.com") && !loopback("10.0.0.1"));
    }

    #[test]
    fn values_in_a_query_are_encoded() {
        assert_eq!(encode("a b&c=ü,1"), "a%20b%26c%3D%C3%BC,1");
    }

    #[test]
    fn a_problem_tells_its_fields_and_keeps_its_exit_code() {
        let refusal = Refusal {
            status: 422,
            problem: serde_json::from_str(
                r#"{"detail":"the job is not valid","code":"invalid_job",
                    "errors":[{"pointer":"/retires","detail":"unknown field"}]}"#,
            )
            .unwrap(),
        };
        let failure = refusal.into_failure();
        assert_eq!(
            failure.to_string(),
            "the job is not valid\n  /retires: unknown field"
        );
        assert_eq!(failure.exit(), Exit::Usage);
    }
}
