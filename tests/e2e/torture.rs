//! Torture: load on a cluster whose server and workers are killed, frozen, stopped and cut off at random, from one seed
//! that is printed. Afterwards the server's answers, the database, and what the jobs themselves wrote down must agree:
//! nothing acknowledged is lost, nothing is there twice, no end has changed, no attempt ran twice, and all of it is
//! over soon after the last blow.
//!
//! `load` submits, cancels and watches; `blows` is what is done to the processes and to the wire; `verdict` compares.
//!
//! `HOSTLER_TESTS_FULL=1` deals 1,000 kills, which takes about seven minutes; `HOSTLER_TESTS_SEED` repeats a run's choices;
//! `HOSTLER_TESTS_SOAK_SECONDS` makes `a_soak_leaves_no_trace_in_memory_and_files` go on for so long.

mod blows;
mod load;
mod verdict;

use std::fs;
use std::thread;
use std::time::Duration;

use hostler_tests::{
    Cluster, PATIENCE, Random, Relay, elapsed, eventually, now, pause, size, soak,
};

use self::blows::{Blows, GRACE, WORKERS};
use self::load::{Load, Pace, StopAtEnd};

/// Threads that submit. Each waits for its answers.
const SUBMITTERS: usize = 3;

#[test]
fn nothing_is_lost_or_recorded_twice_however_server_and_workers_are_killed() {
    torture("torture", false, size(8, 1_000));
}

#[test]
fn nothing_is_lost_either_when_the_wire_is_cut_held_and_damaged_meanwhile() {
    torture("torture on a bad wire", true, size(5, 300));
}

/// One run: so many kills among other blows.
fn torture(what: &str, bad_wire: bool, kills: usize) {
    let mut random = Random::printed(what);
    let mut cluster = Cluster::with(&["--worker-grace", "6s", "--drain-timeout", "10s"]);
    let relay = bad_wire.then(|| Relay::to(cluster.worker_addr()));
    let effects = cluster.effects();
    let load = Load::new(
        &effects,
        random.seed(),
        Pace {
            live_max: 60,
            gap: Duration::from_millis(10),
        },
    );
    let start = now();
    let tally = thread::scope(|scope| {
        let _stop = StopAtEnd(&load);
        for _ in 0..SUBMITTERS {
            let (client, random) = (cluster.client(), random.fork());
            scope.spawn(|| load.submit(client, random));
        }
        let (client, fork) = (cluster.client(), random.fork());
        scope.spawn(|| load.cancel(client, fork));
        for _ in 0..2 {
            let (client, random) = (cluster.client(), random.fork());
            scope.spawn(|| load.watch(client, random));
        }
        let mut blows = Blows::new(&mut cluster, relay.as_ref(), random.fork());
        while blows.tally.kills() < kills {
            load.expect_well();
            blows.deal();
            if blows.tally.kills().is_multiple_of(100) && kills > 100 {
                eprintln!("  after {:.0?}: {}", elapsed(start), blows.tally);
            }
        }
        blows.end();
        let last = now();
        load.stop();
        eventually(2 * GRACE + PATIENCE, "every job has ended", || {
            load.expect_well();
            load.is_over()
        });
        let settled = elapsed(last);
        let mut tally = blows.tally.clone();
        tally.settled = settled;
        blows.expect_workers();
        tally
    });
    let verdict = verdict::of(&cluster, &load, &effects);
    eprintln!(
        "{what}: {:.0?}\n  {tally}\n  {}\n  {verdict}\n  all ended {:.1?} after the last blow, the grace is {GRACE:?}",
        elapsed(start),
        load.tally(),
        tally.settled,
    );
    assert!(
        tally.settled < 2 * GRACE + PATIENCE / 2,
        "{:?}",
        tally.settled
    );
    cluster.stop_server().expect_code(0);
    verdict::of_files(&cluster);
}

#[test]
fn a_soak_leaves_no_trace_in_memory_and_files() {
    let length = soak().unwrap_or(Duration::from_secs(5));
    let kill_every = length.clamp(Duration::from_secs(10), Duration::from_secs(600)) / 10;
    let mut random = Random::printed("soak");
    let mut cluster = Cluster::with(&["--worker-grace", "6s"]);
    let effects = cluster.effects();
    // About half of what eight slots could do.
    let load = Load::new(
        &effects,
        random.seed(),
        Pace {
            live_max: 60,
            gap: Duration::from_millis(150),
        },
    );
    let start = now();
    thread::scope(|scope| {
        let _stop = StopAtEnd(&load);
        for _ in 0..SUBMITTERS {
            let (client, random) = (cluster.client(), random.fork());
            scope.spawn(|| load.submit(client, random));
        }
        let (client, fork) = (cluster.client(), random.fork());
        scope.spawn(|| load.watch(client, fork));
        let mut blows = Blows::new(&mut cluster, None, random.fork());
        let (mut next_kill, mut next_look) = (kill_every, Duration::ZERO);
        while elapsed(start) < length {
            load.expect_well();
            if elapsed(start) >= next_look {
                eprintln!(
                    "  {:>6.0?} {} · {}",
                    elapsed(start),
                    blows.measure(),
                    load.tally()
                );
                next_look += length / 20;
            }
            if elapsed(start) >= next_kill {
                blows.kill_something();
                next_kill += kill_every;
            }
            pause(Duration::from_millis(100));
        }
        blows.end();
        load.stop();
        eventually(2 * GRACE + PATIENCE, "every job has ended", || {
            load.expect_well();
            load.is_over()
        });
        eprintln!("  at the end: {} · {}", blows.measure(), blows.tally);
    });
    let verdict = verdict::of(&cluster, &load, &effects);
    eprintln!(
        "soak: {:.0?}\n  {}\n  {verdict}",
        elapsed(start),
        load.tally()
    );
    let open = fs::read_dir(format!(
        "/proc/{}/fd",
        cluster.server().pid().as_raw_nonzero()
    ));
    let open = open.unwrap().count();
    assert!(
        open < 100 + WORKERS,
        "the idle server has {open} descriptors"
    );
}
