//! Where the binary under test is, and how large the tests are.
//!
//! This package cannot depend on `hostler-cli` (nothing does), so cargo does not build the binary for it.

use std::env;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The `hostler` binary: `HOSTLER_BIN`, else the one cargo built beside this test.
///
/// # Panics
/// With the command that builds it, if there is none.
pub fn find_binary() -> PathBuf {
    if let Some(path) = env::var_os("HOSTLER_BIN") {
        let path = PathBuf::from(path);
        assert!(path.is_file(), "HOSTLER_BIN={} is no file", path.display());
        return path.canonicalize().unwrap();
    }
    // target/debug/deps/e2e-0123456789abcdef → target/debug/hostler
    let test = env::current_exe().unwrap();
    let profile = test.parent().and_then(Path::parent).unwrap();
    let binary = profile.join("hostler");
    let release = if profile.ends_with("release") {
        " --release"
    } else {
        ""
    };
    assert!(
        binary.is_file(),
        "there is no {}: build it with `cargo build{release} -p hostler-cli`, or name one in HOSTLER_BIN",
        binary.display(),
    );
    binary
}

/// An older build that the tests of upgrades work with, if `HOSTLER_OLD_BIN` names one.
///
/// # Panics
/// If it is no file.
pub fn find_old_binary() -> Option<PathBuf> {
    let path = PathBuf::from(env::var_os("HOSTLER_OLD_BIN")?);
    assert!(
        path.is_file(),
        "HOSTLER_OLD_BIN={} is no file",
        path.display()
    );
    Some(path.canonicalize().unwrap())
}

/// Whether the tests run at their full size (`HOSTLER_TESTS_FULL=1`), which takes many minutes.
pub fn full() -> bool {
    env::var_os("HOSTLER_TESTS_FULL").is_some_and(|value| value == "1")
}

/// One of two figures: the one for every day, or the full one.
pub fn size(small: usize, large: usize) -> usize {
    if full() { large } else { small }
}

/// How long a soak goes on: `HOSTLER_TESTS_SOAK_SECONDS`, if that is set.
pub fn soak() -> Option<Duration> {
    let text = env::var_os("HOSTLER_TESTS_SOAK_SECONDS")?;
    let seconds = text.to_str().unwrap().parse().unwrap();
    Some(Duration::from_secs(seconds))
}
