//! What durability costs at least: appends to a file, each followed by its sync, one after another.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use anyhow::Result;
use hdrhistogram::Histogram;

use crate::clock::Moment;

/// Bytes of one append: about what a commit of one small job writes.
const APPEND_BYTES: usize = 512;

/// Times `count` rounds of three appends each, in microseconds a round.
pub fn three_synced_appends(dir: &Path, count: u32) -> Result<Histogram<u64>> {
    let path = dir.join("appends");
    let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
    let bytes = [b'x'; APPEND_BYTES];
    let mut times = Histogram::new(3)?;
    for _ in 0..count {
        let begun = Moment::now();
        for _ in 0..3 {
            file.write_all(&bytes)?;
            file.sync_data()?;
        }
        times.record(u64::try_from(begun.elapsed().as_micros())?)?;
    }
    std::fs::remove_file(path)?;
    Ok(times)
}
