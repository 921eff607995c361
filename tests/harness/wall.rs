//! A wall clock that can be set, for one process.
//!
//! A few lines of C between that process and its C library: it asks for `CLOCK_REALTIME` and gets it moved by what a file
//! says. Every other clock is the kernel's own, so the test sees which of them the process goes by. (The kernel's time
//! namespaces move all clocks but this one.)

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::scratch::Scratch;

const SOURCE: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static long offset_s(void) {
    static int file = -1;
    char text[32] = {0};
    if (file < 0) {
        const char *path = getenv("HOSTLER_TESTS_WALL");
        file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    }
    return file < 0 || pread(file, text, sizeof text - 1, 0) < 1 ? 0 : atol(text);
}

int clock_gettime(clockid_t clock, struct timespec *at) {
    int result = syscall(SYS_clock_gettime, clock, at);
    if (result == 0 && clock == CLOCK_REALTIME) at->tv_sec += offset_s();
    return result;
}
"#;

/// The clock on the wall of one process.
#[derive(Debug)]
pub struct Wall {
    library: PathBuf,
    offset: PathBuf,
}

impl Wall {
    /// One that goes right until it is set.
    pub fn new(scratch: &Scratch) -> Self {
        let (source, library) = (scratch.join("wall.c"), scratch.join("wall.so"));
        fs::write(&source, SOURCE).unwrap();
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .args([&library, &source])
            .output()
            .expect("a C compiler, which SQLite needs too");
        assert!(compiled.status.success(), "{compiled:?}");
        let wall = Self {
            library,
            offset: scratch.join("wall.offset"),
        };
        wall.set(0);
        wall
    }

    /// What the process is to be started with.
    pub fn environment(&self) -> Vec<(String, String)> {
        vec![
            ("LD_PRELOAD".to_owned(), self.library.display().to_string()),
            (
                "HOSTLER_TESTS_WALL".to_owned(),
                self.offset.display().to_string(),
            ),
        ]
    }

    /// Puts it so many seconds before the right time, or behind it.
    pub fn set(&self, offset_s: i64) {
        // In place, because the process keeps the file open; one write, so that it never sees half a number.
        let text = format!("{offset_s:<24}");
        match fs::OpenOptions::new().write(true).open(&self.offset) {
            Ok(file) => {
                std::os::unix::fs::FileExt::write_all_at(&file, text.as_bytes(), 0).unwrap();
            }
            Err(_) => fs::write(&self.offset, text).unwrap(),
        }
    }
}
