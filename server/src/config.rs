//! What the server is told at its start, as plain validated values. Reading flags, environment and files is the
//! command line's business.

use std::net::SocketAddr;
use std::num::NonZero;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use hostler_tls::ServerFiles;
use hostler_wire::Allow;

/// A server's settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where HTTP listens; port 0 = any free one.
    pub listen: SocketAddr,
    /// Names HTTP answers to beside addresses and `localhost`: the `Host` header must carry one of them.
    pub allowed_hosts: Vec<String>,
    /// Where workers connect; port 0 = any free one.
    pub worker_listen: SocketAddr,
    /// Database, output, tokens and lock.
    pub data_dir: PathBuf,
    /// How long a silent worker keeps its work.
    pub worker_grace: Duration,
    /// How long a state answer waits for the live part.
    pub probe_timeout: Duration,
    /// How long a stopping server waits for what is in flight.
    pub drain_timeout: Duration,
    /// When an answer may leave.
    pub durability: Durability,
    /// No access tokens on HTTP: refused unless `listen` is a loopback address.
    pub no_auth: bool,
    /// TLS on both ports; none: both are plain.
    pub tls: Option<ServerFiles>,
    /// Plain ports may be opened on addresses others can reach. Access tokens are readable on the way then.
    pub allow_plaintext: bool,
    /// Types of job accepted at intake.
    pub allow: Allow,
    /// Threads that serve HTTP.
    pub http_threads: usize,
    /// Every bound; see docs/limits.md.
    pub limits: Limits,
}

/// What "accepted" means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// On disk: survives a power cut.
    #[default]
    Fsync,
    /// With the operating system: survives a kill, not a power cut.
    Os,
}

/// Every bound of the server (P7), with its default. `docs/limits.md` lists them and a test compares.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Largest HTTP request body.
    pub body_bytes_max: usize,
    /// Most jobs in one request.
    pub batch_jobs_max: usize,
    /// HTTP requests a second of a token that has no rate of its own; above: 429. None: any number.
    pub token_requests_per_second: Option<u32>,
    /// Jobs submitted a second of a token that has no rate of its own; above: 429. None: any number.
    pub token_jobs_per_second: Option<u32>,
    /// Bytes of submissions waiting for their commit; above: 503.
    pub intake_bytes_max: usize,
    /// Open HTTP connections; above: the connection gets a 503 and closes.
    pub http_connections_max: usize,
    /// Of these, from one address; above: the same.
    pub http_connections_per_address_max: usize,
    /// Until a request's headers must be there.
    pub http_header_timeout: Duration,
    /// Until its body must be there.
    pub http_body_timeout: Duration,
    /// How long a connection may idle between requests.
    pub http_idle_timeout: Duration,
    /// How long a reader may leave an answer untouched.
    pub http_write_timeout: Duration,
    /// Longest `?wait=`.
    pub wait_max: Duration,
    /// Jobs that have not ended; above: 429.
    pub live_jobs_max: u64,
    /// Of these, in one queue; above: 429. None: as many as in all.
    pub queue_jobs_max: Option<u64>,
    /// Bytes of bodies kept in memory ahead of dispatch; above: they stay on disk until wanted.
    pub resident_bytes_max: usize,
    /// Connections on the worker port.
    pub worker_connections_max: usize,
    /// Of these, from one address; above: refused as busy.
    pub worker_connections_per_address_max: usize,
    /// Until a connection on the worker port must have proven itself.
    pub handshake_timeout: Duration,
    /// TLS handshakes at once on each port; above: the next wait, those that take long make room.
    pub tls_handshakes_max: usize,
    /// Bytes waiting to be sent to one worker; above: it is disconnected.
    pub worker_send_bytes_max: usize,
    /// Output kept of one attempt.
    pub output_bytes_max: u64,
    /// Output on disk, of all jobs; above: the oldest goes before its time.
    pub output_total_bytes_max: u64,
    /// How long the output of jobs that did not fail is kept.
    pub output_keep: Duration,
    /// How long any output is kept.
    pub output_keep_failed: Duration,
    /// Bytes of output waiting for the output thread; above: pipes are not read.
    pub output_pending_bytes_max: usize,
    /// Result kept with a job.
    pub result_bytes_max: usize,
    /// How long an Idempotency-Key is remembered.
    pub key_retention: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes_max: 8 << 20,
            batch_jobs_max: 10_000,
            token_requests_per_second: None,
            token_jobs_per_second: None,
            intake_bytes_max: 64 << 20,
            http_connections_max: 16_384,
            http_connections_per_address_max: 8_192,
            http_header_timeout: Duration::from_secs(10),
            http_body_timeout: Duration::from_secs(30),
            http_idle_timeout: Duration::from_secs(60),
            http_write_timeout: Duration::from_secs(60),
            wait_max: Duration::from_secs(300),
            live_jobs_max: 50_000_000,
            queue_jobs_max: None,
            resident_bytes_max: 64 << 20,
            worker_connections_max: 16_384,
            worker_connections_per_address_max: 8_192,
            handshake_timeout: Duration::from_secs(10),
            tls_handshakes_max: 256,
            worker_send_bytes_max: 64 << 20,
            output_bytes_max: 16 << 20,
            output_total_bytes_max: 64 << 30,
            output_keep: Duration::from_secs(7 * 24 * 3_600),
            output_keep_failed: Duration::from_secs(30 * 24 * 3_600),
            output_pending_bytes_max: 8 << 20,
            result_bytes_max: 256 << 10,
            key_retention: Duration::from_secs(24 * 3_600),
        }
    }
}

impl Config {
    /// Shortest `worker_grace`: two heartbeats. With less a worker that is well would be given up between two of them.
    pub const WORKER_GRACE_MIN: Duration = Duration::from_secs(4);
    /// Most threads that serve HTTP: beyond this the one writer is what is waited for.
    pub const HTTP_THREADS_MAX: usize = 8;

    /// Defaults around a data directory.
    pub fn new(data_dir: PathBuf) -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7440)),
            allowed_hosts: Vec::new(),
            worker_listen: SocketAddr::from(([127, 0, 0, 1], 7441)),
            data_dir,
            worker_grace: Duration::from_secs(30),
            probe_timeout: Duration::from_millis(250),
            drain_timeout: Duration::from_secs(30),
            durability: Durability::Fsync,
            no_auth: false,
            tls: None,
            allow_plaintext: false,
            allow: Allow::ALL,
            http_threads: http_threads(thread::available_parallelism().map_or(1, NonZero::get)),
            limits: Limits::default(),
        }
    }
}

/// Threads that serve HTTP on so many processors. One keeps the writer busy, so that is what few processors get: on
/// two, a second one takes from the writer and the workers what it gives.
fn http_threads(processors: usize) -> usize {
    (processors / 4).clamp(1, Config::HTTP_THREADS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_gets_more_threads_where_there_are_processors_to_spare() {
        for (processors, threads) in [(1, 1), (2, 1), (4, 1), (8, 2), (16, 4), (96, 8)] {
            assert_eq!(http_threads(processors), threads);
        }
    }

    #[test]
    fn the_limits_page_tells_every_default() {
        let page = include_str!("../../docs/limits.md");
        for line in format!("{:#?}", Limits::default()).lines() {
            let Some((name, value)) = line.trim().trim_end_matches(',').split_once(": ") else {
                continue;
            };
            let row = format!("| `{name}` | `{value}` |");
            assert!(page.contains(&row), "docs/limits.md has no row {row}");
        }
    }
}
