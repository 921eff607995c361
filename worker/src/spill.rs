//! Files for output that has no room in memory: some of a fixed size, filled one after another, all attempts' pieces in
//! the order they come. A file goes when nothing in it is wanted any more, so what a chatty attempt has had
//! acknowledged makes room for what it prints next.
//!
//! The files have no name, so they go with the worker however it ends. Where the file system cannot make such files they
//! have one for an instant; what a worker that was killed in it left behind is removed by the next one.
//!
//! What lies where is kept here ([`Spill`]); how bytes get there is a seam ([`SpillFiles`]), so that files that fail can
//! stand in its place.
//!
//! Not here: whose a piece is, and what is dropped when there is no room (`output`).

use std::collections::HashMap;
use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

/// Names of files that could not be made without one begin with this.
const PREFIX: &str = ".hostler-output-";

/// Where a piece lies.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Spot {
    file: u64,
    at: u64,
    pub(crate) bytes: usize,
}

/// Where the bytes go: numbered files, of which nobody else knows.
pub trait SpillFiles: Debug {
    /// Makes the file of that number; nothing is read of it that was not written before.
    fn make(&mut self, number: u64) -> io::Result<()>;
    /// Writes all of `data` into it.
    fn write(&mut self, number: u64, data: &[u8], at: u64) -> io::Result<()>;
    /// Fills `into` from it.
    fn read(&self, number: u64, into: &mut [u8], at: u64) -> io::Result<()>;
    /// It is not wanted any more.
    fn remove(&mut self, number: u64);
}

/// Files without a name in a directory. One that goes while others are there is used for the next: a job that prints
/// without end would make and remove a hundred a second, which everybody's syncs on that disk wait for.
#[derive(Debug)]
pub(crate) struct Nameless {
    directory: PathBuf,
    files: HashMap<u64, File>,
    spare: Option<File>,
}

impl Nameless {
    pub(crate) fn new(directory: PathBuf) -> Self {
        sweep(&directory);
        Self {
            directory,
            files: HashMap::new(),
            spare: None,
        }
    }

    fn file(&self, number: u64) -> io::Result<&File> {
        Ok(self.files.get(&number).ok_or(io::ErrorKind::NotFound)?)
    }
}

impl SpillFiles for Nameless {
    fn make(&mut self, number: u64) -> io::Result<()> {
        let file = match self.spare.take() {
            Some(file) => file,
            None => nameless(&self.directory)?,
        };
        self.files.insert(number, file);
        Ok(())
    }

    fn write(&mut self, number: u64, data: &[u8], at: u64) -> io::Result<()> {
        self.file(number)?.write_all_at(data, at)
    }

    fn read(&self, number: u64, into: &mut [u8], at: u64) -> io::Result<()> {
        self.file(number)?.read_exact_at(into, at)
    }

    fn remove(&mut self, number: u64) {
        let file = self.files.remove(&number);
        self.spare = file.filter(|_| !self.files.is_empty());
    }
}

/// All files.
#[derive(Debug)]
pub(crate) struct Spill {
    backing: Box<dyn SpillFiles>,
    file_bytes: u64,
    files_max: usize,
    files: HashMap<u64, Filled>,
    /// The one being filled has this number, if it is there.
    current: u64,
}

#[derive(Debug)]
struct Filled {
    bytes: u64,
    /// Of these, still wanted.
    live_bytes: u64,
}

impl Spill {
    /// At most `bytes_max` in files of at most `file_bytes`.
    pub(crate) fn new(backing: Box<dyn SpillFiles>, bytes_max: u64, file_bytes: u64) -> Self {
        let file_bytes = file_bytes.min(bytes_max).max(1);
        Self {
            backing,
            file_bytes,
            files_max: usize::try_from(bytes_max / file_bytes).unwrap_or(usize::MAX),
            files: HashMap::new(),
            current: 0,
        }
    }

    /// Whether so many bytes more would be taken.
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        let bytes = bytes as u64;
        let fits_current = self
            .files
            .get(&self.current)
            .is_some_and(|filled| filled.bytes + bytes <= self.file_bytes);
        fits_current || (bytes <= self.file_bytes && self.files.len() < self.files_max)
    }

    /// Takes bytes. The caller has asked [`has_room`](Self::has_room).
    pub(crate) fn put(&mut self, data: &[u8]) -> io::Result<Spot> {
        if !self.has_room(data.len()) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let fits = |filled: &Filled| filled.bytes + data.len() as u64 <= self.file_bytes;
        if !self.files.get(&self.current).is_some_and(fits) {
            self.backing.make(self.current + 1)?;
            self.current += 1;
            let filled = Filled {
                bytes: 0,
                live_bytes: 0,
            };
            self.files.insert(self.current, filled);
        }
        let filled = self.files.get_mut(&self.current).expect("made above");
        let at = filled.bytes;
        self.backing.write(self.current, data, at)?;
        filled.bytes += data.len() as u64;
        filled.live_bytes += data.len() as u64;
        Ok(Spot {
            file: self.current,
            at,
            bytes: data.len(),
        })
    }

    /// The bytes of a spot.
    pub(crate) fn read(&self, spot: &Spot, into: &mut [u8]) -> io::Result<()> {
        self.backing.read(spot.file, into, spot.at)
    }

    /// The first `n` bytes of a spot are not wanted any more.
    pub(crate) fn free(&mut self, spot: &mut Spot, n: usize) {
        assert!(n <= spot.bytes);
        spot.at += n as u64;
        spot.bytes -= n;
        if let Some(filled) = self.files.get_mut(&spot.file) {
            filled.live_bytes -= n as u64;
            if filled.live_bytes == 0 {
                self.files.remove(&spot.file);
                self.backing.remove(spot.file);
            }
        }
    }

    /// Bytes the files take, wanted or not.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> u64 {
        self.files.values().map(|filled| filled.bytes).sum()
    }
}

/// A file that only we know, gone with us.
fn nameless(directory: &Path) -> io::Result<File> {
    let mode = Mode::RUSR | Mode::WUSR;
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    if let Ok(file) = rustix::fs::open(directory, flags | OFlags::TMPFILE, mode) {
        return Ok(file.into());
    }
    let number = getrandom::u64().map_err(io::Error::other)?;
    let path = directory.join(format!("{PREFIX}{number:016x}"));
    let file = rustix::fs::open(&path, flags | OFlags::CREATE | OFlags::EXCL, mode)?;
    // Another worker that starts at this moment may have been faster.
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(file.into()),
    }
}

/// Removes files that lost their worker before their name. One of a living worker loses only the name, which it is about to
/// remove itself.
fn sweep(directory: &Path) {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return; // making a file there will say what is wrong
    };
    for entry in entries.flatten() {
        if entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(PREFIX.as_bytes())
        {
            // Another user's is that user's affair.
            drop(std::fs::remove_file(entry.path()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spill(directory: &Path) -> Spill {
        Spill::new(Box::new(Nameless::new(directory.to_path_buf())), 40, 10)
    }

    #[test]
    fn what_is_freed_makes_room_while_other_pieces_stay() {
        let dir = tempfile::tempdir().unwrap();
        let mut spill = spill(dir.path());
        let mut kept = spill.put(b"kept").unwrap();
        for n in 0..100u8 {
            let mut spot = spill.put(&[n; 6]).unwrap();
            let mut back = [0; 6];
            spill.read(&spot, &mut back).unwrap();
            assert_eq!(back, [n; 6]);
            spill.free(&mut spot, 6);
        }
        let mut back = [0; 4];
        spill.read(&kept, &mut back).unwrap();
        assert_eq!(&back, b"kept");
        spill.free(&mut kept, 4);
        assert_eq!(spill.bytes(), 0);
    }

    #[test]
    fn a_file_that_goes_is_the_next_one_and_none_stays_when_nothing_is_wanted() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = Nameless::new(dir.path().to_path_buf());
        files.make(1).unwrap();
        files.write(1, b"first", 0).unwrap();
        files.make(2).unwrap();
        files.remove(1);
        assert!(files.read(1, &mut [0; 5], 0).is_err());
        files.make(3).unwrap();
        assert!(files.spare.is_none());
        files.write(3, b"th", 0).unwrap();
        let mut back = [0; 2];
        files.read(3, &mut back, 0).unwrap();
        assert_eq!(&back, b"th");
        files.remove(2);
        assert!(files.spare.is_some());
        files.remove(3);
        assert!(files.spare.is_none() && files.files.is_empty());
    }

    #[test]
    fn it_takes_no_more_than_its_bound() {
        let dir = tempfile::tempdir().unwrap();
        let mut spill = spill(dir.path());
        for _ in 0..4 {
            assert!(spill.has_room(10));
            spill.put(&[0; 10]).unwrap();
        }
        assert!(!spill.has_room(1) && spill.put(&[0; 1]).is_err());
        assert_eq!(spill.bytes(), 40);
    }

    #[test]
    fn no_file_has_a_name_and_those_left_behind_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let left = dir.path().join(format!("{PREFIX}0123456789abcdef"));
        let other = dir.path().join("somebody-elses");
        std::fs::write(&left, "lost").unwrap();
        std::fs::write(&other, "not ours").unwrap();
        spill(dir.path()).put(b"new").unwrap();
        let names: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        assert_eq!(names, [other]);
    }
}
