//! What output needs of a file system, so that one that fails, forgets or tears can stand in its place.
//!
//! Not here: what is written where (`segment`, `index`).

use std::fmt::Debug;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

#[cfg(test)]
use super::shadow;

/// Names and what is behind them.
pub trait Files: Debug + Send + Sync {
    /// Makes a directory if it is not there.
    fn make_dir(&self, dir: &Path) -> io::Result<()>;
    /// Everything in a directory.
    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>>;
    /// Opens a file.
    fn open(&self, path: &Path, how: How) -> io::Result<Box<dyn OpenFile>>;
    /// Gives a file another name, in the place of whatever had it.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Takes a name away.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Bytes nobody can guess.
    fn nonce(&self) -> io::Result<[u8; 16]>;
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// To be read.
    Read,
    /// To be read and written.
    Write,
    /// To be made; it must not be there.
    New,
    /// To be made, empty, whatever was there.
    Over,
}

/// A file that is open.
pub trait OpenFile: Debug + Send {
    /// Its length.
    fn length(&self) -> io::Result<u64>;
    /// Reads all of `into`.
    fn read_exact_at(&self, into: &mut [u8], at: u64) -> io::Result<()>;
    /// Writes all of `data`.
    fn write_all_at(&self, data: &[u8], at: u64) -> io::Result<()>;
    /// Cuts it, or makes it longer.
    fn set_length(&self, length: u64) -> io::Result<()>;
    /// Makes what is in it durable.
    fn sync(&self) -> io::Result<()>;
    /// The same file once more.
    fn again(&self) -> io::Result<Box<dyn OpenFile>>;
}

/// The system's.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemFiles;

impl Files for SystemFiles {
    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        std::fs::create_dir_all(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        std::fs::read_dir(dir)?
            .map(|entry| Ok(entry?.path()))
            .collect()
    }

    fn open(&self, path: &Path, how: How) -> io::Result<Box<dyn OpenFile>> {
        let mut options = OpenOptions::new();
        match how {
            How::Read => options.read(true),
            How::Write => options.read(true).write(true),
            How::New => options.read(true).write(true).create_new(true),
            How::Over => options.read(true).write(true).create(true).truncate(true),
        };
        Ok(Box::new(options.open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()?;
        #[cfg(test)]
        shadow::dir_synced(dir);
        Ok(())
    }

    fn nonce(&self) -> io::Result<[u8; 16]> {
        let mut nonce = [0; 16];
        getrandom::fill(&mut nonce).map_err(io::Error::other)?;
        Ok(nonce)
    }
}

impl OpenFile for File {
    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_exact_at(&self, into: &mut [u8], at: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, into, at)
    }

    fn write_all_at(&self, data: &[u8], at: u64) -> io::Result<()> {
        FileExt::write_all_at(self, data, at)
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()?;
        #[cfg(test)]
        shadow::file_synced(self);
        Ok(())
    }

    fn again(&self) -> io::Result<Box<dyn OpenFile>> {
        Ok(Box::new(self.try_clone()?))
    }
}
