//! Which candidates a list query wants, and how far one page looks for them: shared by the stores.
//!
//! A page is served by an index (rare ends by state) or by a walk over ids that looks at no more than a fixed number of
//! jobs and then says where to go on, so that no query of anybody reads millions of rows. An index on queue or name
//! would cost every job 0.5–0.7 µs of the writer's time.
//!
//! Ids are given out in the order of time, so a time bound cuts the walk short, with a margin for clocks that were
//! set back.

use hostler_wire::{JobId, JobState};

use crate::store::seam::{
    AuditEntry, AuditPage, AuditQuery, ListQuery, StoreError, StoreErrorKind,
};

/// Most jobs one page looks at.
pub(super) const SCAN_MAX: usize = 10_000;
/// How far a wall clock may have been set back without hiding a job from a time-bound list.
pub(super) const CLOCK_MARGIN_MS: u64 = 2 * 24 * 3_600 * 1_000;

/// Refuses what no index and no bounded walk serves.
pub(super) fn check(query: &ListQuery) -> Result<(), StoreError> {
    match query.states.iter().find(|state| !state.is_terminal()) {
        Some(state) => Err(StoreError {
            kind: StoreErrorKind::NoIndex,
            message: format!(
                "jobs that are {state} are listed from the scheduler's memory, not from the store"
            ),
        }),
        None => Ok(()),
    }
}

/// What the filters look at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate<'a> {
    pub(super) queue: &'a str,
    pub(super) name: Option<&'a str>,
    pub(super) created_ms: u64,
    pub(super) state: Option<JobState>,
}

impl Candidate<'_> {
    /// Whether it is one of those asked for.
    pub(super) fn fits(&self, query: &ListQuery) -> bool {
        let state = query.states.is_empty()
            || self
                .state
                .is_some_and(|state| query.states.contains(&state));
        let queue =
            query.queues.is_empty() || query.queues.iter().any(|queue| &**queue == self.queue);
        state
            && queue
            && query
                .name
                .as_deref()
                .is_none_or(|name| self.name == Some(name))
            && query
                .since
                .is_none_or(|since| self.created_ms >= since.millis())
            && query
                .until
                .is_none_or(|until| self.created_ms < until.millis())
    }

    /// Whether no later candidate can lie within the times asked for.
    pub(super) fn is_beyond(&self, query: &ListQuery) -> bool {
        if query.descending {
            let since = query.since.map_or(0, |since| since.millis());
            self.created_ms.saturating_add(CLOCK_MARGIN_MS) < since
        } else {
            let until = query.until.map_or(u64::MAX, |until| until.millis());
            self.created_ms > until.saturating_add(CLOCK_MARGIN_MS)
        }
    }
}

/// A page of the audit trail being filled: the same bound, and a cursor of its own.
#[derive(Debug, Default)]
pub(super) struct AuditWalk {
    page: AuditPage,
    seen: usize,
}

impl AuditWalk {
    /// Looks at the next entry, newest first. False: no more of them.
    pub(super) fn look(&mut self, query: &AuditQuery, n: u64, entry: AuditEntry) -> bool {
        let since = query.since.map_or(0, |since| since.millis());
        if entry.at.millis().saturating_add(CLOCK_MARGIN_MS) < since {
            self.page.next = None;
            return false;
        }
        self.seen += 1;
        let token = query.token.as_deref();
        let action = query.action.as_deref();
        if entry.at.millis() >= since
            && token.is_none_or(|token| token == &*entry.token)
            && action.is_none_or(|action| action == entry.action)
        {
            self.page.entries.push((n, entry));
        }
        let full = self.page.entries.len() >= query.limit || self.seen >= SCAN_MAX;
        self.page.next = full.then_some(n);
        !full
    }

    pub(super) fn finish(self) -> AuditPage {
        self.page
    }
}

/// A page being filled.
#[derive(Debug)]
pub(super) struct Walk {
    pub(super) found: Vec<JobId>,
    seen: usize,
    limit: usize,
    last: Option<JobId>,
    full: bool,
    beyond: bool,
}

impl Walk {
    pub(super) fn new(query: &ListQuery) -> Self {
        Self {
            found: Vec::new(),
            seen: 0,
            limit: query.limit,
            last: None,
            full: query.limit == 0,
            beyond: false,
        }
    }

    /// Looks at the next candidate. False: no more of them.
    pub(super) fn look(&mut self, query: &ListQuery, id: JobId, candidate: &Candidate<'_>) -> bool {
        if candidate.is_beyond(query) {
            self.beyond = true;
            return false;
        }
        self.seen += 1;
        self.last = Some(id);
        if candidate.fits(query) {
            self.found.push(id);
        }
        self.full = self.found.len() >= self.limit || self.seen >= SCAN_MAX;
        !self.full
    }

    /// Where the next page begins, if this one was cut short. (It may turn out empty.)
    pub(super) fn next(&self) -> Option<JobId> {
        if self.full && !self.beyond {
            self.last
        } else {
            None
        }
    }
}
