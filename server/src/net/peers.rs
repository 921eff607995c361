//! Who is at the other end: sessions, their pipes, and addresses that showed wrong tokens.
//!
//! Not here: sockets (`conn`), what silence means (the engine's).

use std::collections::HashMap;
use std::net::IpAddr;

use hostler_engine::{Span, Time};
use hostler_wire::SessionId;
use hostler_wire::frame::Login;

use crate::output::PipeId;

/// A place in the table of sockets, and the serial number that makes it unambiguous.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub serial: u64,
    pub key: usize,
}

/// A worker with a control connection.
#[derive(Debug)]
pub(super) struct Peer {
    pub place: Place,
    name: String,
    instance: u64,
    pub pipe: Option<PipeId>,
}

/// All sessions and pipes.
#[derive(Debug, Default)]
pub(super) struct Peers {
    pub sessions: HashMap<SessionId, Peer>,
    pipes: HashMap<PipeId, (Place, SessionId)>,
    last_pipe: PipeId,
}

impl Peers {
    /// A session has the number of its connection. A worker dials again only after it has given up the connection before, so
    /// that of two sessions of one instance the greater number is the newer one, in whatever order their logins come.
    pub(super) fn join(&mut self, place: Place, login: &Login) -> SessionId {
        let session = SessionId::new(place.serial);
        let peer = Peer {
            place,
            name: login.name.clone(),
            instance: login.instance,
            pipe: None,
        };
        self.sessions.insert(session, peer);
        session
    }

    /// Opens a pipe for the session it names, if that is the same worker's; says which pipe it takes the place of.
    pub(super) fn open_pipe(
        &mut self,
        place: Place,
        login: &Login,
    ) -> Option<(PipeId, Option<PipeId>)> {
        let session = login.session?;
        let peer = self.sessions.get_mut(&session)?;
        if peer.name != login.name || peer.instance != login.instance {
            return None;
        }
        self.last_pipe += 1;
        let old = peer.pipe.replace(self.last_pipe);
        self.pipes.insert(self.last_pipe, (place, session));
        Some((self.last_pipe, old))
    }

    pub(super) fn session(&self, session: SessionId) -> Option<Place> {
        self.sessions.get(&session).map(|peer| peer.place)
    }

    pub(super) fn pipe(&self, pipe: PipeId) -> Option<Place> {
        self.pipes.get(&pipe).map(|(place, _)| *place)
    }

    /// Forgets a session; says which pipe it leaves behind.
    pub(super) fn leave(&mut self, session: SessionId) -> Option<PipeId> {
        self.sessions.remove(&session)?.pipe
    }

    pub(super) fn close_pipe(&mut self, pipe: PipeId) {
        let Some((_, session)) = self.pipes.remove(&pipe) else {
            return;
        };
        if let Some(peer) = self.sessions.get_mut(&session)
            && peer.pipe == Some(pipe)
        {
            peer.pipe = None;
        }
    }
}

/// Addresses that showed wrong tokens lately. After [`BURST`] of them an address may try again once a
/// second. A right token does not help then, or it could be searched for: workers with one try again by themselves.
#[derive(Debug, Default)]
pub(super) struct Failures {
    /// When the failures of an address are forgiven.
    until: HashMap<IpAddr, Time>,
}

const BURST: u64 = 20;
const FORGIVEN_AFTER: Span = Span::from_millis(1_000);
/// Most addresses remembered; more make the remembered ones go, which an attacker with so many does not need.
const ADDRESSES_MAX: usize = 4_096;

impl Failures {
    /// Whether an address must wait before its next try.
    pub(super) fn must_wait(&self, address: IpAddr, now: Time) -> bool {
        let until = self.until.get(&address);
        until.is_some_and(|until| until.since(now).micros() >= BURST * FORGIVEN_AFTER.micros())
    }

    pub(super) fn add(&mut self, address: IpAddr, now: Time) {
        if self.until.len() >= ADDRESSES_MAX {
            self.until.retain(|_, until| *until > now);
        }
        if self.until.len() >= ADDRESSES_MAX {
            self.until.clear();
        }
        let until = self.until.entry(address).or_insert(now);
        *until = (*until).max(now) + FORGIVEN_AFTER;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_tokens_slow_their_own_address_down_for_a_while() {
        let mut failures = Failures::default();
        let (bad, good) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let start = Time::from_micros(5_000_000);
        for _ in 0..BURST {
            assert!(!failures.must_wait(bad, start));
            failures.add(bad, start);
        }
        assert!(failures.must_wait(bad, start));
        assert!(!failures.must_wait(good, start));
        assert!(!failures.must_wait(bad, start + Span::from_millis(1_001)));
    }
}
