//! The model network: connections that delay, keep their order, and break in every way that TCP's do.
//!
//! Bytes sent at one end come out at the other in order, in pieces, later. A cut lets a piece of what was under way
//! through, in mid-frame, and tells each end sooner, later or never: half-open. A partition holds everything until it
//! heals, or in one direction only. A byte may be changed on its way. Between connections there is no order.

use std::collections::{BTreeMap, VecDeque};

use bytes::BytesMut;

use crate::rng::Rng;

pub(crate) type ConnId = u64;

/// Which end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Server,
    Worker,
}

/// Which directions of a worker's network are held back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) to_server: bool,
    pub(crate) to_worker: bool,
}

impl Held {
    pub(crate) const BOTH: Self = Self {
        to_server: true,
        to_worker: true,
    };
}

/// What comes out of a pipe.
#[derive(Debug)]
pub(crate) enum Piece {
    Bytes(BytesMut),
    /// The other end is gone.
    Closed,
}

/// One direction of a connection.
#[derive(Debug, Default)]
struct Pipe {
    under_way: VecDeque<(u64, Piece)>,
    last_at: u64,
    /// Nothing comes through any more, and nobody is told.
    dead: bool,
}

#[derive(Debug)]
struct Conn {
    worker: usize,
    held: Held,
    to_server: Pipe,
    to_worker: Pipe,
}

/// All connections.
#[derive(Debug, Default)]
pub(crate) struct Network {
    conns: BTreeMap<ConnId, Conn>,
    last: ConnId,
    /// A bit of the next piece to or from that worker is turned over: which one follows from the number.
    flips: BTreeMap<usize, u64>,
}

impl Conn {
    fn pipe(&mut self, to: End) -> &mut Pipe {
        match to {
            End::Server => &mut self.to_server,
            End::Worker => &mut self.to_worker,
        }
    }
}

impl Network {
    /// A new connection, which only has to be spoken on.
    pub(crate) fn open(&mut self, worker: usize, held: Held) -> ConnId {
        self.last += 1;
        let conn = Conn {
            worker,
            held,
            to_server: Pipe::default(),
            to_worker: Pipe::default(),
        };
        self.conns.insert(self.last, conn);
        self.last
    }

    /// Puts bytes on their way; says when they will be there.
    pub(crate) fn send(&mut self, id: ConnId, to: End, mut piece: Piece, at: u64) -> Option<u64> {
        let conn = self.conns.get_mut(&id)?;
        let worker = conn.worker;
        let pipe = conn.pipe(to);
        if pipe.dead {
            return None;
        }
        if let Piece::Bytes(bytes) = &mut piece
            && !bytes.is_empty()
            && let Some(word) = self.flips.remove(&worker)
        {
            let place = word % bytes.len() as u64;
            bytes[usize::try_from(place).expect("below a length")] ^= 1 << (word >> 61);
        }
        let at = at.max(pipe.last_at);
        pipe.last_at = at;
        pipe.under_way.push_back((at, piece));
        Some(at)
    }

    /// The next piece that has arrived.
    pub(crate) fn take(&mut self, id: ConnId, to: End, now: u64) -> Option<Piece> {
        let conn = self.conns.get_mut(&id)?;
        let is_held = match to {
            End::Server => conn.held.to_server,
            End::Worker => conn.held.to_worker,
        };
        if is_held {
            return None;
        }
        let pipe = conn.pipe(to);
        if pipe.under_way.front()?.0 > now {
            return None;
        }
        pipe.under_way.pop_front().map(|(_, piece)| piece)
    }

    /// Whose it is.
    pub(crate) fn worker_of(&self, id: ConnId) -> Option<usize> {
        self.conns.get(&id).map(|conn| conn.worker)
    }

    /// That end will neither send nor read any more. The other end is told at that time, or never.
    pub(crate) fn close(&mut self, id: ConnId, by: End, told_at: Option<u64>) -> Option<u64> {
        let conn = self.conns.get_mut(&id)?;
        let (to, from) = match by {
            End::Server => (End::Worker, End::Server),
            End::Worker => (End::Server, End::Worker),
        };
        let back = conn.pipe(from);
        back.dead = true;
        back.under_way.clear();
        let told = match told_at {
            Some(at) => self.send(id, to, Piece::Closed, at),
            None => None,
        };
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.pipe(to).dead = true;
        }
        told
    }

    /// The line breaks: of what is under way a part comes through. Each end is told at its time, or never.
    pub(crate) fn cut(&mut self, id: ConnId, told: [(End, Option<u64>); 2], rng: &mut Rng) {
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        for (end, at) in told {
            let pipe = conn.pipe(end);
            if pipe.dead {
                continue; // broken before: what its end is told stays on its way
            }
            let keep = rng.below(pipe.under_way.len() as u64 + 1);
            let keep = usize::try_from(keep).expect("no more than a length");
            pipe.under_way.truncate(keep);
            if let Some((_, Piece::Bytes(bytes))) = pipe.under_way.back_mut() {
                let left = rng.below(bytes.len() as u64 + 1);
                bytes.truncate(usize::try_from(left).expect("no more than a length"));
            }
            if let Some(at) = at {
                pipe.under_way
                    .push_back((at.max(pipe.last_at), Piece::Closed));
            }
            pipe.dead = true;
        }
    }

    /// Holds or lets through whatever goes to and from that worker; says which connections to look at.
    pub(crate) fn hold(&mut self, worker: usize, held: Held) -> Vec<ConnId> {
        let mut theirs = Vec::new();
        for (id, conn) in &mut self.conns {
            if conn.worker == worker {
                conn.held = held;
                theirs.push(*id);
            }
        }
        theirs
    }

    /// The next piece to or from that worker is damaged on its way.
    pub(crate) fn flip_next(&mut self, worker: usize, word: u64) {
        self.flips.insert(worker, word);
    }

    /// Nothing more is damaged.
    pub(crate) fn make_peace(&mut self) {
        self.flips.clear();
    }

    /// Every connection.
    pub(crate) fn all(&self) -> Vec<ConnId> {
        self.conns.keys().copied().collect()
    }

    /// Forgets those on which nothing can come any more.
    pub(crate) fn sweep(&mut self) {
        self.conns.retain(|_, conn| {
            let over = |pipe: &Pipe| pipe.dead && pipe.under_way.is_empty();
            !(over(&conn.to_server) && over(&conn.to_worker))
        });
    }
}
