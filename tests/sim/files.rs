//! The model file system under the server's output: it forgets what was not synced when the power goes, tears what was
//! under way, fills up, fails, and dies with the server at any operation.
//!
//! A killed server leaves what it had written, synced or not. What a failed sync was to make durable never is, however
//! often it is tried again, unless it is written again.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hostler_server::output::{Files, How, OpenFile};

use crate::rng::Rng;

const SECTOR_BYTES: usize = 512;

/// Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub(crate) struct ModelFiles(Arc<Mutex<State>>);

#[derive(Clone, Debug, Default)]
struct State {
    names: BTreeMap<PathBuf, u64>,
    /// As they were when the directory was last synced.
    synced_names: BTreeMap<PathBuf, u64>,
    inodes: BTreeMap<u64, Inode>,
    next: u64,
    fate: Fate,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, Default)]
struct Fate {
    full: bool,
    /// The next sync fails.
    sync_fails: bool,
    /// The server dies at this many operations from now.
    dies_in: Option<u64>,
    dead: bool,
}

#[derive(Clone, Debug, Default)]
struct Inode {
    bytes: Vec<u8>,
    synced_length: usize,
    /// What stood where something was written since the last sync.
    undo: Vec<(usize, Vec<u8>)>,
    /// What stood where a failed sync left the page clean and the disk old.
    lost: Vec<(usize, Vec<u8>)>,
}

#[derive(Debug)]
struct ModelFile {
    disk: ModelFiles,
    inode: u64,
}

impl ModelFiles {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_full(&self, full: bool) {
        self.state().fate.full = full;
    }

    pub(crate) fn fail_next_sync(&self) {
        self.state().fate.sync_fails = true;
    }

    /// The server dies in the midst of what it does to these files.
    pub(crate) fn die_in(&self, operations: u64) {
        self.state().fate.dies_in = Some(operations);
    }

    /// Whether it has.
    pub(crate) fn is_dead(&self) -> bool {
        self.state().fate.dead
    }

    /// A new server.
    pub(crate) fn revive(&self) {
        let fate = &mut self.state().fate;
        fate.dead = false;
        fate.dies_in = None;
    }

    pub(crate) fn make_peace(&self) {
        let dead = self.is_dead();
        self.state().fate = Fate {
            dead,
            ..Fate::default()
        };
    }

    /// A copy that nothing is written to any more.
    pub(crate) fn copy(&self) -> Self {
        Self(Arc::new(Mutex::new(self.state().clone())))
    }

    /// That copy is what is there from now on.
    pub(crate) fn restore(&self, from: &Self) {
        let copy = from.state().clone();
        *self.state() = copy;
    }

    /// What was not synced is there, or not, or in part.
    pub(crate) fn lose_power(&self, rng: &mut Rng) {
        let state = &mut *self.state();
        for inode in state.inodes.values_mut() {
            inode.lose_power(rng);
        }
        let now = std::mem::take(&mut state.names);
        let mut names = std::mem::take(&mut state.synced_names);
        let paths: Vec<PathBuf> = now.keys().chain(names.keys()).cloned().collect();
        for path in paths {
            if now.get(&path) != names.get(&path) && rng.chance(500) {
                match now.get(&path) {
                    Some(inode) => drop(names.insert(path, *inode)),
                    None => drop(names.remove(&path)),
                }
            }
        }
        state.synced_names.clone_from(&names);
        state.names = names;
        state.forget_nameless();
    }
}

impl Inode {
    fn lose_power(&mut self, rng: &mut Rng) {
        if self.undo.is_empty() && self.lost.is_empty() && self.synced_length == self.bytes.len() {
            return;
        }
        let mut synced = self.bytes.clone();
        for (at, old) in self.undo.iter().rev().chain(self.lost.iter().rev()) {
            if let Some(place) = synced.get_mut(*at..*at + old.len()) {
                place.copy_from_slice(old);
            }
        }
        synced.resize(self.synced_length, 0);
        for (n, sector) in self.bytes.chunks(SECTOR_BYTES).enumerate() {
            let at = n * SECTOR_BYTES;
            let same = synced.get(at..at + sector.len()) == Some(sector);
            let is_lost = self
                .lost
                .iter()
                .any(|(from, old)| *from < at + sector.len() && at < from + old.len().max(1));
            if same || is_lost || rng.chance(500) {
                continue;
            }
            if synced.len() < at + sector.len() {
                synced.resize(at + sector.len(), 0);
            }
            synced[at..at + sector.len()].copy_from_slice(sector);
        }
        self.synced_length = synced.len();
        self.bytes = synced;
        self.undo.clear();
        self.lost.clear();
    }

    fn write(&mut self, data: &[u8], at: usize) {
        let old = self
            .bytes
            .get(at..(at + data.len()).min(self.bytes.len()))
            .unwrap_or_default();
        self.undo.push((at, old.to_vec()));
        if self.bytes.len() < at + data.len() {
            self.bytes.resize(at + data.len(), 0);
        }
        self.bytes[at..at + data.len()].copy_from_slice(data);
    }

    fn sync(&mut self) {
        // What was written anew since is on disk now.
        let written = &self.undo;
        self.lost.retain(|(lost, _)| {
            let mut written = written.iter();
            !written.any(|(at, old)| (*at..at + old.len()).contains(lost))
        });
        self.undo.clear();
        self.synced_length = match self.lost.iter().map(|(at, _)| *at).min() {
            // What was appended by a failed one is not there.
            Some(first) if first >= self.synced_length => self.synced_length,
            _ => self.bytes.len(),
        };
    }
}

impl State {
    fn operate(&mut self) -> io::Result<()> {
        if let Some(left) = &mut self.fate.dies_in {
            if *left == 0 {
                self.fate.dead = true;
            } else {
                *left -= 1;
            }
        }
        if self.fate.dead {
            return Err(io::Error::other("the server is dead"));
        }
        Ok(())
    }

    /// A file has one name.
    fn forget_nameless(&mut self) {
        if self.inodes.len() > self.names.len() {
            let named: BTreeSet<u64> = self.names.values().copied().collect();
            self.inodes.retain(|number, _| named.contains(number));
        }
    }

    fn inode(&mut self, number: u64) -> &mut Inode {
        self.inodes.get_mut(&number).expect("it is open")
    }
}

impl Files for ModelFiles {
    fn make_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, _: &Path) -> io::Result<Vec<PathBuf>> {
        Ok(self.state().names.keys().cloned().collect())
    }

    fn open(&self, path: &Path, how: How) -> io::Result<Box<dyn OpenFile>> {
        let mut state = self.state();
        if how != How::Read {
            state.operate()?;
        }
        let known = state.names.get(path).copied();
        let inode = match (how, known) {
            (How::Read | How::Write, Some(inode)) => inode,
            (How::Read | How::Write, None) => return Err(io::ErrorKind::NotFound.into()),
            (How::New, Some(_)) => return Err(io::ErrorKind::AlreadyExists.into()),
            (How::New | How::Over, _) => {
                if state.fate.full {
                    return Err(io::ErrorKind::StorageFull.into());
                }
                state.next += 1;
                let inode = state.next;
                state.inodes.insert(inode, Inode::default());
                state.names.insert(path.to_owned(), inode);
                inode
            }
        };
        drop(state);
        Ok(Box::new(ModelFile {
            disk: self.clone(),
            inode,
        }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.operate()?;
        let inode = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.names.insert(to.to_owned(), inode);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.operate()?;
        let removed = state.names.remove(path);
        removed.map(drop).ok_or(io::ErrorKind::NotFound.into())
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        let state = &mut *self.state();
        state.operate()?;
        state.synced_names.clone_from(&state.names);
        state.forget_nameless();
        Ok(())
    }

    fn nonce(&self) -> io::Result<[u8; 16]> {
        let mut state = self.state();
        state.next += 1;
        let mut nonce = [0x5e; 16];
        nonce[..8].copy_from_slice(&crate::rng::mix(state.next).to_le_bytes());
        Ok(nonce)
    }
}

impl OpenFile for ModelFile {
    fn length(&self) -> io::Result<u64> {
        Ok(self.disk.state().inode(self.inode).bytes.len() as u64)
    }

    fn read_exact_at(&self, into: &mut [u8], at: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        let at = usize::try_from(at).map_err(io::Error::other)?;
        let bytes = &state.inode(self.inode).bytes;
        let from = bytes.get(at..at + into.len());
        into.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_all_at(&self, data: &[u8], at: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        let at = usize::try_from(at).map_err(io::Error::other)?;
        let (operated, full) = (state.operate(), state.fate.full);
        let inode = state.inode(self.inode);
        if let Err(error) = operated {
            // Dead in the midst of it: a part is there.
            inode.write(&data[..data.len() / 2], at);
            return Err(error);
        }
        if full && at + data.len() > inode.bytes.len() {
            inode.write(&data[..data.len() / 3], at);
            return Err(io::ErrorKind::StorageFull.into());
        }
        inode.write(data, at);
        Ok(())
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        state.operate()?;
        let length = usize::try_from(length).map_err(io::Error::other)?;
        let inode = state.inode(self.inode);
        if length < inode.bytes.len() {
            let old = inode.bytes.split_off(length);
            inode.lost.retain(|(at, _)| *at < length);
            inode.undo.retain(|(at, _)| *at < length);
            if length < inode.synced_length {
                // May come back with the power: then it is a torn end once more.
                inode.undo.push((length, old));
            }
        } else {
            inode.bytes.resize(length, 0);
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        state.operate()?;
        let fails = std::mem::take(&mut state.fate.sync_fails);
        let inode = state.inode(self.inode);
        if fails {
            inode.lost.append(&mut inode.undo);
            return Err(io::Error::other("the disk failed"));
        }
        inode.sync();
        Ok(())
    }

    fn again(&self) -> io::Result<Box<dyn OpenFile>> {
        Ok(Box::new(Self {
            disk: self.disk.clone(),
            inode: self.inode,
        }))
    }
}
