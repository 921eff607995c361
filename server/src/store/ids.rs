//! Job ids, sequential and never given out twice (not even if the process dies between taking one and committing it).
//!
//! The store remembers a promise: ids below it are used or may be. Each commit renews it a block ahead, for free,
//! since it rides along with the commit's own row; so ids are only ever taken below a promise that is already on disk,
//! and what was taken and not committed when the process died is skipped by the next one. A tidy stop takes the unused
//! rest back.

use hostler_wire::{JobId, mutation};

/// How far ahead ids are promised: above what one batch takes, and small enough that the gap after a crash is no
/// riddle.
pub(super) const BLOCK: u64 = 1 << 16;

/// The ids not given out yet.
#[derive(Debug)]
pub(super) struct Ids {
    next: u64,
    /// Durable: ids below may be given out.
    promised: u64,
}

impl Ids {
    /// Goes on where the store left off; nothing may be taken before the first promise.
    pub(super) fn new(next: JobId) -> Self {
        Self {
            next: if mutation::is("id given out again after a crash") {
                next.raw().saturating_sub(BLOCK).max(1)
            } else {
                next.raw()
            },
            promised: next.raw(),
        }
    }

    /// Whether that many can be taken.
    pub(super) fn has(&self, count: u64) -> bool {
        self.next + count <= self.promised
    }

    /// Takes consecutive ids; the first is returned.
    ///
    /// # Panics
    /// If they were not promised first ([`has`](Self::has)): giving them out could give them out twice.
    pub(super) fn take(&mut self, count: u64) -> JobId {
        assert!(
            self.has(count),
            "ids are taken only after their promise is durable"
        );
        let first = JobId::new(self.next).expect("ids run out in 285 years");
        self.next += count;
        first
    }

    /// What the next commit should promise so that at least `count` more can be taken after it.
    pub(super) fn promise(&self, count: u64) -> JobId {
        let through = (self.next + BLOCK.max(count)).min(JobId::MAX.raw());
        JobId::new(through).expect("ids run out in 285 years")
    }

    /// The first id not given out, to promise no more than was used at a tidy stop.
    pub(super) fn next(&self) -> JobId {
        JobId::new(self.next).expect("ids run out in 285 years")
    }

    /// That promise is on disk.
    pub(super) fn promised(&mut self, through: JobId) {
        self.promised = self.promised.max(through.raw());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_taken_only_below_a_durable_promise() {
        let mut ids = Ids::new(JobId::MIN);
        assert!(!ids.has(1));
        let through = ids.promise(3);
        assert_eq!(through.raw(), 1 + BLOCK);
        ids.promised(through);
        assert_eq!(ids.take(2).raw(), 1);
        assert_eq!(ids.take(1).raw(), 3);
        assert_eq!(ids.next().raw(), 4);
        assert!(ids.has(BLOCK - 3) && !ids.has(BLOCK - 2));
    }

    #[test]
    fn a_batch_above_the_block_gets_a_promise_of_its_size() {
        let ids = Ids::new(JobId::MIN);
        assert_eq!(ids.promise(BLOCK * 2).raw(), 1 + BLOCK * 2);
    }
}
