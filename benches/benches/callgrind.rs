//! Instructions instead of times: on a busy machine the only figure that is the same twice.
//!
//! This program is run under `valgrind --tool=callgrind` with some work and with twice that; the difference is the work
//! without what surrounds it.

use std::process::{Command, Stdio};

/// Whether there is a valgrind.
pub(crate) fn is_there() -> bool {
    let mut valgrind = Command::new("valgrind");
    valgrind.arg("--version").stdout(Stdio::null());
    valgrind.status().is_ok_and(|status| status.success())
}

/// Instructions of one piece of work, of `count`. The program, called with `args` and a number, does so many.
pub(crate) fn per_piece(args: &[String], count: u64) -> Option<f64> {
    let (once, twice) = (total(args, count)?, total(args, 2 * count)?);
    Some(twice.checked_sub(once)? as f64 / count as f64)
}

fn total(args: &[String], count: u64) -> Option<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe().ok()?)
        .args(args)
        .arg(count.to_string())
        .stdout(Stdio::null())
        .output()
        .ok()?;
    let said = String::from_utf8(output.stderr).ok()?;
    let line = said.lines().find_map(|line| line.split_once("Collected :"));
    line?.1.trim().parse().ok()
}
