//! What an encoded frame claims, read without decoding it: a check for each frame that leaves must cost next to
//! nothing.

use hostler_wire::{Attempt, Epoch, Fence, JobId};

/// A claim.
pub(crate) enum Said {
    Assigns(Fence),
    /// Reports up to this number are done with.
    Acks(u64),
}

const HEADER_BYTES: usize = 12;
const RESUMED: u8 = 0x07;
const ASSIGN: u8 = 0x10;
const ACK: u8 = 0x23;

/// Each claim in these whole frames.
pub(crate) fn each(mut bytes: &[u8], look: &mut dyn FnMut(Said)) {
    while bytes.len() >= HEADER_BYTES {
        // The length counts the rest of the header too.
        let length = number(&bytes[..4]) + 4;
        let (kind, body) = (bytes[4], &bytes[HEADER_BYTES..size(length)]);
        match kind {
            ASSIGN => assignments(body, look),
            ACK | RESUMED => look(Said::Acks(number(&body[..8]))),
            _ => {}
        }
        bytes = &bytes[size(length)..];
    }
}

fn assignments(body: &[u8], look: &mut dyn FnMut(Said)) {
    let mut rest = &body[12..];
    while !rest.is_empty() {
        let (job, epoch, attempt) = (&rest[..8], &rest[8..12], &rest[12..14]);
        look(Said::Assigns(Fence {
            job: JobId::new(number(job)).expect("the encoder wrote it"),
            epoch: Epoch::new(u32::try_from(number(epoch)).expect("four bytes")),
            attempt: Attempt::new(u16::try_from(number(attempt)).expect("two bytes"))
                .expect("the encoder wrote it"),
        }));
        rest = &rest[18 + size(number(&rest[14..18]))..];
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))
}

fn size(n: u64) -> usize {
    usize::try_from(n).expect("a length in memory")
}
