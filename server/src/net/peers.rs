//! Who is at the other end: what a connection has proven so far, and who failed to too often.

use std::collections::HashMap;
use std::net::IpAddr;

use hostler_engine::{Span, Time};
use hostler_wire::SessionId;
use hostler_wire::handshake::ServerHandshake;

use crate::output::PipeId;

/// What a connection is by now.
#[derive(Debug)]
pub(super) enum Peer {
    /// A stranger: only a hello is listened to.
    Stranger,
    /// Challenged: only the login is.
    Challenged(Box<ServerHandshake>),
    /// A worker.
    Worker {
        session: SessionId,
        /// Whose pipe may join it.
        name: String,
        instance: u64,
    },
    /// A worker's output pipe.
    Pipe(PipeId),
    /// Told why, and waiting for the peer to close.
    Closing,
}

/// Wrong proofs allowed to one address within the window.
const FAILURES_MAX: u32 = 20;
const WINDOW: Span = Span::from_secs(10);
/// Addresses remembered at most; beyond, the oldest window is forgotten.
const ADDRESSES_MAX: usize = 1_024;

/// Addresses from which proofs failed.
#[derive(Debug, Default)]
pub(super) struct Failures(HashMap<IpAddr, (Time, u32)>);

impl Failures {
    pub(super) fn add(&mut self, now: Time, peer: IpAddr) {
        if self.0.len() >= ADDRESSES_MAX && !self.0.contains_key(&peer) {
            let oldest = self
                .0
                .iter()
                .min_by_key(|(_, (since, _))| *since)
                .map(|(ip, _)| *ip);
            oldest.map(|ip| self.0.remove(&ip));
        }
        let (since, count) = self.0.entry(peer).or_insert((now, 0));
        if *since + WINDOW < now {
            (*since, *count) = (now, 0);
        }
        *count += 1;
    }

    /// Whether that address must wait.
    pub(super) fn too_many(&self, now: Time, peer: IpAddr) -> bool {
        self.0
            .get(&peer)
            .is_some_and(|(since, count)| *since + WINDOW >= now && *count >= FAILURES_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_with_many_wrong_proofs_waits_for_the_window_to_pass() {
        let mut failures = Failures::default();
        let peer = IpAddr::from([127, 0, 0, 1]);
        let at = |s| Time::ZERO + Span::from_secs(s);
        for _ in 0..FAILURES_MAX {
            assert!(!failures.too_many(at(1), peer));
            failures.add(at(1), peer);
        }
        assert!(failures.too_many(at(2), peer));
        assert!(!failures.too_many(at(12), peer));
        failures.add(at(12), peer);
        assert!(!failures.too_many(at(12), peer));
    }
}
