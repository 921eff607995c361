//! Pages: from a place in an attempt's output to pieces of bounded size.
//!
//! Not here: what is kept (`log`), waiting (`thread`).

use std::io;

use bytes::Bytes;
use hostler_wire::frame::Stream;

use super::files::OpenFile;
use super::log::{Extent, Log, index_of};
use super::record::{Head, Key, Kind, Place};
use super::segment::path_of;
use super::{PAGE_BYTES_MAX, Page, Piece, Read, ReadError};

/// Most bytes of segments walked for one page: an attempt whose pieces lie far apart gets smaller pages.
const WALK_BYTES_MAX: u64 = 8 << 20;

/// Reads a page. `open` gives a segment's file.
pub(super) fn read(
    key: Key,
    log: &Log,
    read: &Read,
    open: impl Fn(u32) -> io::Result<Box<dyn OpenFile>>,
) -> Result<Page, ReadError> {
    let (stored, cut) = match read.stream {
        Some(stream) => (log.next[index_of(stream)], log.cut(stream)),
        None => (log.merged, log.cut_bytes()),
    };
    let mut reader = Reader {
        key,
        stream: read.stream,
        left: read.max.min(PAGE_BYTES_MAX) as u64,
        page: Page {
            attempt: key.attempt,
            next: read.from,
            stored,
            ended: log.end.map(|(_, end)| end),
            cut,
            ..Page::default()
        },
    };
    let mut walked = 0;
    let mut file: Option<(u32, Box<dyn OpenFile>)> = None;
    for extent in &log.extents {
        if end_of(extent, read.stream).is_none_or(|end| end <= reader.page.next) {
            continue;
        }
        if reader.left == 0 || (walked > WALK_BYTES_MAX && !reader.page.pieces.is_empty()) {
            break;
        }
        let result = if extent.after_damage && reader.crosses(extent) {
            Err(ReadError::Corrupt(format!(
                "output of {}.{} before byte {} is damaged on disk",
                key.job, key.attempt, extent.merged
            )))
        } else {
            walked += u64::from(extent.end - extent.begin);
            let number = extent.segment;
            match file
                .take()
                .filter(|(open, _)| *open == number)
                .map_or_else(|| open(number), |(_, f)| Ok(f))
            {
                Ok(opened) => {
                    let result = reader.walk(extent, &*opened);
                    file = Some((number, opened));
                    result
                }
                Err(error) => Err(error.into()),
            }
        };
        if let Err(error) = result {
            // What came before is right; the next page says what is not.
            return if reader.page.pieces.is_empty() {
                Err(error)
            } else {
                Ok(reader.page)
            };
        }
    }
    Ok(reader.page)
}

/// Where the selection goes on after an extent, if it has any of it.
fn end_of(extent: &Extent, stream: Option<Stream>) -> Option<u64> {
    match stream.map(index_of) {
        None => Some(extent.merged + extent.data_bytes()),
        Some(s) => (extent.stream_bytes(s) > 0).then_some(extent.to[s]),
    }
}

struct Reader {
    key: Key,
    stream: Option<Stream>,
    left: u64,
    page: Page,
}

impl Reader {
    /// Whether the place to read from lies before the extent, so that what is missing there would be passed over.
    fn crosses(&self, extent: &Extent) -> bool {
        match self.stream.map(index_of) {
            None => self.page.next < extent.merged,
            Some(s) => self.page.next < extent.from[s],
        }
    }

    /// Takes what is wanted of an extent.
    fn walk(&mut self, extent: &Extent, file: &dyn OpenFile) -> Result<(), ReadError> {
        let mut bytes = vec![0; (extent.end - extent.begin) as usize];
        file.read_exact_at(&mut bytes, u64::from(extent.begin))?;
        let bytes = Bytes::from(bytes);
        let mut at = 0;
        while at < bytes.len() && self.left > 0 {
            let place = Place {
                segment: extent.segment,
                at: extent.begin + u32::try_from(at).expect("within the extent"),
            };
            let head = Head::read(place, &bytes[at..]).ok_or_else(|| damaged(place))?;
            let record = at..at + head.bytes() as usize;
            at = record.end;
            if head.key == self.key
                && let Kind::Chunk(stream) = head.kind
            {
                self.take(place, &head, stream, &bytes.slice(record.start..))?;
            }
        }
        Ok(())
    }

    fn take(
        &mut self,
        place: Place,
        head: &Head,
        stream: Stream,
        record: &Bytes,
    ) -> Result<(), ReadError> {
        if self.stream.is_some_and(|wanted| wanted != stream) {
            return Ok(());
        }
        let begin = if self.stream.is_some() {
            head.offset
        } else {
            head.merged
        };
        let end = begin + u64::from(head.data_bytes);
        if end <= self.page.next {
            return Ok(());
        }
        let data = head.data(record).ok_or_else(|| damaged(place))?;
        let skip = self.page.next.saturating_sub(begin);
        let take = (u64::from(head.data_bytes) - skip).min(self.left);
        let range = usize::try_from(skip).expect("within a record")
            ..usize::try_from(skip + take).expect("within a record");
        self.page.pieces.push(Piece {
            stream,
            offset: head.offset + skip,
            at: begin + skip,
            at_ms: head.at_ms,
            data: Bytes::copy_from_slice(&data[range]),
        });
        self.page.next = begin + skip + take;
        self.left -= take;
        Ok(())
    }
}

fn damaged(place: Place) -> ReadError {
    let file = path_of(std::path::Path::new("output"), place.segment);
    ReadError::Corrupt(format!(
        "{} at byte {}: a checksum does not fit",
        file.display(),
        place.at
    ))
}
