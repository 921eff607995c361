//! A directory whose file system can be turned read-only under the processes that write to it, and back.
//!
//! The kernel turns one read-only by itself when it finds it damaged, and then it stays so ([`LoopDisk`]). To see what
//! becomes of a process when it is writable again, a few lines of C between the process and its C library refuse what a
//! read-only file system refuses, in the same words, while a flag lies there.
//!
//! [`LoopDisk`]: crate::LoopDisk

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::scratch::Scratch;

const SOURCE: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static int refused(const char *path) {
    const char *dir = getenv("HOSTLER_TESTS_READ_ONLY"), *flag = getenv("HOSTLER_TESTS_READ_ONLY_FLAG");
    if (!dir || !flag || strncmp(path, dir, strlen(dir)) || syscall(SYS_access, flag, F_OK)) return 0;
    errno = EROFS;
    return 1;
}

static int refused_fd(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return refused(path);
}

#define WRITES(name) \
    ssize_t name(int fd, const void *from, size_t n, off_t at) { \
        return refused_fd(fd) ? -1 : syscall(SYS_pwrite64, fd, from, n, at); \
    }
WRITES(pwrite)
WRITES(pwrite64)

#define CUTS(name) \
    int name(int fd, off_t n) { return refused_fd(fd) ? -1 : syscall(SYS_ftruncate, fd, n); }
CUTS(ftruncate)
CUTS(ftruncate64)

#define OPENS(name) \
    int name(const char *path, int flags, ...) { \
        va_list rest; \
        va_start(rest, flags); \
        int mode = va_arg(rest, int); \
        va_end(rest); \
        if ((flags & (O_CREAT | O_WRONLY | O_RDWR)) && refused(path)) return -1; \
        return syscall(SYS_openat, AT_FDCWD, path, flags, mode); \
    }
OPENS(open)
OPENS(open64)
"#;

/// Stands between processes and one directory.
#[derive(Debug)]
pub struct ReadOnly {
    library: PathBuf,
    dir: PathBuf,
    flag: PathBuf,
}

impl ReadOnly {
    /// For that directory, which is writable at first.
    pub fn new(scratch: &Scratch, dir: &Path) -> Self {
        let (source, library) = (scratch.join("read_only.c"), scratch.join("read_only.so"));
        fs::write(&source, SOURCE).unwrap();
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .args([&library, &source])
            .output()
            .expect("a C compiler, which SQLite needs too");
        assert!(compiled.status.success(), "{compiled:?}");
        Self {
            library,
            dir: dir.to_owned(),
            flag: scratch.join("read_only.flag"),
        }
    }

    /// What the process is to be started with.
    pub fn environment(&self) -> Vec<(String, String)> {
        let pair = |name: &str, path: &Path| (name.to_owned(), path.display().to_string());
        vec![
            pair("LD_PRELOAD", &self.library),
            pair("HOSTLER_TESTS_READ_ONLY", &self.dir),
            pair("HOSTLER_TESTS_READ_ONLY_FLAG", &self.flag),
        ]
    }

    /// From now on nothing is written.
    pub fn begin(&self) {
        fs::write(&self.flag, "").unwrap();
    }

    /// And from now on it is again.
    pub fn end(&self) {
        fs::remove_file(&self.flag).unwrap();
    }
}
