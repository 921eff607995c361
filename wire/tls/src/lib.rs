//! Connections, plain and under TLS: one type for both, and certificates from files.
//!
//! A [`Channel`] stands between a socket that does not block and the bytes its owner means; plain ones pass them through,
//! so that there is one way of reading and writing, not two. [`ServerFiles`] and [`ClientFiles`] become configurations
//! for the two ports, checked whole before anything uses them; [`Live`] holds a server's, exchanged while it serves.
//! [`explain`] says what went wrong and what to do about it.
//!
//! The cryptography is always named (`aws-lc-rs`): nothing here depends on a default of the process.
//!
//! Not here: sockets and deadlines (their owners'), access tokens (TLS never replaces one), making certificates (`cli`).
#![warn(missing_docs)]

mod channel;
mod files;
mod words;

use rustls::SupportedProtocolVersion;
use rustls::version::{TLS12, TLS13};

pub use channel::{Channel, ChannelError, Sent, Taken, certificate_names, exporter};
pub use files::{ClientFiles, FilesError, Live, ServerConfigs, ServerFiles};
pub use rustls::pki_types::ServerName;
pub use rustls::{ClientConfig, Error, ServerConfig};
pub use words::{Words, explain, explain_any};

/// Which port a configuration is for. They speak different protocols, and say so by ALPN: a browser that was lured to the
/// worker port, or a worker that was given the wrong number, is told before a byte of either is misread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// HTTP/1.1, TLS 1.2 and 1.3.
    Http,
    /// The worker protocol, TLS 1.3 alone: its handshake is bound to the session, which 1.2 does not do safely.
    Worker,
}

impl Port {
    const fn alpn(self) -> &'static [u8] {
        match self {
            Self::Http => b"http/1.1",
            Self::Worker => b"hostler-worker",
        }
    }

    const fn versions(self) -> &'static [&'static SupportedProtocolVersion] {
        match self {
            Self::Http => &HTTP_VERSIONS,
            Self::Worker => &WORKER_VERSIONS,
        }
    }
}

static HTTP_VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
static WORKER_VERSIONS: [&SupportedProtocolVersion; 1] = [&TLS13];
