//! The lock-free mouth of the engine: one FIFO lane a priority, a bitmap of the lanes that hold something, and the
//! order of one turn.
//!
//! The rule: a producer pushes, fences, and sets the lane's bit if it is clear; the consumer, on finding a lane empty,
//! clears its bit, fences, looks again, and sets it back if something came. So a pushed entry is never hidden behind a
//! clear bit for good, and producers wait neither for each other nor for the consumer. `tests/loom.rs` tries the rule
//! under every interleaving.
//!
//! The lanes are crossbeam's `SegQueue`. Its push never waits; its pop waits, yielding, while a producer was pre-empted
//! between claiming a place and writing into it. That is accepted here: an entry is a whole run of jobs, so such a
//! wait is met once in thousands of jobs if at all, and what is waited for is the very entry that comes next.
//! (crossbeam's and std's unbounded channels wait in the same way; a bounded `ArrayQueue` would refuse when full, and
//! an accepted job must not be refused.)
//!
//! Not here: what a run means (`engine`), waking the consumer (the server's mailbox).

use hostler_wire::Priority;

use sync::{AtomicU64, Ordering, Queue, fence};

/// 256 lanes. Any number of producers, one consumer.
#[derive(Debug)]
pub struct Lanes<T> {
    /// A bit for each lane that may hold something, 64 to a word.
    bits: Box<[AtomicU64]>,
    queues: Box<[Queue<T>]>,
}

impl<T> Lanes<T> {
    /// Empty lanes.
    pub fn new() -> Self {
        Self {
            bits: (0..sync::LANES.div_ceil(64))
                .map(|_| AtomicU64::new(0))
                .collect(),
            queues: (0..sync::LANES).map(|_| Queue::new()).collect(),
        }
    }

    /// Adds an entry behind all others of its priority.
    pub fn push(&self, priority: Priority, entry: T) {
        let lane = sync::lane(priority);
        self.queues[lane].push(entry);
        // Pairs with the fence in `pop`: either we see the bit cleared, or the consumer's second look sees the entry.
        fence(Ordering::SeqCst);
        let (word, bit) = (&self.bits[lane / 64], 1 << (lane % 64));
        if word.load(Ordering::Relaxed) & bit == 0 {
            word.fetch_or(bit, Ordering::Release);
        }
    }

    /// Whether nothing waits in any lane. Only the consumer may rely on a `true`.
    pub fn is_empty(&self) -> bool {
        self.bits
            .iter()
            .all(|word| word.load(Ordering::Acquire) == 0)
    }

    /// Takes the oldest entry of the highest priority. Only one thread may call it.
    pub fn pop(&self) -> Option<T> {
        for (at, word) in self.bits.iter().enumerate().rev() {
            loop {
                let bits = word.load(Ordering::Acquire);
                if bits == 0 {
                    break;
                }
                let top = 63 - bits.leading_zeros() as usize;
                let (queue, bit) = (&self.queues[at * 64 + top], 1 << top);
                if let Some(entry) = queue.pop() {
                    return Some(entry);
                }
                word.fetch_and(!bit, Ordering::Relaxed);
                fence(Ordering::SeqCst);
                if let Some(entry) = queue.pop() {
                    word.fetch_or(bit, Ordering::Relaxed);
                    return Some(entry);
                }
            }
        }
        None
    }
}

impl<T> Default for Lanes<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// The order of one turn: the asks are taken first, then the lanes are emptied, then the asks are handled. An entry
/// that was pushed before an ask was made (a 201 before its DELETE) is therefore always handled before it.
#[derive(Debug)]
pub struct Turn<A> {
    asks: std::vec::IntoIter<A>,
    lanes_empty: bool,
}

/// What comes next in a turn.
#[derive(Debug, PartialEq, Eq)]
pub enum Step<T, A> {
    /// An entry of the lanes.
    Entry(T),
    /// An ask.
    Ask(A),
}

impl<A> Turn<A> {
    /// Begins with the asks that were waiting: all of them were taken before the lanes are looked at.
    pub fn new(asks: Vec<A>) -> Self {
        Self {
            asks: asks.into_iter(),
            lanes_empty: false,
        }
    }

    /// The next thing to handle; none ends the turn. What is pushed after the lanes were found empty is the next
    /// turn's.
    pub fn next<T>(&mut self, lanes: &Lanes<T>) -> Option<Step<T, A>> {
        if !self.lanes_empty {
            if let Some(entry) = lanes.pop() {
                return Some(Step::Entry(entry));
            }
            self.lanes_empty = true;
        }
        self.asks.next().map(Step::Ask)
    }
}

/// The real thing.
#[cfg(not(loom))]
mod sync {
    pub(super) use crossbeam::queue::SegQueue as Queue;
    pub(super) use std::sync::atomic::{AtomicU64, Ordering, fence};

    pub(super) const LANES: usize = 256;

    pub(super) fn lane(priority: hostler_wire::Priority) -> usize {
        priority.lane().into()
    }
}

/// What loom can model: its atomics, two lanes (each costs states), and a queue whose only promise is that an entry
/// counted in `length` can be taken. An entry may be seen late, as from any queue: what makes it seen in time are the
/// fences of the rule.
#[cfg(loom)]
mod sync {
    use std::collections::VecDeque;
    use std::sync::Mutex;

    use loom::sync::atomic::AtomicUsize;
    pub(super) use loom::sync::atomic::{AtomicU64, Ordering, fence};

    pub(super) const LANES: usize = 2;

    pub(super) fn lane(priority: hostler_wire::Priority) -> usize {
        (priority.lane() >> 7).into()
    }

    #[derive(Debug)]
    pub(super) struct Queue<T> {
        length: AtomicUsize,
        /// Never contended: loom runs one thread at a time and switches at its own atomics only.
        entries: Mutex<VecDeque<T>>,
    }

    impl<T> Queue<T> {
        pub(super) fn new() -> Self {
            Self {
                length: AtomicUsize::new(0),
                entries: Mutex::new(VecDeque::new()),
            }
        }

        pub(super) fn push(&self, entry: T) {
            self.entries
                .lock()
                .expect("no model panics while holding it")
                .push_back(entry);
            self.length.fetch_add(1, Ordering::Release);
        }

        pub(super) fn pop(&self) -> Option<T> {
            if self.length.load(Ordering::Acquire) == 0 {
                return None;
            }
            self.length.fetch_sub(1, Ordering::Relaxed);
            self.entries
                .lock()
                .expect("no model panics while holding it")
                .pop_front()
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_highest_priority_comes_first_and_the_oldest_within_it() {
        let lanes = Lanes::new();
        for (priority, entry) in [(0, "b"), (-128, "d"), (127, "a"), (0, "c")] {
            lanes.push(Priority::new(priority), entry);
        }
        let order: Vec<_> = std::iter::from_fn(|| lanes.pop()).collect();
        assert_eq!(order, ["a", "b", "c", "d"]);
    }

    #[test]
    fn an_emptied_lane_takes_entries_again() {
        let lanes = Lanes::new();
        for n in 0..3 {
            assert_eq!(lanes.pop(), None);
            lanes.push(Priority::NORMAL, n);
            assert_eq!(lanes.pop(), Some(n));
        }
    }

    #[test]
    fn an_ask_made_after_a_push_is_handled_after_its_entry() {
        let lanes = Lanes::new();
        lanes.push(Priority::NORMAL, "submit");
        let mut turn = Turn::new(vec!["delete"]);
        assert_eq!(turn.next(&lanes), Some(Step::Entry("submit")));
        lanes.push(Priority::new(-1), "another");
        assert_eq!(turn.next(&lanes), Some(Step::Entry("another")));
        assert_eq!(turn.next(&lanes), Some(Step::Ask("delete")));
        lanes.push(Priority::NORMAL, "later");
        assert_eq!(
            turn.next(&lanes),
            None,
            "the lanes were found empty: it is for the next turn"
        );
        assert_eq!(
            Turn::<()>::new(Vec::new()).next(&lanes),
            Some(Step::Entry("later"))
        );
    }

    #[test]
    fn eight_producers_lose_nothing_and_keep_their_order() {
        const EACH: u32 = 20_000;
        let lanes = Lanes::new();
        let mut last = [[0; 3]; 8];
        std::thread::scope(|scope| {
            for producer in 0..8_usize {
                let lanes = &lanes;
                scope.spawn(move || {
                    for n in 1..=EACH {
                        let band = n as usize % 3;
                        let priority = Priority::new([-50, 0, 50][band]);
                        lanes.push(priority, (producer, band, n));
                    }
                });
            }
            let mut seen = 0;
            while seen < 8 * EACH {
                let Some((producer, band, n)) = lanes.pop() else {
                    std::thread::yield_now();
                    continue;
                };
                assert!(
                    last[producer][band] < n,
                    "a producer's entries of one priority stay in order"
                );
                last[producer][band] = n;
                seen += 1;
            }
        });
        assert_eq!(lanes.pop(), None);
    }
}
