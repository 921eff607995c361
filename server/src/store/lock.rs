//! One server a data directory: a lock file held by `flock` for the life of the process.
//!
//! The kernel drops the lock with the process, however it dies, so a killed server's is never in the way; it is opened
//! close-on-exec, so no job keeps it either. The file says who holds it, for people and for the error of a second
//! server.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::clock::Clock;
use crate::store::seam::{StoreError, StoreErrorKind};

const NAME: &str = "hostler.lock";
/// How often and how long a lock is waited for: who only asks whether it is held ([`Lock::holder`]) holds it for an
/// instant.
const TRIES: usize = 3;
const PATIENCE: Duration = Duration::from_millis(50);

/// The lock, until it is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock of that directory, or says who has it.
    pub(super) fn take(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join(NAME);
        let failed = |what: &str, error: std::io::Error| StoreError {
            kind: StoreErrorKind::Io,
            message: format!("cannot {what} {}: {error}", path.display()),
        };
        // A file that was removed between opening and locking protects nothing: begin again with the new one.
        for _ in 0..16 {
            let mut file = File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)
                .map_err(|error| failed("open", error))?;
            match patiently(&file) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Err(in_use(dir, &mut file)),
                Err(error) => return Err(failed("lock", error.into())),
            }
            let held = file.metadata().map_err(|error| failed("look at", error))?;
            if std::fs::metadata(&path).is_ok_and(|there| there.ino() == held.ino()) {
                let line = format!(
                    "pid {} started_ms {}\n",
                    std::process::id(),
                    Clock::resume(None).wall().millis()
                );
                file.set_len(0)
                    .and_then(|()| file.write_all(line.as_bytes()))
                    .map_err(|error| failed("write", error))?;
                return Ok(Self { _file: file });
            }
        }
        Err(StoreError {
            kind: StoreErrorKind::Busy,
            message: format!(
                "{} is removed again and again by somebody else",
                path.display()
            ),
        })
    }

    /// Who holds the lock of that directory, in words, if somebody does.
    pub(super) fn holder(dir: &Path) -> Option<String> {
        let mut file = File::open(dir.join(NAME)).ok()?;
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Err(Errno::WOULDBLOCK) => Some(told_holder(&mut file)),
            // Closing the file lets go of it again.
            Ok(()) | Err(_) => None,
        }
    }
}

fn patiently(file: &File) -> Result<(), Errno> {
    for _ in 1..TRIES {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => std::thread::park_timeout(PATIENCE),
            done => return done,
        }
    }
    flock(file, FlockOperation::NonBlockingLockExclusive)
}

fn told_holder(file: &mut File) -> String {
    let mut holder = String::new();
    let read = file
        .rewind()
        .and_then(|()| file.take(128).read_to_string(&mut holder));
    match read {
        Ok(1..) => holder.trim_end().to_owned(),
        Ok(0) | Err(_) => "holder unknown".to_owned(),
    }
}

fn in_use(dir: &Path, file: &mut File) -> StoreError {
    let holder = told_holder(file);
    StoreError {
        kind: StoreErrorKind::InUse,
        message: format!(
            "another server has the data directory {} ({holder}); stop it, or give this one another directory",
            dir.display()
        ),
    }
}
