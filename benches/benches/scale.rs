//! How the engine's work for one job grows with the number of workers and of queued jobs: ideally not at all.
//!
//! ```text
//! cargo bench -p hostler-benches --bench scale                                   the table
//! cargo bench -p hostler-benches --bench scale -- --quick                        without 10 M and 100 M jobs
//! cargo bench -p hostler-benches --bench scale -- --write docs/performance.md    into its section
//! ```
#![expect(
    clippy::print_stdout,
    reason = "a command whose data goes to standard output"
)]

mod bare;
mod callgrind;

use std::path::Path;
use std::{env, fs};

use bare::Bare;
use hostler_benches::clock::Moment;
use hostler_benches::document;
use hostler_benches::environment::Environment;

const WORKERS: [u32; 3] = [10, 1_000, 10_000];
const QUEUED: [u64; 4] = [1_000, 1_000_000, 10_000_000, 100_000_000];
/// Jobs that are timed, and as many before them: what is slow once only.
const JOBS: u64 = 200_000;
/// Jobs whose instructions are counted.
const COUNTED: u64 = 10_000;
/// Backlogs up to this size are counted under callgrind too.
const COUNTED_QUEUED_MAX: u64 = 1_000_000;

fn main() {
    let args: Vec<String> = env::args().skip(1).filter(|arg| arg != "--bench").collect();
    if let [flag, workers, queued, at_once, jobs] = &args[..]
        && flag == "--one"
    {
        let number = |text: &String| text.parse::<u64>().expect("a number");
        let workers = u32::try_from(number(workers)).expect("few");
        let mut bare = filled(workers, number(queued));
        keep(
            &mut bare,
            number(jobs),
            usize::try_from(number(at_once)).expect("few"),
        );
        return;
    }
    let quick = args.iter().any(|arg| arg == "--quick");
    let table = table(quick);
    println!("{table}");
    if let Some(at) = args.iter().position(|arg| arg == "--write") {
        let path = args.get(at + 1).expect("--write FILE");
        document::write_section(Path::new(path), "scale", &table).expect("the section is there");
    }
}

fn table(quick: bool) -> String {
    let mut text = String::new();
    for (name, value) in Environment::of_machine().rows() {
        text.push_str(&format!("{name}: {value}  \n"));
    }
    text.push_str(
        "\n| workers | queued | ns a job, ends one by one | … 100 at once | instructions a job, one by one | … 100 at \
         once | memory a queued job |\n|---|---|---|---|---|---|---|\n",
    );
    let counts = callgrind::is_there();
    let mut first = None;
    for workers in WORKERS {
        for queued in QUEUED {
            // The largest backlog says how memory grows; one row of it is enough.
            if quick && queued > 1_000_000 || queued > 10_000_000 && workers != WORKERS[1] {
                continue;
            }
            let before = resident();
            let mut bare = filled(workers, queued);
            let bytes = resident().saturating_sub(before) as f64 / queued as f64;
            let ns = [1, 100].map(|at_once| {
                keep(&mut bare, JOBS, at_once);
                let begun = Moment::now();
                keep(&mut bare, JOBS, at_once);
                begun.elapsed().as_nanos() as f64 / JOBS as f64
            });
            drop(bare);
            let instructions = [1, 100].map(|at_once| {
                let countable = counts && queued <= COUNTED_QUEUED_MAX;
                let args = ["--one".to_owned(), workers.to_string(), queued.to_string()];
                let args = [&args[..], &[format!("{at_once}")]].concat();
                countable
                    .then(|| callgrind::per_piece(&args, COUNTED))
                    .flatten()
            });
            let first = *first.get_or_insert(ns);
            let of = |at: usize| format!("{:.0} ({:.2} ×)", ns[at], ns[at] / first[at]);
            let count = |at: usize| instructions[at].map_or("-".into(), |it| format!("{it:.0}"));
            // What an earlier backlog left to the allocator is used again, and says nothing of this one.
            let bytes = if queued < 1_000_000 || bytes < 1.0 {
                "-".into()
            } else {
                format!("{bytes:.1} B")
            };
            let row = format!(
                "| {workers} | {queued} | {} | {} | {} | {} | {bytes} |\n",
                of(0),
                of(1),
                count(0),
                count(1)
            );
            eprint!("{row}");
            text.push_str(&row);
        }
    }
    text
}

/// An engine with so many workers, all busy, and so many jobs queued.
fn filled(workers: u32, queued: u64) -> Bare {
    let mut bare = Bare::new(workers, 0);
    bare.submit(queued + u64::from(workers));
    bare.turn();
    bare
}

/// So many jobs end; as many come, so that the backlog stays as it is.
fn keep(bare: &mut Bare, jobs: u64, at_once: usize) {
    let mut left = jobs;
    while left > 0 {
        let some = left.min(500);
        bare.run(some, at_once);
        bare.submit(some);
        bare.turn();
        left -= some;
    }
}

/// Memory in use, bytes.
fn resident() -> u64 {
    let text = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = text
        .split(' ')
        .nth(1)
        .and_then(|word| word.parse::<u64>().ok());
    pages.unwrap_or(0) * 4_096
}
