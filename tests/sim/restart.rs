//! Ends of a server that are nobody's accident: an orderly stop, and a backup that takes the place of what is there.
//!
//! A stop is what `server.rs` does: nobody new is let in, nothing is given out, what has not started is called back, and
//! what is in flight is committed; then dispatch ends, and the writer when it has nothing left. A restored backup is
//! another history from there on: nothing of what happened since is to be believed.

use std::collections::BTreeSet;

use hostler_server::dispatch::Message;
use hostler_server::store::memory;
use tokio::sync::oneshot;

use crate::files::ModelFiles;
use crate::options::S;
use crate::oracle::Snapshot;
use crate::world::{Happening, World};

/// How long a stopping server waits for what it called back.
const SETTLE: u64 = 2 * S;

/// Everything as it was.
pub(crate) struct Backup {
    store: memory::Backup,
    files: ModelFiles,
    known: Snapshot,
}

impl World {
    pub(crate) fn server_stops(&mut self) {
        let epoch = self.epoch();
        let Some(server) = &mut self.server else {
            return;
        };
        if server.stopping.is_some() {
            return;
        }
        let (settled, is_settled) = oneshot::channel();
        server.stopping = Some(is_settled);
        server.tell.tell(Message::Stopping { settled });
        self.trace.say(self.now, || "server is told to stop".into());
        self.after(SETTLE, Happening::Settles { epoch });
        self.wake();
    }

    pub(crate) fn poll_settled(&mut self) {
        let epoch = self.epoch();
        let Some(server) = &mut self.server else {
            return;
        };
        if let Some(settled) = &mut server.stopping
            && settled.try_recv().is_ok()
        {
            self.after(0, Happening::Settles { epoch });
        }
    }

    /// The threads end: dispatch first, the writer last.
    pub(crate) fn settles(&mut self, epoch: u32, what: Happening) {
        let Some(server) = self.server(epoch, what) else {
            return;
        };
        if server.stopped {
            return;
        }
        server.stopped = true;
        server.tell.tell(Message::Stop);
        server.dispatch.turn();
        server.pass_facts(&mut |_| {});
        server.submit.stop();
        self.wake();
    }

    pub(crate) fn server_has_stopped(&mut self) {
        self.trace.say(self.now, || "server has stopped".into());
        let committed = self.oracle().facts;
        if let Some(server) = &mut self.server {
            // On a full disk nothing more can be done; workers keep their reports.
            assert!(
                self.disk_full || server.facts_passed == committed - server.facts_before,
                "a server that stopped in order left facts behind that were not committed"
            );
            if server.storing {
                server.keeper.finish_turn();
            }
            while server.keeper.gather() {
                server.keeper.finish_turn();
            }
            server.keeper.close();
        }
        let back = self.rng.waits(2 * S);
        self.server_dies(false, back);
    }

    pub(crate) fn take_backup(&mut self) {
        let known = self.oracle().snapshot();
        self.trace.say(self.now, || "a backup is taken".into());
        self.backup = Some(Box::new(Backup {
            store: self.disk.backup(),
            files: self.files.copy(),
            known,
        }));
    }

    pub(crate) fn restore_backup(&mut self, back_after: u64) {
        let Some(backup) = self.backup.take() else {
            return;
        };
        self.trace.say(self.now, || "a backup comes back".into());
        if self.server.is_some() {
            self.server_dies(false, back_after);
        }
        self.disk.restore(&backup.store);
        self.files.restore(&backup.files);
        // What is read from a copy may have been written a moment before: the copy was synced.
        self.history += 1;
        let mut oracle = self.oracle();
        oracle.restore(&backup.known);
        let known: BTreeSet<_> = oracle.jobs.keys().copied().collect();
        drop(oracle);
        self.promised.retain(|id| known.contains(id));
        self.followers.clear();
        let mut oracle = self.oracle();
        oracle.history = self.history;
    }
}
