//! Counters, each with one writer, and the server's health; read by anyone at any time.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A number that one thread writes and any may read.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds; only the counter's own thread calls this, so a plain load and store will do.
    pub fn add(&self, n: u64) {
        self.0
            .store(self.0.load(Ordering::Relaxed) + n, Ordering::Relaxed);
    }

    /// Sets; only the counter's own thread calls this.
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// The present value.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Commits of the database, so that others on its disk can step back for them. One thread commits.
#[derive(Debug, Default)]
pub struct Commits {
    begun: AtomicU64,
    ended: AtomicU64,
}

impl Commits {
    /// One begins, until what is returned is dropped.
    pub fn begin(&self) -> impl Drop {
        self.begun.fetch_add(1, Ordering::AcqRel);
        CommitEnds(&self.ended)
    }

    /// How many have begun.
    pub fn begun(&self) -> u64 {
        self.begun.load(Ordering::Acquire)
    }

    /// Whether that one has ended.
    pub fn has_ended(&self, number: u64) -> bool {
        self.ended.load(Ordering::Acquire) >= number
    }
}

struct CommitEnds<'a>(&'a AtomicU64);

impl Drop for CommitEnds<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }
}

/// Whether the server can do its work.
#[derive(Debug, Default)]
pub struct Health {
    ready: AtomicBool,
    stopping: AtomicBool,
    /// Why the store takes nothing at the moment. Locked for a string's copy only, and never by dispatch or wire.
    store: Mutex<Option<String>>,
}

impl Health {
    /// Recovery is done and the ports are open.
    pub fn set_ready(&self) {
        self.ready.store(true, Ordering::Release);
    }

    /// The server winds down.
    pub fn set_stopping(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// The store refuses commits for this reason, or takes them again.
    pub fn set_store(&self, trouble: Option<String>) {
        *self
            .store
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = trouble;
    }

    /// Whether it winds down.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// What keeps it from being ready, if anything does.
    pub fn trouble(&self) -> Option<String> {
        if self.is_stopping() {
            return Some("the server is stopping".into());
        }
        if !self.ready.load(Ordering::Acquire) {
            return Some("the server is starting".into());
        }
        self.store
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
    }
}
