//! Back-pressure of output: pipes are read only while what waits for the output thread is below its bound. Control
//! connections never wait here.

use std::collections::BTreeSet;

use super::peers::Place;

/// The one gate of all pipes.
#[derive(Debug)]
pub(super) struct Gate {
    pending_bytes: usize,
    pending_bytes_max: usize,
    /// Pipes that had something to read while it was closed.
    held: BTreeSet<Place>,
}

impl Gate {
    pub(super) fn new(pending_bytes_max: usize) -> Self {
        Self {
            pending_bytes: 0,
            pending_bytes_max,
            held: BTreeSet::new(),
        }
    }

    /// Whether pipes may be read.
    pub(super) fn is_open(&self) -> bool {
        self.pending_bytes < self.pending_bytes_max
    }

    /// This pipe is to be read once the gate opens.
    pub(super) fn hold(&mut self, place: Place) {
        self.held.insert(place);
    }

    /// So many bytes went to the output thread.
    pub(super) fn passed(&mut self, bytes: usize) {
        self.pending_bytes += bytes;
    }

    /// So many were taken in. The gate opens again at half its bound, so that pipes are read in worthwhile pieces;
    /// then these are to be read.
    pub(super) fn taken(&mut self, bytes: usize) -> Vec<Place> {
        assert!(bytes <= self.pending_bytes);
        self.pending_bytes -= bytes;
        if self.pending_bytes <= self.pending_bytes_max / 2 {
            std::mem::take(&mut self.held).into_iter().collect()
        } else {
            Vec::new()
        }
    }

    pub(super) fn pending_bytes(&self) -> usize {
        self.pending_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipes_wait_above_the_bound_and_go_on_at_half_of_it() {
        let mut gate = Gate::new(100);
        gate.passed(60);
        assert!(gate.is_open());
        gate.passed(60);
        assert!(!gate.is_open());
        let place = Place { serial: 1, key: 0 };
        gate.hold(place);
        assert_eq!(gate.taken(60), []);
        assert_eq!(gate.taken(10), [place]);
        assert!(gate.is_open());
    }
}
