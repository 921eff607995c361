//! Everything that waits for a moment, in order: one heap on the engine's clock, one on the wall clock.
//!
//! An alarm is not taken back: it looks, when it goes off, whether what it was for still waits. Those that became
//! pointless are counted, and thrown out together once they are the greater part, so that memory follows what really
//! waits.
//!
//! A corrected wall clock moves the second heap against the first. What has gone off has left the heap, so a clock that
//! jumps back never sets anything off again (semantics 23).

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use hostler_wire::{Attempt, Epoch, JobId, WorkerId, mutation};

use crate::time::{Time, When};

/// What a moment was waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Alarm {
    /// These consecutive jobs may run.
    Due(JobId, u32),
    /// Jobs of the batch that begins here must have started.
    Expires(JobId),
    /// They must be over.
    Deadline(JobId),
    /// This attempt should have been ended by its worker's own clock.
    Overrun(JobId, Epoch, Attempt),
    /// This worker may have been silent for too long.
    Lease(WorkerId),
    /// It may be given work again.
    Rested(WorkerId),
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    /// By engine microseconds.
    engine: BinaryHeap<Reverse<(u64, Alarm)>>,
    /// By wall milliseconds.
    wall: BinaryHeap<Reverse<(u64, Alarm)>>,
    /// Wall milliseconds minus engine milliseconds.
    offset_ms: i64,
    pointless: usize,
}

impl Timers {
    pub(crate) fn set_offset(&mut self, offset_ms: i64) {
        self.offset_ms = offset_ms;
    }

    pub(crate) fn set(&mut self, when: When, alarm: Alarm) {
        match when {
            When::Engine(time) if mutation::is("durations on the wall clock") => {
                let wall_ms = (time.micros() / 1_000).saturating_add_signed(self.offset_ms);
                self.wall.push(Reverse((wall_ms, alarm)));
            }
            When::Engine(time) => self.engine.push(Reverse((time.micros(), alarm))),
            When::Wall(wall) => self.wall.push(Reverse((wall.millis(), alarm))),
        }
    }

    /// The next alarm that is due.
    pub(crate) fn pop(&mut self, now: Time) -> Option<Alarm> {
        if let Some(Reverse((at, _))) = self.engine.peek()
            && *at <= now.micros()
        {
            return self.engine.pop().map(|Reverse((_, alarm))| alarm);
        }
        if let Some(Reverse((at, _))) = self.wall.peek()
            && self.on_engine(*at) <= now
        {
            return self.wall.pop().map(|Reverse((_, alarm))| alarm);
        }
        None
    }

    /// When the next one is due.
    pub(crate) fn next(&self) -> Option<Time> {
        let engine = self
            .engine
            .peek()
            .map(|Reverse((at, _))| Time::from_micros(*at));
        let wall = self.wall.peek().map(|Reverse((at, _))| self.on_engine(*at));
        engine.into_iter().chain(wall).min()
    }

    pub(crate) fn has_passed(&self, when: When, now: Time) -> bool {
        match when {
            When::Engine(time) => time <= now,
            When::Wall(wall) => self.on_engine(wall.millis()) <= now,
        }
    }

    /// Tells that so many alarms have become pointless. True once they should be thrown out with [`keep`](Self::keep).
    pub(crate) fn pointless(&mut self, count: usize) -> bool {
        self.pointless += count;
        self.pointless > 64 && self.pointless * 2 > self.engine.len() + self.wall.len()
    }

    pub(crate) fn keep(&mut self, mut needed: impl FnMut(&Alarm) -> bool) {
        self.engine.retain(|Reverse((_, alarm))| needed(alarm));
        self.wall.retain(|Reverse((_, alarm))| needed(alarm));
        self.pointless = 0;
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Alarm> {
        self.engine
            .iter()
            .chain(&self.wall)
            .map(|Reverse((_, alarm))| alarm)
    }

    fn on_engine(&self, wall_ms: u64) -> Time {
        let ms = i128::from(wall_ms) - i128::from(self.offset_ms);
        Time::from_micros(u64::try_from((ms * 1_000).max(0)).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::WallTime;

    fn due(raw: u64) -> Alarm {
        Alarm::Due(JobId::new(raw).unwrap(), 1)
    }

    fn ms(ms: u64) -> Time {
        Time::from_micros(ms * 1_000)
    }

    #[test]
    fn alarms_go_off_in_order_and_never_early() {
        let mut timers = Timers::default();
        for at in [30, 10, 20] {
            timers.set(When::Engine(ms(at)), due(at));
        }
        assert_eq!(timers.next(), Some(ms(10)));
        assert_eq!(timers.pop(Time::from_micros(9_999)), None);
        assert_eq!(timers.pop(ms(25)), Some(due(10)));
        assert_eq!(timers.pop(ms(25)), Some(due(20)));
        assert_eq!(timers.pop(ms(25)), None);
    }

    #[test]
    fn a_corrected_wall_clock_moves_instants_and_not_durations() {
        let mut timers = Timers::default();
        timers.set_offset(1_000_000);
        timers.set(When::Wall(WallTime::from_millis(1_000_100)), due(1));
        timers.set(When::Engine(ms(300)), due(2));
        assert_eq!(timers.next(), Some(ms(100)));
        timers.set_offset(999_800);
        assert_eq!(timers.next(), Some(ms(300)));
        assert_eq!(timers.pop(ms(300)), Some(due(2)));
        assert_eq!(timers.pop(ms(300)), Some(due(1)));
    }

    #[test]
    fn a_wall_clock_that_jumps_back_sets_nothing_off_again() {
        let mut timers = Timers::default();
        timers.set_offset(0);
        timers.set(When::Wall(WallTime::from_millis(50)), due(1));
        assert_eq!(timers.pop(ms(50)), Some(due(1)));
        timers.set_offset(-40);
        assert_eq!(timers.pop(ms(95)), None);
        assert_eq!(timers.next(), None);
    }

    #[test]
    fn pointless_alarms_are_thrown_out_once_they_are_most() {
        let mut timers = Timers::default();
        for at in 1..=100 {
            timers.set(When::Engine(ms(at)), due(at));
        }
        assert!(!timers.pointless(50));
        assert!(timers.pointless(20));
        timers.keep(|alarm| *alarm >= due(71));
        assert_eq!(timers.iter().count(), 30);
        assert!(!timers.pointless(60));
    }
}
