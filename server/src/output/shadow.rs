//! For tests: what is really on disk. Remembers each file as it was when it was last synced, and the names a directory
//! had when it was; a power cut leaves that, and of everything else some pieces, as the seed has it.
//!
//! One shadow a thread, which is a test's own.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

const SECTOR_BYTES: usize = 512;

#[derive(Default)]
struct Shadow {
    /// By inode.
    bytes: BTreeMap<u64, Vec<u8>>,
    /// By directory.
    names: BTreeMap<PathBuf, BTreeMap<PathBuf, u64>>,
}

thread_local! {
    static SHADOW: RefCell<Shadow> = RefCell::default();
}

/// The file is on disk as it is.
pub(super) fn file_synced(file: &File) {
    let meta = file.metadata().unwrap();
    let mut bytes = vec![0; usize::try_from(meta.len()).unwrap()];
    // A file opened for writing only cannot be read through its own handle.
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file));
    File::open(path)
        .unwrap()
        .read_exact_at(&mut bytes, 0)
        .unwrap();
    SHADOW.with_borrow_mut(|shadow| shadow.bytes.insert(meta.ino(), bytes));
}

/// The directory's names are on disk as they are.
pub(super) fn dir_synced(dir: &Path) {
    let names = names_of(dir);
    SHADOW.with_borrow_mut(|shadow| shadow.names.insert(dir.to_owned(), names));
}

fn names_of(dir: &Path) -> BTreeMap<PathBuf, u64> {
    let entries = fs::read_dir(dir).unwrap().map(Result::unwrap);
    let name = |entry: fs::DirEntry| (entry.path(), entry.metadata().unwrap().ino());
    entries.map(name).collect()
}

/// What a power cut would leave of the directory, in another one.
pub(super) fn cut_power(dir: &Path, seed: u64) -> tempfile::TempDir {
    let left = tempfile::tempdir().unwrap();
    let mut dice = seed;
    let mut roll = |sides: u64| {
        dice = dice
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (dice >> 33) % sides
    };
    let live = names_of(dir);
    SHADOW.with_borrow(|shadow| {
        let mut names = shadow.names.get(dir).cloned().unwrap_or_default();
        for (path, inode) in &live {
            if roll(2) == 0 {
                names.insert(path.clone(), *inode);
            }
        }
        for (path, inode) in names {
            let mut bytes = shadow.bytes.get(&inode).cloned().unwrap_or_default();
            let now = fs::read(&path).unwrap_or_default();
            for (n, sector) in now.chunks(SECTOR_BYTES).enumerate() {
                let at = n * SECTOR_BYTES;
                let same = bytes.get(at..at + sector.len()) == Some(sector);
                if same || roll(2) == 0 {
                    continue;
                }
                if bytes.len() < at + sector.len() {
                    bytes.resize(at + sector.len(), 0);
                }
                bytes[at..at + sector.len()].copy_from_slice(sector);
            }
            fs::write(left.path().join(path.file_name().unwrap()), bytes).unwrap();
        }
    });
    left
}
