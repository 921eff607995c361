//! A hyper server that answers every request at once: what single requests cost before anything is done for them.
//!
//! Set up as the server's own HTTP is: the same number of threads on one listener, each with a runtime of its own; the
//! body is read, and the answer has the status, headers and length of one that accepts a job. It has no time limits,
//! which hyper then need not watch: the reference is the cheapest that hyper offers, not the safest.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZero;
use std::thread;

use anyhow::Result;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;

const BODY: &[u8] = b"{\"id\":1000000,\"state\":\"queued\",\"queue\":\"default\",\"priority\":0,\
    \"links\":{\"self\":\"/jobs/1000000\",\"logs\":\"/jobs/1000000/logs\"}}";

/// Starts one on threads of its own, for as long as this process lives.
pub fn start() -> Result<SocketAddr> {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listener.set_nonblocking(true)?;
    let addr = listener.local_addr()?;
    for number in 0..threads() {
        let listener = listener.try_clone()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()?;
        thread::Builder::new()
            .name(format!("responder-{number}"))
            .spawn(move || {
                // It ends with the process; an error here shows as silence to the client, which reports it.
                drop(runtime.block_on(serve(listener)));
            })?;
    }
    Ok(addr)
}

/// As many as the server has on this machine without being told.
fn threads() -> usize {
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    (processors / 4).clamp(1, 8)
}

async fn serve(listener: std::net::TcpListener) -> Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let http = http1::Builder::new();
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(http.serve_connection(TokioIo::new(stream), service_fn(answer)));
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
    request.into_body().collect().await?;
    let mut response = Response::new(Full::new(Bytes::from_static(BODY)));
    *response.status_mut() = StatusCode::CREATED;
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, "application/json"),
        (header::LOCATION, "/jobs/1000000"),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (
            header::HeaderName::from_static("x-request-id"),
            "0123abcd-1000000",
        ),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{request, run};

    #[test]
    fn every_request_is_answered() {
        let addr = start().unwrap();
        let bytes = request("POST", "/jobs", Some("t"), b"{\"handler\":\"noop\"}");
        let mut left = 500;
        let next = || {
            left -= 1;
            (left >= 0).then(|| bytes.clone())
        };
        let mut whole = 0;
        let done = run(addr, 8, next, |body| {
            whole += usize::from(body == BODY);
            Ok(())
        })
        .unwrap();
        assert_eq!((done.requests, done.refused, whole), (500, 0, 500));
    }
}
