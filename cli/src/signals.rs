//! Signals that ask us to stop, as values: a thread turns them into a count and a call.
//!
//! What stopping means is each command's own: detach, drain, cancel.

use std::io;
use std::sync::Arc;
use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;
use tokio::sync::mpsc;

/// Stop requests, in order.
#[derive(Debug)]
pub(crate) struct Stops(mpsc::Receiver<u8>);

impl Stops {
    /// From now on TERM and INT no longer end the process but arrive here.
    pub(crate) fn listen() -> io::Result<Self> {
        // More than a few pending requests say nothing that the first two did not.
        let (sender, receiver) = mpsc::channel(4);
        each(move |signal, _| {
            // Full: enough has been asked for. Closed: nobody waits any more.
            let (Ok(()) | Err(_)) = sender.try_send(signal);
        })?;
        Ok(Self(receiver))
    }

    /// The next one. Never returns without one.
    pub(crate) async fn next(&mut self) -> u8 {
        match self.0.recv().await {
            Some(signal) => signal,
            None => std::future::pending().await,
        }
    }
}

/// Calls `act` on a thread of its own with each HUP: what a server reads from files is to be read again.
pub(crate) fn each_hup(mut act: impl FnMut() + Send + 'static) -> io::Result<()> {
    let mut signals = Signals::new([SIGHUP])?;
    thread::Builder::new()
        .name("reload".into())
        .spawn(move || {
            for _ in signals.forever() {
                act();
            }
        })?;
    Ok(())
}

/// Calls `act` on a thread of its own with each TERM or INT and how many came before it.
pub(crate) fn each(mut act: impl FnMut(u8, u32) + Send + 'static) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for (before, signal) in (0u32..).zip(signals.forever()) {
                act(u8::try_from(signal).unwrap_or(u8::MAX), before);
            }
        })?;
    Ok(())
}

/// A file larger than the user's limit (`ulimit -f`) becomes an error of the write, which is handled, and no longer ends
/// the process where it stands.
pub(crate) fn survive_file_limits() -> io::Result<()> {
    signal_hook::flag::register(SIGXFSZ, Arc::default()).map(drop)
}

/// What a shell calls a signal.
pub(crate) fn name(signal: u8) -> String {
    let name = match i32::from(signal) {
        SIGHUP => "HUP",
        SIGINT => "INT",
        SIGTERM => "TERM",
        3 => "QUIT",
        4 => "ILL",
        6 => "ABRT",
        8 => "FPE",
        9 => "KILL",
        11 => "SEGV",
        13 => "PIPE",
        14 => "ALRM",
        10 => "USR1",
        12 => "USR2",
        _ => return signal.to_string(),
    };
    format!("SIG{name}")
}
