//! An open loop: jobs are submitted at fixed moments, whether or not earlier ones have been answered, and each is
//! followed to its end.
//!
//! A time counts from the moment its job was *to be* submitted. If the server stalls, the jobs that should have come
//! meanwhile are late, and their times say so: a client that waits with its next request would not notice them
//! (coordinated omission).

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use hdrhistogram::Histogram;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use serde_json::Value;

use crate::check::{Book, Expect};
use crate::clock::Moment;
use crate::http::Connection;
use crate::load::has_ended;
use crate::system::System;

const TIMER: Token = Token(usize::MAX);
/// Longest silence of a server until the run is given up.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// How fast and how long.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Jobs a second.
    pub rate: f64,
    /// How many.
    pub jobs: u64,
    /// Connections; each has one job under way, from its submission to its end.
    pub connections: usize,
}

/// What came of it, times in microseconds from the moment the job was due.
#[derive(Debug)]
pub struct Times {
    /// Until it was accepted.
    pub accepted: Histogram<u64>,
    /// Until its end was known.
    pub ended: Histogram<u64>,
    /// Jobs that were submitted over a millisecond late, for want of a connection or of processor.
    pub late: u64,
}

/// What a connection is busy with.
#[derive(Clone, Copy, Debug)]
enum Step {
    Submits { due: Duration },
    Waits { due: Duration, id: u64 },
}

/// Submits `job` at that pace.
pub fn run(system: &System, pace: Pace, job: &[u8], book: &mut Book) -> Result<Times> {
    let submit = system.request("POST", "/jobs", job);
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(1_024);
    let timer = Timer::new()?;
    poll.registry().register(
        &mut SourceFd(&timer.0.as_raw_fd()),
        TIMER,
        Interest::READABLE,
    )?;
    let mut all = Vec::new();
    for index in 0..pace.connections {
        let mut connection = Connection::new(&system.to(), Vec::new())?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        poll.registry()
            .register(&mut connection.stream, Token(index), interest)?;
        all.push((connection, None::<Step>));
    }
    let mut idle: VecDeque<usize> = (0..all.len()).collect();
    let mut times = Times {
        accepted: Histogram::new(3)?,
        ended: Histogram::new(3)?,
        late: 0,
    };
    let begun = Moment::now();
    let (mut sent, mut ended) = (0, 0);
    let mut touched = Vec::new();
    while ended < pace.jobs {
        let mut due = pace.due(sent);
        while sent < pace.jobs && due <= begun.elapsed() && !idle.is_empty() {
            let index = idle.pop_front().context("it is not empty")?;
            times.late += u64::from(begun.elapsed() > due + Duration::from_millis(1));
            let (connection, step) = &mut all[index];
            connection.again(0, submit.clone())?;
            *step = Some(Step::Submits { due });
            touched.push(index);
            sent += 1;
            due = pace.due(sent);
        }
        if touched.is_empty() {
            if sent < pace.jobs && !idle.is_empty() {
                timer.set(due.saturating_sub(begun.elapsed()))?;
            }
            match poll.poll(&mut events, Some(SILENCE_MAX)) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                result => result?,
            }
            ensure!(
                !events.is_empty(),
                "the server was silent for {SILENCE_MAX:?}"
            );
            let sockets = events.iter().map(|event| event.token());
            touched.extend(sockets.filter(|it| *it != TIMER).map(|it| it.0));
        }
        for index in touched.drain(..) {
            let (connection, step) = &mut all[index];
            if let Some(now) = *step
                && let Some(answer) = connection.pump()?
            {
                let body = &connection.received[answer.body.clone()];
                ensure!(
                    (200..300).contains(&answer.status),
                    "the server answered {}: {}",
                    answer.status,
                    String::from_utf8_lossy(&body[..body.len().min(1_000)])
                );
                let record: Value = serde_json::from_slice(body)?;
                let us = |due| u64::try_from(begun.elapsed().saturating_sub(due).as_micros());
                let next = match now {
                    Step::Submits { due } => {
                        times.accepted.record(us(due)?)?;
                        let id = record["id"].as_u64().context("an answer without id")?;
                        book.add(id, 1, Expect::SUCCESS);
                        Some(Step::Waits { due, id })
                    }
                    Step::Waits { due, .. } if has_ended(&record) => {
                        if record["state"] != "succeeded" {
                            bail!("it did not succeed: {record}");
                        }
                        times.ended.record(us(due)?)?;
                        ended += 1;
                        None
                    }
                    waits @ Step::Waits { .. } => Some(waits),
                };
                *step = next;
                let request = match next {
                    Some(Step::Waits { id, .. }) => {
                        let path = format!("/jobs/{id}?wait=50s&live=0");
                        system.request("GET", &path, b"")
                    }
                    Some(Step::Submits { .. }) | None => {
                        idle.push_back(index);
                        Vec::new()
                    }
                };
                connection.again(answer.body.end, request)?;
            }
        }
    }
    Ok(times)
}

impl Pace {
    /// When the job of this number is to be submitted.
    fn due(&self, number: u64) -> Duration {
        Duration::from_secs_f64(number as f64 / self.rate)
    }
}

/// Wakes at a moment, finer than the milliseconds that a poll can wait.
struct Timer(OwnedFd);

impl Timer {
    fn new() -> Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Ok(Self(timerfd_create(TimerfdClockId::Monotonic, flags)?))
    }

    /// Readable after so long. Setting it anew also takes back what it has to tell.
    fn set(&self, after: Duration) -> Result<()> {
        let after = after.max(Duration::from_nanos(1));
        let never = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let new = Itimerspec {
            it_interval: never,
            it_value: Timespec {
                tv_sec: i64::try_from(after.as_secs())?,
                tv_nsec: i64::from(after.subsec_nanos()),
            },
        };
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &new)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_are_due_at_fixed_moments_whatever_the_server_does() {
        let pace = Pace {
            rate: 500.0,
            jobs: 10,
            connections: 1,
        };
        assert_eq!(pace.due(0), Duration::ZERO);
        assert_eq!(pace.due(5), Duration::from_millis(10));
    }
}
