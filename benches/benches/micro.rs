//! Micro benches of what a job costs most of: times by criterion, or instructions by callgrind.
//!
//! ```text
//! cargo bench -p hostler-benches --bench micro                             times
//! cargo bench -p hostler-benches --bench micro -- --instructions           instructions, and the change since
//! cargo bench -p hostler-benches --bench micro -- --instructions --write   benches/instructions.txt was written
//! ```
#![expect(
    clippy::print_stdout,
    reason = "a command whose data goes to standard output"
)]

mod bare;
mod callgrind;
mod subjects;

use std::collections::BTreeMap;
use std::{env, fs};

use criterion::{Criterion, Throughput};
use subjects::{SUBJECTS, Subject};

/// Pieces of work in one measurement.
const PIECES: u64 = 10_000;
const TABLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/instructions.txt");
const HEAD: &str = "# Instructions for one piece of work (callgrind, release build), by
# `cargo bench -p hostler-benches --bench micro -- --instructions --write`.
";

fn main() {
    let args: Vec<String> = env::args().skip(1).collect();
    let has = |flag: &str| args.iter().any(|arg| arg == flag);
    if let [flag, name, pieces] = &args[..]
        && flag == "--one"
    {
        let pieces = pieces.parse().expect("a number");
        (find(name).work)(pieces);
    } else if has("--instructions") {
        instructions(has("--write"));
    } else {
        times();
    }
}

fn find(name: &str) -> &'static Subject {
    let found = SUBJECTS.iter().find(|subject| subject.name == name);
    found.expect("a subject of that name")
}

fn times() {
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("micro");
    group.throughput(Throughput::Elements(PIECES));
    for subject in SUBJECTS {
        group.bench_function(subject.name, |bencher| {
            bencher.iter(|| (subject.work)(PIECES));
        });
    }
    group.finish();
    criterion.final_summary();
}

fn instructions(write: bool) {
    if !callgrind::is_there() {
        println!("instructions: valgrind is not installed, left out");
        return;
    }
    let before = fs::read_to_string(TABLE).unwrap_or_default();
    let before: BTreeMap<&str, f64> = before
        .lines()
        .filter_map(|line| line.rsplit_once(' '))
        .filter_map(|(name, count)| Some((name.trim(), count.parse().ok()?)))
        .collect();
    let mut table = String::from(HEAD);
    for subject in SUBJECTS {
        let args = ["--one".to_owned(), subject.name.to_owned()];
        let Some(now) = callgrind::per_piece(&args, PIECES) else {
            println!("{:<56}{:>9}", subject.name, "failed");
            continue;
        };
        let change = before.get(subject.name).map_or_else(String::new, |then| {
            let percent = (now / then - 1.0) * 100.0;
            if percent.abs() < 0.5 {
                "  =".into()
            } else {
                format!("  {percent:+.1} % (was {then:.0})")
            }
        });
        println!("{:<56}{now:>9.0}{change}", subject.name);
        table.push_str(&format!("{:<56} {now:.0}\n", subject.name));
    }
    if write {
        fs::write(TABLE, table).expect("the table can be written");
    }
}
