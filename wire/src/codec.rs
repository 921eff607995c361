//! Integers, bounded byte strings and lists; the only file that counts offsets.

use std::fmt;

/// Bytes that are not what the protocol says. Names what was read and which limit or rule it broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeError {
    /// The frame or field being read.
    pub what: &'static str,
    /// The rule it broke.
    pub why: &'static str,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.why)
    }
}

impl std::error::Error for DecodeError {}
