//! A segment: a file of records that only grows.
//!
//! It begins with a header that has a random nonce. After each sync the next batch begins with a mark that repeats the
//! nonce: so a scan can tell the torn end of an unsynced batch, which is cut off, from damage to what had been synced,
//! which is named and stepped over. Jobs cannot forge marks, since they never see the nonce.
//!
//! Not here: which attempt a record belongs to (`log`), finding it again (`index`).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::BytesMut;
use hostler_wire::mutation;

use super::files::{Files, How, OpenFile};
use super::record::{HEADER_BYTES, Head, Key, Kind, Place, u32_at, u64_at};

/// Bytes before the first record.
pub(super) const SEGMENT_HEADER_BYTES: u32 = 40;
/// No segment of ours is larger: a batch is written only into one below its usual size.
pub(super) const SEGMENT_BYTES_MAX: u64 = 1 << 30;
const MAGIC: &[u8; 8] = b"HOSTSEG1";
/// Room for less than that is none.
const SPACE_BYTES_MIN: usize = 1 << 20;
/// What is gathered before it is written to a segment's successor.
const REWRITE_BUFFER_BYTES: usize = 1 << 20;

/// The segment that is written to.
#[derive(Debug)]
pub(super) struct Segment {
    pub number: u32,
    file: Box<dyn OpenFile>,
    nonce: [u8; 16],
    /// Bytes written.
    length: u32,
    /// Bytes known to be on disk.
    synced: u32,
    #[cfg(test)]
    pub fail_next: bool,
}

/// What a scan found.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// The end of the last good record.
    pub good: u32,
    /// Bytes after it that are no records: a torn batch.
    pub torn_bytes: u32,
    /// Where the last mark stands: nothing before it can be unsynced.
    pub mark: u32,
    /// Stretches that had been synced and are no longer what was written.
    pub damage: Vec<(u32, u32)>,
}

impl Segment {
    /// Makes the next segment.
    pub(super) fn create(
        files: &dyn Files,
        dir: &Path,
        number: u32,
        now_ms: u64,
    ) -> io::Result<Self> {
        let (header, nonce) = new_header(files, number, now_ms)?;
        let path = path_of(dir, number);
        let file = files.open(&path, How::New)?;
        let made = file
            .write_all_at(&header, 0)
            .and_then(|()| file.sync())
            .and_then(|()| files.sync_dir(dir));
        if let Err(error) = made {
            drop(files.remove(&path));
            return Err(error);
        }
        Ok(Self {
            number,
            file,
            nonce,
            length: SEGMENT_HEADER_BYTES,
            synced: SEGMENT_HEADER_BYTES,
            #[cfg(test)]
            fail_next: false,
        })
    }

    /// Opens one that is there; none if it has no valid header.
    pub(super) fn open(files: &dyn Files, dir: &Path, number: u32) -> io::Result<Option<Self>> {
        Self::open_with(files, How::Write, dir, number)
    }

    /// The same for somebody who only reads.
    pub(super) fn look(files: &dyn Files, dir: &Path, number: u32) -> io::Result<Option<Self>> {
        Self::open_with(files, How::Read, dir, number)
    }

    fn open_with(files: &dyn Files, how: How, dir: &Path, number: u32) -> io::Result<Option<Self>> {
        let file = files.open(&path_of(dir, number), how)?;
        let bytes = file.length()?;
        if bytes < u64::from(SEGMENT_HEADER_BYTES) || bytes > SEGMENT_BYTES_MAX {
            return Ok(None);
        }
        let mut header = [0; SEGMENT_HEADER_BYTES as usize];
        file.read_exact_at(&mut header, 0)?;
        let valid = &header[0..8] == MAGIC
            && u32_at(&header, 8) == number
            && u32_at(&header, 36) == crc32fast::hash(&header[..36]);
        if !valid {
            return Ok(None);
        }
        let length = u32::try_from(bytes).expect("at most SEGMENT_BYTES_MAX");
        Ok(Some(Self {
            number,
            file,
            nonce: *header[12..].first_chunk().expect("a header of fixed size"),
            length,
            synced: length,
            #[cfg(test)]
            fail_next: false,
        }))
    }

    pub(super) fn length(&self) -> u32 {
        self.length
    }

    pub(super) fn file(&self) -> &dyn OpenFile {
        &*self.file
    }

    /// The record that a batch begins with.
    pub(super) fn write_mark(&self, batch: &mut BytesMut) {
        let place = Place {
            segment: self.number,
            at: self.length,
        };
        Head::new(Kind::Mark, Key::default(), 0, 0, 0).write(place, &self.nonce, batch);
    }

    /// Appends and syncs. After an error [`Segment::rewind`] must succeed before anything else is written: what was not
    /// synced is cut off, not synced again, since nobody knows what became of its pages.
    pub(super) fn commit(&mut self, batch: &[u8]) -> io::Result<()> {
        #[cfg(test)]
        if std::mem::take(&mut self.fail_next) {
            self.file
                .write_all_at(&batch[..batch.len() / 2], u64::from(self.length))?;
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        self.file.write_all_at(batch, u64::from(self.length))?;
        if mutation::is("failed sync of output tried again") {
            self.file.sync().or_else(|_| self.file.sync())?;
        } else if !mutation::is("output acknowledged before its sync") {
            self.file.sync()?;
        }
        self.length += u32::try_from(batch.len()).map_err(io::Error::other)?;
        self.synced = self.length;
        Ok(())
    }

    /// Puts on disk what a server that was killed may have written and not synced, from there on: it counts as stored from
    /// now on. It is written once more: a start before this one may have tried the same and failed, and after a failed
    /// sync memory has what the disk will never get.
    pub(super) fn settle(&self, from: u32) -> io::Result<()> {
        let mut bytes = vec![0; self.length.saturating_sub(from) as usize];
        if !bytes.is_empty() {
            self.file.read_exact_at(&mut bytes, u64::from(from))?;
            self.file.write_all_at(&bytes, u64::from(from))?;
        }
        self.file.sync()
    }

    /// Cuts off what was not synced.
    pub(super) fn rewind(&mut self) -> io::Result<()> {
        self.truncate(self.synced)
    }

    /// Cuts the file at a place.
    pub(super) fn truncate(&mut self, length: u32) -> io::Result<()> {
        self.file.set_length(u64::from(length))?;
        self.file.sync()?;
        self.length = length;
        self.synced = length;
        Ok(())
    }

    /// Walks over all records.
    pub(super) fn scan(
        &self,
        mut on_record: impl FnMut(Place, &Head, &[u8], bool),
    ) -> io::Result<Scan> {
        let mut bytes = vec![0; self.length as usize];
        self.file.read_exact_at(&mut bytes, 0)?;
        let mut scan = Scan {
            good: SEGMENT_HEADER_BYTES,
            mark: SEGMENT_HEADER_BYTES,
            ..Scan::default()
        };
        let mut at = SEGMENT_HEADER_BYTES;
        while at < self.length {
            let place = Place {
                segment: self.number,
                at,
            };
            let record = &bytes[at as usize..];
            let read = Head::read(place, record).and_then(|h| Some((h, h.data(record)?)));
            if let Some((head, data)) = read {
                on_record(place, &head, data, !scan.damage.is_empty());
                if head.kind == Kind::Mark {
                    scan.mark = at;
                }
                at += head.bytes();
                scan.good = at;
            } else if let Some(mark) = self.next_mark(&bytes, at) {
                scan.damage.push((at, mark));
                at = mark;
            } else {
                scan.torn_bytes = self.length - at;
                break;
            }
        }
        Ok(scan)
    }

    /// Where the next mark stands: all before it had been synced.
    fn next_mark(&self, bytes: &[u8], after: u32) -> Option<u32> {
        let from = after as usize;
        let nonces = bytes[from..].windows(16).enumerate();
        nonces
            .filter(|(_, window)| *window == self.nonce)
            .filter_map(|(i, _)| (from + i).checked_sub(HEADER_BYTES))
            .filter_map(|at| u32::try_from(at).ok())
            .find(|at| {
                let segment = self.number;
                let head = Head::read(Place { segment, at: *at }, &bytes[*at as usize..]);
                *at > after && head.is_some_and(|head| head.kind == Kind::Mark)
            })
    }
}

fn new_header(
    files: &dyn Files,
    number: u32,
    created_ms: u64,
) -> io::Result<([u8; SEGMENT_HEADER_BYTES as usize], [u8; 16])> {
    let nonce = files.nonce()?;
    let mut header = [0; SEGMENT_HEADER_BYTES as usize];
    header[0..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&number.to_le_bytes());
    header[12..28].copy_from_slice(&nonce);
    header[28..36].copy_from_slice(&created_ms.to_le_bytes());
    let crc = crc32fast::hash(&header[..36]);
    header[36..40].copy_from_slice(&crc.to_le_bytes());
    Ok((header, nonce))
}

/// A segment's successor of the same number while it is written.
#[derive(Debug)]
pub(super) struct Rewrite {
    number: u32,
    nonce: [u8; 16],
    files: Arc<dyn Files>,
    file: Box<dyn OpenFile>,
    path: PathBuf,
    dir: PathBuf,
    buffer: BytesMut,
    /// Where the next record will stand.
    length: u32,
    /// Bytes that are in the file.
    written: u64,
}

impl Rewrite {
    pub(super) fn create(
        files: &Arc<dyn Files>,
        dir: &Path,
        number: u32,
        created_ms: u64,
    ) -> io::Result<Self> {
        let (header, nonce) = new_header(&**files, number, created_ms)?;
        let path = path_of(dir, number).with_extension("new");
        let file = files.open(&path, How::Over)?;
        Ok(Self {
            number,
            nonce,
            files: Arc::clone(files),
            file,
            path,
            dir: dir.to_path_buf(),
            buffer: BytesMut::from(&header[..]),
            length: SEGMENT_HEADER_BYTES,
            written: 0,
        })
    }

    /// Appends a record; gives back where it stands, and how it reads there.
    pub(super) fn push(&mut self, head: Head, data: &[u8]) -> io::Result<(Place, Head)> {
        let place = Place {
            segment: self.number,
            at: self.length,
        };
        let at = self.buffer.len();
        self.length += head.write(place, data, &mut self.buffer);
        let head = Head::read(place, &self.buffer[at..]).expect("just written");
        if self.buffer.len() >= REWRITE_BUFFER_BYTES {
            self.flush()?;
        }
        Ok((place, head))
    }

    /// All of it is on disk, under a name of its own. Returns its size.
    pub(super) fn complete(&mut self) -> io::Result<u64> {
        // What is damaged in it from here on had been synced.
        let nonce = self.nonce;
        self.push(Head::new(Kind::Mark, Key::default(), 0, 0, 0), &nonce)?;
        self.flush()?;
        self.file.sync()?;
        Ok(self.written)
    }

    /// It is the segment from now on.
    pub(super) fn take_place(&self) -> io::Result<()> {
        self.files
            .rename(&self.path, &path_of(&self.dir, self.number))?;
        self.files.sync_dir(&self.dir)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.buffer, self.written)?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

impl Drop for Rewrite {
    /// Unless it took its place there is a file to be removed; at the latest the next start does that.
    fn drop(&mut self) {
        drop(self.files.remove(&self.path));
    }
}

/// The file of a segment.
pub(super) fn path_of(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("{number:08}.seg"))
}

/// Writes, syncs and removes a file of that many bytes, and of a few chunks at least.
pub(super) fn try_space(files: &dyn Files, dir: &Path, bytes: usize) -> io::Result<()> {
    let path = dir.join("space.tmp");
    let tried = files.open(&path, How::Over).and_then(|file| {
        file.write_all_at(&vec![0; bytes.max(SPACE_BYTES_MIN)], 0)?;
        file.sync()
    });
    let removed = files.remove(&path);
    tried.and(removed)
}

/// When a segment was made, wall milliseconds, if its header can be read.
pub(super) fn created_ms(files: &dyn Files, dir: &Path, number: u32) -> Option<u64> {
    let mut header = [0; SEGMENT_HEADER_BYTES as usize];
    let file = files.open(&path_of(dir, number), How::Read).ok()?;
    file.read_exact_at(&mut header, 0).ok()?;
    Some(u64_at(&header, 28))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// A file as Linux has it: after a failed sync, what was written is in memory, counts as clean, and is not on disk.
    #[derive(Clone, Debug, Default)]
    struct Lossy(Arc<Mutex<Pages>>);

    #[derive(Debug, Default)]
    struct Pages {
        memory: Vec<u8>,
        disk: Vec<u8>,
        dirty: Vec<(usize, usize)>,
        fails: bool,
    }

    impl OpenFile for Lossy {
        fn length(&self) -> io::Result<u64> {
            Ok(self.0.lock().unwrap().memory.len() as u64)
        }

        fn read_exact_at(&self, into: &mut [u8], at: u64) -> io::Result<()> {
            let at = usize::try_from(at).unwrap();
            into.copy_from_slice(&self.0.lock().unwrap().memory[at..at + into.len()]);
            Ok(())
        }

        fn write_all_at(&self, data: &[u8], at: u64) -> io::Result<()> {
            let at = usize::try_from(at).unwrap();
            let mut pages = self.0.lock().unwrap();
            let length = pages.memory.len().max(at + data.len());
            pages.memory.resize(length, 0);
            pages.memory[at..at + data.len()].copy_from_slice(data);
            pages.dirty.push((at, at + data.len()));
            Ok(())
        }

        fn set_length(&self, _: u64) -> io::Result<()> {
            unreachable!("nothing is cut off here")
        }

        fn sync(&self) -> io::Result<()> {
            let pages = &mut *self.0.lock().unwrap();
            let dirty = std::mem::take(&mut pages.dirty);
            if std::mem::take(&mut pages.fails) {
                return Err(io::Error::other("the disk failed"));
            }
            pages.disk.resize(pages.memory.len(), 0);
            for (from, to) in dirty {
                pages.disk[from..to].copy_from_slice(&pages.memory[from..to]);
            }
            Ok(())
        }

        fn again(&self) -> io::Result<Box<dyn OpenFile>> {
            Ok(Box::new(self.clone()))
        }
    }

    #[test]
    fn what_a_start_could_not_sync_is_on_disk_when_the_next_one_could() {
        let file = Lossy::default();
        let segment = Segment {
            number: 1,
            file: Box::new(file.clone()),
            nonce: [0; 16],
            length: 6,
            synced: 6,
            fail_next: false,
        };
        file.write_all_at(b"synced", 0).unwrap();
        file.sync().unwrap();
        file.write_all_at(b"ced or not", 3).unwrap(); // and killed
        let segment = Segment {
            length: 13,
            ..segment
        };
        file.0.lock().unwrap().fails = true;
        assert!(segment.settle(3).is_err());
        assert!(segment.settle(3).is_ok());
        assert_eq!(file.0.lock().unwrap().disk, b"synced or not");
    }
}
