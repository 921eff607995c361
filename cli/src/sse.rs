//! Server-sent events: bytes in, events out. No I/O here.
//!
//! As the HTML standard has it, less what Hostler's server never sends (a byte order mark, lone carriage returns).

use std::mem;

/// Longest event kept: a chunk of output (64 KiB) in base 64 and what goes round it, many times.
const EVENT_BYTES_MAX: usize = 4 << 20;

/// One event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Event {
    /// `message` if the server named none.
    pub(crate) name: String,
    /// The last id seen up to here, this event's included.
    pub(crate) id: String,
    /// Its data lines, joined.
    pub(crate) data: String,
}

/// A stream of events on its way.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    line: Vec<u8>,
    name: String,
    id: String,
    data: Option<String>,
}

/// The event was longer than any that our server sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooLong;

impl Decoder {
    /// Takes bytes as they come and gives the events they complete.
    pub(crate) fn push(&mut self, bytes: &[u8], out: &mut Vec<Event>) -> Result<(), TooLong> {
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            self.line.extend_from_slice(&rest[..end]);
            rest = &rest[end + 1..];
            let mut line = mem::take(&mut self.line);
            if line.last() == Some(&b'\r') {
                line.pop();
            }
            out.extend(self.take_line(&String::from_utf8_lossy(&line)));
            self.bound()?;
            line.clear();
            self.line = line;
        }
        self.line.extend_from_slice(rest);
        self.bound()
    }

    fn bound(&self) -> Result<(), TooLong> {
        let held = self.line.len() + self.data.as_ref().map_or(0, String::len);
        if held > EVENT_BYTES_MAX {
            Err(TooLong)
        } else {
            Ok(())
        }
    }

    fn take_line(&mut self, line: &str) -> Option<Event> {
        if line.is_empty() {
            let name = mem::take(&mut self.name);
            return self.data.take().map(|data| Event {
                name: if name.is_empty() {
                    "message".into()
                } else {
                    name
                },
                id: self.id.clone(),
                data,
            });
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => self.name = value.to_owned(),
            "id" => self.id = value.to_owned(),
            "data" => match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => self.data = Some(value.to_owned()),
            },
            _ => {} // a comment, `retry`, or what a later version adds
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &str, id: &str, data: &str) -> Event {
        Event {
            name: name.into(),
            id: id.into(),
            data: data.into(),
        }
    }

    #[test]
    fn events_come_out_whole_however_the_bytes_are_cut() {
        let bytes = b": ping\n\nid: 7\nevent: output\ndata: {\"a\":\ndata: 1}\n\nretry: 5\ndata:x\r\n\r\nevent: end\n\n";
        let expected = [
            event("output", "7", "{\"a\":\n1}"),
            event("message", "7", "x"),
        ];
        for size in 1..bytes.len() {
            let mut decoder = Decoder::default();
            let mut out = Vec::new();
            for piece in bytes.chunks(size) {
                decoder.push(piece, &mut out).unwrap();
            }
            assert_eq!(out, expected, "in pieces of {size}");
        }
    }

    #[test]
    fn an_event_without_end_is_refused() {
        let mut decoder = Decoder::default();
        let mut out = Vec::new();
        let line = [b"data: ".as_slice(), &[b'x'; 65_536], b"\n"].concat();
        assert!((0..100).any(|_| decoder.push(&line, &mut out) == Err(TooLong)));
    }
}
