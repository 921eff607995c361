//! HTTP/1.1 by hand over a blocking socket: keep-alive, lengths, chunks, nothing else. A test sees exactly what the
//! server wrote, and may write what no library would.

use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Error, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// Longest wait for bytes from the server: longer than any wait a test asks it for.
const READ_TIMEOUT: Duration = Duration::from_secs(90);

/// A client with one connection, opened when first needed and kept.
#[derive(Debug)]
pub struct Client {
    addr: SocketAddr,
    token: Option<String>,
    stream: Option<BufReader<TcpStream>>,
}

/// What is asked.
#[derive(Clone, Debug)]
pub struct Request {
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    body: Option<Vec<u8>>,
}

/// What is answered.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// As they came.
    pub headers: Vec<(String, String)>,
    /// All of it.
    pub body: Vec<u8>,
}

/// An answer whose body is still coming.
#[derive(Debug)]
pub struct Streaming {
    /// The status code.
    pub status: u16,
    /// As they came.
    pub headers: Vec<(String, String)>,
    reader: BufReader<TcpStream>,
    body: Body,
}

/// How the end of a body is known.
#[derive(Clone, Copy, Debug)]
enum Body {
    Length(usize),
    Chunked,
    UntilClose,
}

impl Request {
    /// Any method.
    pub fn new(method: &str, path: impl Into<String>) -> Self {
        Self {
            method: method.to_owned(),
            path: path.into(),
            headers: Vec::new(),
            body: None,
        }
    }

    /// GET.
    pub fn get(path: impl Into<String>) -> Self {
        Self::new("GET", path)
    }

    /// POST.
    pub fn post(path: impl Into<String>) -> Self {
        Self::new("POST", path)
    }

    /// DELETE.
    pub fn delete(path: impl Into<String>) -> Self {
        Self::new("DELETE", path)
    }

    /// Adds a header. One that the client would write itself (`Host`, `Authorization`) takes its place.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// A JSON body.
    #[must_use]
    pub fn json(self, value: &Value) -> Self {
        self.bytes("application/json", value.to_string())
    }

    /// Any body.
    #[must_use]
    pub fn bytes(self, content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        let mut request = self.header("Content-Type", content_type);
        request.body = Some(body.into());
        request
    }
}

impl Client {
    /// For the server at this address.
    pub fn new(addr: SocketAddr, token: Option<String>) -> Self {
        Self {
            addr,
            token,
            stream: None,
        }
    }

    /// The same server without an access token.
    #[must_use]
    pub fn anonymous(&self) -> Self {
        Self::new(self.addr, None)
    }

    /// The same server with another access token.
    #[must_use]
    pub fn with_token(&self, token: impl Into<String>) -> Self {
        Self::new(self.addr, Some(token.into()))
    }

    /// GET; the server must be there.
    #[track_caller]
    pub fn get(&mut self, path: impl Into<String>) -> Response {
        self.ask(Request::get(path))
    }

    /// POST of JSON; the server must be there.
    #[track_caller]
    pub fn post(&mut self, path: impl Into<String>, value: &Value) -> Response {
        self.ask(Request::post(path).json(value))
    }

    /// DELETE; the server must be there.
    #[track_caller]
    pub fn delete(&mut self, path: impl Into<String>) -> Response {
        self.ask(Request::delete(path))
    }

    /// Asks; the server must be there.
    #[track_caller]
    pub fn ask(&mut self, request: Request) -> Response {
        let (method, path) = (request.method.clone(), request.path.clone());
        self.send(request)
            .unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    /// Asks. An error means that nobody knows whether the server did it.
    pub fn send(&mut self, request: Request) -> io::Result<Response> {
        let head_only = request.method == "HEAD";
        // A kept connection may have been closed as idle meanwhile: what is safe to repeat is, once.
        let repeat = self.stream.is_some() && request.method == "GET";
        let mut answer = self.stream(&request);
        if answer.is_err() && repeat {
            answer = self.stream(&request);
        }
        let mut answer = answer?;
        if head_only {
            answer.body = Body::Length(0);
        }
        let mut body = Vec::new();
        while let Some(piece) = answer.more()? {
            body.extend_from_slice(&piece);
        }
        let close = header(&answer.headers, "connection").is_some_and(|it| it == "close");
        if !close && !matches!(answer.body, Body::UntilClose) {
            self.stream = Some(answer.reader);
        }
        Ok(Response {
            status: answer.status,
            headers: answer.headers,
            body,
        })
    }

    /// Asks, and leaves the body to be read as it comes. The connection goes with the answer.
    pub fn stream(&mut self, request: &Request) -> io::Result<Streaming> {
        let mut reader = match self.stream.take() {
            Some(reader) => reader,
            None => {
                let stream = TcpStream::connect(self.addr)?;
                stream.set_read_timeout(Some(READ_TIMEOUT))?;
                stream.set_write_timeout(Some(READ_TIMEOUT))?;
                stream.set_nodelay(true)?;
                BufReader::new(stream)
            }
        };
        let mut bytes = self.head_of(request).into_bytes();
        bytes.extend_from_slice(request.body.as_deref().unwrap_or_default());
        // A server that refuses a large body answers before it has read it, and closes: the answer counts.
        let written = reader.get_mut().write_all(&bytes);
        match read_head(&mut reader) {
            Ok((status, headers)) => {
                let body = body_of(status, &headers);
                Ok(Streaming {
                    status,
                    headers,
                    reader,
                    body,
                })
            }
            Err(error) => written.and(Err(error)),
        }
    }

    fn head_of(&self, request: &Request) -> String {
        let given = |name: &str| header(&request.headers, name).is_some();
        let mut head = format!("{} {} HTTP/1.1\r\n", request.method, request.path);
        if !given("host") {
            write!(head, "Host: {}\r\n", self.addr).unwrap();
        }
        if let Some(token) = self.token.as_ref().filter(|_| !given("authorization")) {
            write!(head, "Authorization: Bearer {token}\r\n").unwrap();
        }
        for (name, value) in &request.headers {
            write!(head, "{name}: {value}\r\n").unwrap();
        }
        if let Some(body) = request.body.as_ref().filter(|_| !given("content-length")) {
            write!(head, "Content-Length: {}\r\n", body.len()).unwrap();
        }
        head + "\r\n"
    }

    /// Writes these bytes on a connection of their own and reads until the server closes it.
    pub fn raw(&self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect(self.addr)?;
        stream.set_read_timeout(Some(READ_TIMEOUT))?;
        stream.write_all(bytes)?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer)
    }
}

impl Streaming {
    /// The next bytes; `None` at the end of the body.
    pub fn more(&mut self) -> io::Result<Option<Vec<u8>>> {
        match self.body {
            Body::Length(0) => Ok(None),
            Body::Length(left) => {
                let piece = self.some(left)?;
                self.body = Body::Length(left - piece.len());
                Ok(Some(piece))
            }
            Body::Chunked => {
                let line = read_line(&mut self.reader)?;
                let size = line.split(';').next().unwrap_or_default().trim();
                let size = usize::from_str_radix(size, 16).or(Err(bad("chunk size", &line)))?;
                let mut piece = vec![0; size];
                self.reader.read_exact(&mut piece)?;
                if size == 0 {
                    while !read_line(&mut self.reader)?.is_empty() {}
                    self.body = Body::Length(0);
                    return Ok(None);
                }
                let end = read_line(&mut self.reader)?;
                if end.is_empty() {
                    Ok(Some(piece))
                } else {
                    Err(bad("end of a chunk", &end))
                }
            }
            Body::UntilClose => {
                let piece = self.some(1 << 16)?;
                Ok((!piece.is_empty()).then_some(piece))
            }
        }
    }

    fn some(&mut self, most: usize) -> io::Result<Vec<u8>> {
        let mut piece = vec![0; most.min(1 << 16)];
        let read = self.reader.read(&mut piece)?;
        if read == 0 && matches!(self.body, Body::Length(_)) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        piece.truncate(read);
        Ok(piece)
    }

    /// Everything up to the end.
    pub fn rest(&mut self) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        while let Some(piece) = self.more()? {
            all.extend_from_slice(&piece);
        }
        Ok(all)
    }
}

impl Response {
    /// A header's value, whatever its case.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{} {error}: {}", self.status, self.text()))
    }

    /// The same, if the status is this one.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.text());
        self
    }

    /// The problem it tells, if it has this status and this is a problem as the interface promises.
    #[track_caller]
    pub fn problem(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        let kind = self.header("content-type").unwrap_or_default();
        assert!(
            kind.starts_with("application/problem+json"),
            "{kind}: {}",
            self.text()
        );
        let problem = self.json();
        assert_eq!(problem["status"], status, "{problem}");
        for field in ["type", "title", "detail", "instance", "code", "request_id"] {
            assert!(problem[field].is_string(), "no {field} in {problem}");
        }
        assert_ne!(problem["detail"], "", "{problem}");
        problem
    }
}

fn header<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let found = headers.iter().find(|(it, _)| it.eq_ignore_ascii_case(name));
    found.map(|(_, value)| value.as_str())
}

fn read_head(reader: &mut impl BufRead) -> io::Result<(u16, Vec<(String, String)>)> {
    loop {
        let line = read_line(reader)?;
        let status = line
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.get(..3))
            .and_then(|digits| digits.parse::<u16>().ok())
            .ok_or_else(|| bad("status line", &line))?;
        let mut headers = Vec::new();
        loop {
            let line = read_line(reader)?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').ok_or_else(|| bad("header", &line))?;
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
        // 100 Continue and its like come before the answer.
        if status >= 200 {
            return Ok((status, headers));
        }
    }
}

fn body_of(status: u16, headers: &[(String, String)]) -> Body {
    if status == 204 || status == 304 {
        return Body::Length(0);
    }
    if header(headers, "transfer-encoding").is_some_and(|it| it.eq_ignore_ascii_case("chunked")) {
        return Body::Chunked;
    }
    match header(headers, "content-length").and_then(|it| it.parse().ok()) {
        Some(length) => Body::Length(length),
        None => Body::UntilClose,
    }
}

fn read_line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    line.truncate(line.trim_end_matches(['\r', '\n']).len());
    Ok(line)
}

fn bad(what: &str, text: &str) -> Error {
    Error::other(format!("not a {what}: {text:?}"))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// A server that gives these answers one after another on one connection, and returns what it was asked.
    fn canned(answers: &'static [&'static str]) -> (Client, thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = Client::new(listener.local_addr().unwrap(), Some("secret".to_owned()));
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = String::new();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            for answer in answers {
                loop {
                    let line = read_line(&mut reader).unwrap();
                    if line.is_empty() {
                        break;
                    }
                    asked += &(line + "\n");
                }
                stream.write_all(answer.as_bytes()).unwrap();
            }
            asked
        });
        (client, server)
    }

    #[test]
    fn lengths_chunks_and_empty_bodies_are_read_on_one_connection() {
        let (mut client, server) = canned(&[
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n",
            "HTTP/1.1 204 No Content\r\n\r\n",
            "HTTP/1.1 404 Not Found\r\nX-A: b\r\n\r\nuntil the end",
        ]);
        assert_eq!(client.get("/1").expect(200).text(), "hello");
        assert_eq!(client.get("/2").expect(200).text(), "abcde");
        assert_eq!(client.delete("/3").expect(204).text(), "");
        let last = thread::scope(|scope| {
            let asking = scope.spawn(|| client.get("/4"));
            let asked = server.join().unwrap();
            assert_eq!(
                asked.matches("Authorization: Bearer secret").count(),
                4,
                "{asked}"
            );
            assert!(asked.contains("DELETE /3 HTTP/1.1"), "{asked}");
            asking.join().unwrap()
        });
        assert_eq!(
            (last.status, last.header("x-a"), last.text().as_str()),
            (404, Some("b"), "until the end")
        );
    }

    #[test]
    fn a_body_that_stops_short_is_an_error() {
        let (mut client, _server) = canned(&["HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello"]);
        assert!(client.send(Request::post("/")).is_err());
    }
}
