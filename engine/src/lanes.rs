//! The lock-free mouth of the engine: one FIFO lane a priority, and a bitmap of the lanes that hold something.
//!
//! The rule: a producer pushes, fences, and sets the lane's bit if it is clear; the consumer, on finding a lane empty,
//! clears its bit, fences, looks again, and sets it back if something came. So a pushed entry is never hidden behind a
//! clear bit for good, and producers wait neither for each other nor for the consumer.

use hostler_wire::Priority;

/// 256 lanes. Any number of producers, one consumer.
#[derive(Debug)]
pub struct Lanes<T> {
    _todo: std::marker::PhantomData<T>,
}

impl<T> Lanes<T> {
    /// Empty lanes.
    pub fn new() -> Self {
        todo!()
    }

    /// Adds an entry behind all others of its priority.
    pub fn push(&self, _priority: Priority, _entry: T) {
        todo!()
    }

    /// Whether nothing waits in any lane. Only the consumer may rely on a `true`.
    pub fn is_empty(&self) -> bool {
        todo!()
    }

    /// Takes the oldest entry of the highest priority. Only one thread may call it.
    pub fn pop(&self) -> Option<T> {
        todo!()
    }
}

impl<T> Default for Lanes<T> {
    fn default() -> Self {
        Self::new()
    }
}
