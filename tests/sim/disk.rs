//! The model disk: the in-memory store behind the seam, with a fate for each commit, and the oracle looking on.
//!
//! How long a commit takes is the world's business: it lets time pass between the writer's gathering and its commit. Here
//! is what becomes of it: applied, refused, or unknown. What was not synced vanishes when the power goes.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use hostler_engine::event::Restore;
use hostler_engine::{Span, Time};
use hostler_server::clock::Stamp;
use hostler_server::store::memory::{Disk, Fault, MemoryStore};
use hostler_server::store::seam::{
    Commit, CommitError, KeyRecord, Opening, Read, Store, StoreError, StoreErrorKind,
};

use crate::oracle::Oracle;

/// Shared by world and store.
pub(crate) type SharedOracle = Arc<Mutex<Oracle>>;

/// What becomes of the next commit.
#[derive(Debug, Default)]
pub(crate) struct Fate(AtomicU8);

impl Fate {
    const FINE: u8 = 0;
    const FULL: u8 = 1;
    const LOST: u8 = 2;
    const KEPT: u8 = 3;

    pub(crate) fn fine(&self) {
        self.0.store(Self::FINE, Ordering::Relaxed);
    }

    /// Refused for want of space.
    pub(crate) fn full(&self) {
        self.0.store(Self::FULL, Ordering::Relaxed);
    }

    /// It fails, and nobody knows whether it is there.
    pub(crate) fn unknown(&self, kept: bool) {
        let fate = if kept { Self::KEPT } else { Self::LOST };
        self.0.store(fate, Ordering::Relaxed);
    }
}

/// See the module.
pub(crate) struct ModelStore {
    inner: MemoryStore,
    disk: Disk,
    fate: Arc<Fate>,
    oracle: SharedOracle,
    tidied: Option<Time>,
}

/// Between two steps of housekeeping.
const TIDY_EVERY: Span = Span::from_secs(60);

impl ModelStore {
    pub(crate) fn open(disk: &Disk, fate: &Arc<Fate>, oracle: &SharedOracle) -> Self {
        Self {
            inner: MemoryStore::open(disk),
            disk: disk.clone(),
            fate: Arc::clone(fate),
            oracle: Arc::clone(oracle),
            tidied: None,
        }
    }
}

impl Store for ModelStore {
    fn opening(&self) -> &Opening {
        self.inner.opening()
    }

    fn load(&mut self, each: &mut dyn FnMut(Restore)) -> Result<(), StoreError> {
        self.inner.load(each)
    }

    fn commit(&mut self, commit: &Commit<'_>) -> Result<(), CommitError> {
        let fault = match self.fate.0.load(Ordering::Relaxed) {
            Fate::FULL => Some(Fault::Refuse(StoreErrorKind::Full)),
            Fate::LOST => Some(Fault::UnknownLost),
            Fate::KEPT => Some(Fault::UnknownKept),
            _ => None,
        };
        if let Some(fault) = fault {
            self.disk.fault(fault);
        }
        let done = self.inner.commit(commit);
        if done.is_ok() || fault == Some(Fault::UnknownKept) {
            let mut oracle = self.oracle.lock().unwrap_or_else(PoisonError::into_inner);
            oracle.committed(commit);
        }
        done
    }

    fn key(&mut self, token: &str, key: &str) -> Result<Option<KeyRecord>, StoreError> {
        self.inner.key(token, key)
    }

    fn reader(&self) -> Result<Box<dyn Read>, StoreError> {
        self.inner.reader()
    }

    fn maintain(&mut self, stamp: &Stamp) -> Result<bool, StoreError> {
        // It looks at every row there is.
        if self.tidied.is_some_and(|at| stamp.engine < at + TIDY_EVERY) {
            return Ok(false);
        }
        self.tidied = Some(stamp.engine);
        self.inner.maintain(stamp)
    }

    fn close(self: Box<Self>) -> Result<(), StoreError> {
        Box::new(self.inner).close()
    }
}
