//! Bodies in memory, from the lanes or the reader, until their job is assigned or over.
//!
//! Ids come in order, so bodies lie in pages indexed by id: a lookup costs one small hash, an insert most often none.
//! What is held is counted in a number shared with the writer, which leaves bodies on disk once the budget is used up.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use hostler_wire::JobId;

const PAGE: usize = 128;

/// Bodies by job.
#[derive(Debug)]
pub(super) struct Bodies {
    pages: HashMap<u64, Page, BuildHasherDefault<PageHasher>>,
    /// Bytes held; the writer adds what it attaches to an arrival, we add what was fetched and subtract what leaves.
    resident_bytes: Arc<AtomicUsize>,
    /// Bodies that were fetched.
    read_count: u64,
}

#[derive(Debug)]
struct Page {
    held: u32,
    slots: Box<[Option<Bytes>; PAGE]>,
}

/// Page numbers are ours and follow one another: a multiplication spreads them, where the standard hash was a tenth of
/// the thread's time.
#[derive(Debug, Default)]
struct PageHasher(u64);

impl Hasher for PageHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(self.0 ^ u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        // 2^64 divided by the golden ratio.
        self.0 = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

impl Bodies {
    pub(super) fn new(resident_bytes: Arc<AtomicUsize>) -> Self {
        Self {
            pages: HashMap::default(),
            resident_bytes,
            read_count: 0,
        }
    }

    /// Bytes held, by us and on their way to us.
    pub(super) fn resident_bytes(&self) -> u64 {
        self.resident_bytes.load(Ordering::Relaxed) as u64
    }

    /// How many bodies were fetched.
    pub(super) fn read_count(&self) -> u64 {
        self.read_count
    }

    /// Keeps bodies that came with an arrival; the writer has counted them.
    pub(super) fn arrive(&mut self, first: JobId, bodies: Vec<Bytes>) {
        for (job, body) in (first.raw()..).zip(bodies) {
            self.put(job, body);
        }
    }

    /// Keeps one that was fetched.
    pub(super) fn fetched(&mut self, job: JobId, body: Bytes) {
        self.resident_bytes.fetch_add(body.len(), Ordering::Relaxed);
        self.read_count += 1;
        self.put(job.raw(), body);
    }

    /// Gives one up.
    pub(super) fn take(&mut self, job: JobId) -> Option<Bytes> {
        let (page_no, slot) = place(job.raw());
        let page = self.pages.get_mut(&page_no)?;
        let body = page.slots[slot].take()?;
        page.held -= 1;
        if page.held == 0 {
            self.pages.remove(&page_no);
        }
        self.resident_bytes.fetch_sub(body.len(), Ordering::Relaxed);
        Some(body)
    }

    fn put(&mut self, job: u64, body: Bytes) {
        let (page_no, slot) = place(job);
        let page = self.pages.entry(page_no).or_insert_with(|| Page {
            held: 0,
            slots: Box::new([const { None }; PAGE]),
        });
        match page.slots[slot].replace(body) {
            // Fetched again although an assignment that never left had not used it up.
            Some(old) => {
                self.resident_bytes.fetch_sub(old.len(), Ordering::Relaxed);
            }
            None => page.held += 1,
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "a remainder below the page size"
)]
fn place(job: u64) -> (u64, usize) {
    (job / PAGE as u64, (job % PAGE as u64) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(raw: u64) -> JobId {
        JobId::new(raw).unwrap()
    }

    #[test]
    fn what_is_held_is_counted_once_whatever_way_it_came() {
        let resident = Arc::new(AtomicUsize::new(30));
        let mut bodies = Bodies::new(Arc::clone(&resident));
        bodies.arrive(id(127), vec![Bytes::from(vec![1; 10]); 3]);
        bodies.fetched(id(128), Bytes::from(vec![2; 10]));
        assert_eq!(resident.load(Ordering::Relaxed), 30);
        assert_eq!(bodies.take(id(128)), Some(Bytes::from(vec![2; 10])));
        assert_eq!(bodies.take(id(128)), None);
        assert!(bodies.take(id(127)).is_some() && bodies.take(id(129)).is_some());
        assert_eq!(resident.load(Ordering::Relaxed), 0);
        assert!(bodies.pages.is_empty(), "an empty page is given back");
    }
}
