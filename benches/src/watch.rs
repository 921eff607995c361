//! Looks at a server's totals while a load runs: how far it is, and what was done when.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

use crate::clock::Moment;
use crate::report::Sample;
use crate::system::System;

/// Between two looks: seldom enough not to count.
const EVERY: Duration = Duration::from_millis(200);

/// Told now and then: what is counted, how many so far, of how many.
pub type Tell<'a> = &'a mut dyn FnMut(&str, u64, u64);

/// Does the work on a thread of its own; tells meanwhile how many jobs have ended.
pub fn watched<T: Send>(
    system: &System,
    what: &str,
    total: u64,
    tell: Tell<'_>,
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<(T, Vec<Sample>)> {
    let first = totals(system)?;
    let begun = Moment::now();
    let mut samples = Vec::new();
    thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        scope.spawn(move || drop(sender.send(work())));
        let result = loop {
            match receiver.recv_timeout(EVERY) {
                Ok(result) => break result,
                // A panic in the work: the scope passes it on.
                Err(mpsc::RecvTimeoutError::Disconnected) => anyhow::bail!("the load broke off"),
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    // A server that is too busy to answer is the load's to report.
                    if let Ok((accepted, ended)) = totals(system) {
                        let ended = ended.saturating_sub(first.1);
                        tell(what, ended.min(total), total);
                        samples.push(Sample {
                            seconds: begun.elapsed().as_secs_f64(),
                            accepted: accepted.saturating_sub(first.0),
                            ended,
                        });
                    }
                }
            }
        }?;
        if let Ok((accepted, ended)) = totals(system) {
            samples.push(Sample {
                seconds: begun.elapsed().as_secs_f64(),
                accepted: accepted.saturating_sub(first.0),
                ended: ended.saturating_sub(first.1),
            });
        }
        tell(what, total, total);
        Ok((result, samples))
    })
}

/// Accepted and ended since the server's start.
fn totals(system: &System) -> Result<(u64, u64)> {
    let stats = system.stats()?;
    let done = &stats["since_start"];
    let count = |name: &str| done.get(name).and_then(Value::as_u64).unwrap_or(0);
    let names = ["succeeded", "failed", "cancelled", "expired", "skipped"];
    let ended = names.iter().map(|name| count(name)).sum();
    Ok((count("submitted"), ended))
}
