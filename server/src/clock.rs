//! The one place of the server that reads a clock.
//!
//! The engine's time runs on the kernel's boot clock, which counts through suspension, and goes on over restarts: each
//! commit keeps a [`Stamp`], and the next start continues from it, by the boot clock if the machine has not been
//! restarted, else by the wall clock, never backwards. The wall clock is read for people and for instants they named.
//!
//! Keeps semantics 23: durations never depend on the wall clock.

use std::sync::atomic::{AtomicU64, Ordering};

use hostler_engine::{Time, WallTime};

/// The four clocks at one moment, kept with each commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The engine's.
    pub engine: Time,
    /// Which boot of the machine: random bits the kernel made.
    pub boot: u128,
    /// Microseconds since that boot.
    pub boottime_us: u64,
    /// The wall clock's.
    pub wall: WallTime,
}

/// The server's clocks.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// Engine time at `origin_us`.
    base: Time,
    /// Boot time at which this clock began, microseconds.
    origin_us: u64,
    boot: u128,
    source: Source,
}

/// Whom a clock asks.
#[derive(Clone, Copy, Debug)]
enum Source {
    Kernel,
    Given(&'static Readings),
}

/// A machine's clocks as somebody sets them: time in the simulator.
#[derive(Debug, Default)]
pub struct Readings {
    boot: AtomicU64,
    boottime_us: AtomicU64,
    wall_ms: AtomicU64,
}

impl Readings {
    /// Clocks that stand at zero.
    pub const fn new() -> Self {
        Self {
            boot: AtomicU64::new(0),
            boottime_us: AtomicU64::new(0),
            wall_ms: AtomicU64::new(0),
        }
    }

    /// From now on the clocks show this.
    pub fn set(&self, boot: u64, boottime_us: u64, wall: WallTime) {
        self.boot.store(boot, Ordering::Relaxed);
        self.boottime_us.store(boottime_us, Ordering::Relaxed);
        self.wall_ms.store(wall.millis(), Ordering::Relaxed);
    }
}

impl Source {
    fn boot(self) -> u128 {
        match self {
            Self::Kernel => boot_id(),
            Self::Given(readings) => readings.boot.load(Ordering::Relaxed).into(),
        }
    }

    fn boottime_us(self) -> u64 {
        match self {
            Self::Kernel => boottime_us(),
            Self::Given(readings) => readings.boottime_us.load(Ordering::Relaxed),
        }
    }

    fn wall(self) -> WallTime {
        match self {
            Self::Kernel => wall_now(),
            Self::Given(readings) => {
                WallTime::from_millis(readings.wall_ms.load(Ordering::Relaxed))
            }
        }
    }
}

impl Clock {
    /// A clock that continues from the last stamp, or begins at the present wall time.
    pub fn resume(last: Option<Stamp>) -> Self {
        Self::resume_on(Source::Kernel, last)
    }

    /// The same with clocks that somebody sets.
    pub fn resume_given(readings: &'static Readings, last: Option<Stamp>) -> Self {
        Self::resume_on(Source::Given(readings), last)
    }

    fn resume_on(source: Source, last: Option<Stamp>) -> Self {
        let (boot, origin_us, wall) = (source.boot(), source.boottime_us(), source.wall());
        let base = match last {
            None => Time::from_micros(wall.millis() * 1_000),
            Some(last) => continue_from(last, boot, origin_us, wall),
        };
        Self {
            base,
            origin_us,
            boot,
            source,
        }
    }

    /// The engine's time.
    pub fn now(&self) -> Time {
        Time::from_micros(self.base.micros() + (self.source.boottime_us() - self.origin_us))
    }

    /// The wall clock's.
    pub fn wall(&self) -> WallTime {
        self.source.wall()
    }

    /// Wall milliseconds minus engine milliseconds.
    pub fn wall_offset_ms(&self) -> i64 {
        let wall = i64::try_from(self.wall().millis()).unwrap_or(i64::MAX);
        wall - i64::try_from(self.now().micros() / 1_000).unwrap_or(i64::MAX)
    }

    /// All clocks at once.
    pub fn stamp(&self) -> Stamp {
        let boottime_us = self.source.boottime_us();
        Stamp {
            engine: Time::from_micros(self.base.micros() + (boottime_us - self.origin_us)),
            boot: self.boot,
            boottime_us,
            wall: self.wall(),
        }
    }
}

impl Stamp {
    /// The wall time of an engine time, by the clocks as they stood at this stamp.
    pub fn wall_of(&self, at: Time) -> WallTime {
        let behind = self.engine.since(at).millis();
        let ahead = at.since(self.engine).millis();
        WallTime::from_millis((self.wall.millis() + ahead).saturating_sub(behind))
    }
}

/// Where the engine's time goes on: a new boot can only be bridged by the wall clock, which may have been set back.
fn continue_from(last: Stamp, boot: u128, boottime_us: u64, wall: WallTime) -> Time {
    let gone_us = if boot == last.boot {
        boottime_us.saturating_sub(last.boottime_us)
    } else {
        wall.millis()
            .saturating_sub(last.wall.millis())
            .saturating_mul(1_000)
    };
    Time::from_micros(last.engine.micros() + gone_us)
}

#[expect(
    clippy::disallowed_methods,
    reason = "this is the place that reads the wall clock"
)]
fn wall_now() -> WallTime {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    // A clock before 1970 is a machine without one: zero is as good as any.
    WallTime::from_millis(since.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)))
}

fn boottime_us() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let (s, ns) = (u64::try_from(now.tv_sec), u64::try_from(now.tv_nsec));
    s.unwrap_or(0) * 1_000_000 + ns.unwrap_or(0) / 1_000
}

fn boot_id() -> u128 {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let hex: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    // Without it every start counts as a new boot: the wall clock bridges the gap.
    u128::from_str_radix(&hex, 16).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(engine: u64, boot: u128, boottime_us: u64, wall: u64) -> Stamp {
        Stamp {
            engine: Time::from_micros(engine),
            boot,
            boottime_us,
            wall: WallTime::from_millis(wall),
        }
    }

    #[test]
    fn within_one_boot_the_wall_clock_has_no_say() {
        let last = stamp(5_000_000, 7, 100, 1_000_000);
        let at = continue_from(last, 7, 600, WallTime::from_millis(0));
        assert_eq!(at, Time::from_micros(5_000_500));
    }

    #[test]
    fn over_a_reboot_time_goes_on_by_the_wall_and_never_back() {
        let last = stamp(5_000_000, 7, 100, 1_000_000);
        let later = continue_from(last, 8, 3, WallTime::from_millis(1_000_250));
        assert_eq!(later, Time::from_micros(5_250_000));
        let set_back = continue_from(last, 8, 3, WallTime::from_millis(10));
        assert_eq!(set_back, Time::from_micros(5_000_000));
    }
}
