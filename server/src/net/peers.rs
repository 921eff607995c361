//! Who is at the other end: sessions and their pipes.
//!
//! Not here: sockets (`conn`), what silence means (the engine's).

use std::collections::HashMap;

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
    /// The access token it has proven.
    pub token_id: Box<str>,
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
    pub(super) fn join(&mut self, place: Place, token_id: &str, login: &Login) -> SessionId {
        let session = SessionId::new(place.serial);
        let peer = Peer {
            place,
            token_id: token_id.into(),
            name: login.name.clone(),
            instance: login.instance,
            pipe: None,
        };
        self.sessions.insert(session, peer);
        session
    }

    /// Opens a pipe for the session it names, if that is the same worker's with the same token; says which pipe it takes
    /// the place of.
    pub(super) fn open_pipe(
        &mut self,
        place: Place,
        token_id: &str,
        login: &Login,
    ) -> Option<(PipeId, Option<PipeId>)> {
        let session = login.session?;
        let peer = self.sessions.get_mut(&session)?;
        if (&peer.name, peer.instance) != (&login.name, login.instance)
            || *peer.token_id != *token_id
        {
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
