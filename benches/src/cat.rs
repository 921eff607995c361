//! What moving output costs at least: `head` writes into `cat`, which writes into a socket, which is read to its end.

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::clock::Moment;

/// Moves so many bytes, and tells how long that took.
pub fn through_a_socket(bytes: u64) -> Result<Duration> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let theirs = TcpStream::connect(listener.local_addr()?)?;
    let (mut ours, _) = listener.accept()?;
    let begun = Moment::now();
    let mut head = Command::new("head")
        .args(["-c", &bytes.to_string(), "/dev/zero"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start head")?;
    let pipe = head.stdout.take().context("a child without a pipe")?;
    let cat = Command::new("cat")
        .stdin(pipe)
        .stdout(OwnedFd::from(theirs))
        .spawn();
    let mut cat = match cat {
        Ok(cat) => cat,
        Err(error) => {
            drop(head.wait());
            return Err(error).context("cannot start cat");
        }
    };
    let read = count(&mut ours);
    let elapsed = begun.elapsed();
    let (head, cat) = (head.wait()?, cat.wait()?);
    let read = read?;
    ensure!(
        read == bytes && head.success() && cat.success(),
        "{read} bytes of {bytes} came, head ended with {head}, cat with {cat}"
    );
    Ok(elapsed)
}

/// Reads to the end.
fn count(from: &mut impl Read) -> Result<u64> {
    let mut buffer = vec![0; 256 << 10];
    let mut bytes = 0;
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(bytes),
            count => bytes += count as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_comes_through() {
        through_a_socket(3_000_000).unwrap();
    }
}
