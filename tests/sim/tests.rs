//! The fixed seeds, and deliberate bugs that must be found.

use rustix::time::ClockId;

use crate::options::Options;
use crate::runner::{Sum, explain, fresh, run, seconds};
use crate::trace::Wanted;

/// Seeds that once failed, or that cover something seldom: a number and why, a line each.
const SEEDS: &str = include_str!("seeds.txt");

/// So many from 1 on are tried each time.
const FIRST_SEEDS: u64 = 300;
/// And fresh ones for so long.
const FRESH_SECONDS: f64 = 45.0;

fn pass(seeds: impl Iterator<Item = u64>) -> Sum {
    let mut sum = Sum::default();
    for seed in seeds {
        match run(&Options::of(seed), Wanted::Nothing) {
            Ok(tally) => sum.add(&tally),
            Err(_) => panic!("{}", explain(&Options::of(seed))),
        }
    }
    sum
}

#[test]
fn the_seeds_that_once_failed_pass() {
    let seeds = SEEDS.lines().filter(|line| !line.starts_with('#'));
    let seeds = seeds.filter_map(|line| line.split_whitespace().next());
    let sum = pass(seeds.map(|n| n.parse().expect("a seed")));
    assert!(sum.seeds > 0);
    crate::print(&sum.report(seconds(ClockId::ProcessCPUTime)));
}

#[test]
fn the_first_seeds_pass() {
    let sum = pass(1..=FIRST_SEEDS);
    crate::print(&sum.report(seconds(ClockId::ProcessCPUTime)));
}

#[test]
fn fresh_seeds_pass() {
    let first = fresh();
    crate::print(&format!(
        "fresh seeds from {first}; again: --seed {first} --count 1000"
    ));
    let started = seconds(ClockId::Monotonic);
    let in_time = |_: &u64| seconds(ClockId::Monotonic) - started < FRESH_SECONDS;
    let sum = pass((first..).take_while(in_time));
    crate::print(&sum.report(seconds(ClockId::ProcessCPUTime)));
}

#[test]
fn the_same_seed_is_the_same_run() {
    let options = Options::of(1);
    let runs = [0, 1].map(|_| run(&options, Wanted::Nothing).map(|tally| format!("{tally:?}")));
    let [Ok(one), Ok(other)] = runs else {
        panic!("{}", explain(&options));
    };
    assert_eq!(one, other);
}

/// Each of them is one line in engine, server or worker, and is found by the oracle alone: the parts' own checks are off.
#[cfg(feature = "mutations")]
#[test]
fn every_deliberate_bug_is_found() {
    use hostler_wire::mutation::turn_on;

    /// All are found within this many seeds.
    const SEEDS_MAX: u64 = 300;
    /// Which are those from 1 on, but for rare ones.
    const FIRST_OF: [(&str, u64); 2] = [
        ("dead by count alone", 12_300),
        ("output of another history sent", 700),
    ];
    const BUGS: [&str; 39] = [
        "acknowledged before its commit",
        "answered before its sync",
        "assigned before its commit",
        "cancel forgotten",
        "cancelling job tried again",
        "commit not synced",
        "damage passed over",
        "dead by count alone",
        "durations on the wall clock",
        "every start is the first",
        "expiry ignored",
        "facts of a refused commit dropped",
        "failed sync of output tried again",
        "fence not compared",
        "gap in the output not counted",
        "given out again too early",
        "id given out again after a crash",
        "idempotency key forgotten",
        "limit of output forgotten at a start",
        "loss charged though not started",
        "losses without end",
        "lowest priority first",
        "newest output not shown",
        "no backstop for timeouts",
        "one try too many",
        "output acknowledged before its sync",
        "output of a waiting job dropped",
        "output of another history sent",
        "output of attempts not told apart",
        "output sent on from where it was sent to",
        "repeated output stored twice",
        "report not sent again",
        "retry loses its place",
        "retry timer lost",
        "running work not listed",
        "started before it was said",
        "stopping server gives work out",
        "what nobody serves holds others up",
        "worker never lost",
    ];
    let mut missed = Vec::new();
    for bug in BUGS {
        turn_on(bug);
        let rare = FIRST_OF.iter().find(|(rare, _)| *rare == bug);
        let first = rare.map_or(1, |(_, first)| *first);
        let found = (1..=SEEDS_MAX).find_map(|tried| {
            let mut options = Options::of(first + tried - 1);
            options.parts_check = false;
            let failure = run(&options, Wanted::Nothing).err()?;
            Some((tried, failure))
        });
        turn_on("");
        match found {
            Some((tried, failure)) => {
                let why = failure.why.lines().last().unwrap_or_default().to_owned();
                let why: String = why.chars().take(90).collect();
                crate::print(&format!("{bug:36} {tried:>4} seeds   {why}"));
            }
            None => {
                crate::print(&format!("{bug:36} not found"));
                missed.push(bug);
            }
        }
    }
    assert!(
        missed.is_empty(),
        "not found in {SEEDS_MAX} seeds: {missed:?}"
    );
}
