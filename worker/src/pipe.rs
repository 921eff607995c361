//! The output connection: a socket of its own, so that output never stands in the way of control.
//!
//! It is made when the first attempt prints something, to the server the control connection is with, and names that
//! session; with the session it goes. What was not acknowledged is sent again on the next one. Its buffer is filled
//! only a little ahead of the socket: output that waits, waits in the spool, where it is bounded.
//!
//! Not here: what is sent and kept (`output`), the handshake (`link`).

use hostler_wire::SessionId;
use hostler_wire::frame::{Frame, Login, Role};
use mio::Registry;

use crate::clock::Time;
use crate::link::{Access, BackOff, Line, LineError, Peer, Said};
use crate::output::Spool;

/// How far the buffer is filled ahead of the socket.
const AHEAD_BYTES: usize = 256 << 10;

/// The output connection.
#[derive(Debug)]
pub(crate) struct OutputPipe {
    line: Option<Line>,
    /// Where to, and which session to name; none while there is no control session.
    target: Option<(Peer, SessionId)>,
    back_off: BackOff,
    retry_at: Time,
    said: Vec<Said>,
    /// The socket took everything, and the spool has more.
    more: bool,
}

impl OutputPipe {
    pub(crate) fn new() -> Self {
        Self {
            line: None,
            target: None,
            back_off: BackOff::new(),
            retry_at: Time::default(),
            said: Vec::new(),
            more: false,
        }
    }

    /// A control session has begun, or (with `None`) ended.
    pub(crate) fn follow(&mut self, target: Option<(Peer, SessionId)>) {
        self.line = None;
        self.more = false;
        self.target = target;
        self.back_off.reset();
        self.retry_at = Time::default();
    }

    pub(crate) fn notice(&mut self, event: &mio::event::Event) {
        if let Some(line) = &mut self.line {
            line.notice(event);
        }
    }

    /// Makes the connection if there is something to send.
    pub(crate) fn dial(
        &mut self,
        now: Time,
        access: &Access,
        registry: &Registry,
        name: mio::Token,
        spool: &Spool,
    ) {
        let Some((peer, _)) = &self.target else {
            return;
        };
        if self.line.is_some() || spool.is_empty() || now < self.retry_at {
            return;
        }
        match Line::connect(peer.clone(), Role::Output, access, registry, name, now) {
            Ok(line) => self.line = Some(line),
            Err(error) => self.lost(now, &LineError::Io(error)),
        }
    }

    /// Takes acknowledgements, gives output. One read and a bounded write.
    pub(crate) fn turn(
        &mut self,
        now: Time,
        buffer: &mut [u8],
        login: impl FnOnce() -> Login,
        spool: &mut Spool,
    ) {
        if let Err(why) = self.exchange(now, buffer, login, spool) {
            self.lost(now, &why);
        }
    }

    pub(crate) fn wants_turn(&self) -> bool {
        self.more || self.line.as_ref().is_some_and(Line::wants_turn)
    }

    /// When [`dial`](Self::dial) or [`turn`](Self::turn) have something to do if nothing happens first.
    pub(crate) fn next_deadline(&self, spool: &Spool) -> Option<Time> {
        match &self.line {
            Some(line) if line.is_ready() => spool.next_deadline(),
            Some(line) => line.deadline(),
            None => (self.target.is_some() && !spool.is_empty()).then_some(self.retry_at),
        }
    }

    fn exchange(
        &mut self,
        now: Time,
        buffer: &mut [u8],
        login: impl FnOnce() -> Login,
        spool: &mut Spool,
    ) -> Result<(), LineError> {
        let (Some(line), Some((_, session))) = (&mut self.line, &self.target) else {
            return Ok(());
        };
        let session = *session;
        self.more = false;
        let login = || Login {
            session: Some(session),
            ..login()
        };
        line.turn(now, buffer, login, &mut self.said)?;
        for said in self.said.drain(..) {
            match said {
                Said::Welcome(..) => {
                    self.back_off.reset();
                    spool.rewind();
                }
                Said::Frame(Frame::OutputAck(ack)) => spool.acked(&ack),
                Said::Frame(Frame::Refused(refused)) => return Err(LineError::Refused(refused)),
                Said::Frame(_) => return Err(LineError::Unexpected),
            }
        }
        if line.is_ready() {
            spool.resume(now);
            while line.out.len() < AHEAD_BYTES
                && let Some(frame) = spool.next_frame(now)
            {
                line.send(&frame);
            }
        }
        let full = line.out.len() >= AHEAD_BYTES;
        line.flush()?;
        self.more = full && line.out.len() < AHEAD_BYTES;
        Ok(())
    }

    fn lost(&mut self, now: Time, why: &LineError) {
        tracing::info!(%why, "no output connection");
        self.line = None;
        self.more = false;
        self.said.clear();
        self.retry_at = now + self.back_off.next();
    }
}
