//! Any bytes to the real HTTP service, hyper and all, with a stand-in for the threads behind it: no panic (which ends the
//! process here), no 5xx, and whoever comes next is served.
//!
//! A byte 1 in the input stands for the headers a request needs to get past the guard.

#![no_main]

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::LazyLock;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;

#[path = "../../server/tests/http/world.rs"]
#[expect(dead_code, reason = "shared with the server's own tests, which use more of it")]
mod world;

use world::World;

static WORLD: LazyLock<World> = LazyLock::new(|| {
    World::with(|config| config.limits.wait_max = Duration::from_millis(5))
});

fuzz_target!(|data: &[u8]| {
    let world = &*WORLD;
    let headers = format!("host: localhost\r\nauthorization: Bearer {}\r\n", world.token);
    let mut bytes = Vec::new();
    for byte in data {
        match byte {
            1 => bytes.extend(headers.as_bytes()),
            _ => bytes.push(*byte),
        }
    }
    let mut stream = TcpStream::connect(world.address).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket has one");
    // It may have closed in the middle of what it refuses.
    stream.write_all(&bytes).ok();
    stream.shutdown(Shutdown::Write).ok();
    let mut answers = Vec::new();
    let end = stream.read_to_end(&mut answers).map_err(|error| error.kind());
    assert_ne!(end, Err(std::io::ErrorKind::WouldBlock), "it neither answers nor closes");
    for at in answers.windows(9).enumerate().filter(|(_, it)| *it == b"HTTP/1.1 ").map(|(at, _)| at) {
        let status = answers.get(at + 9..at + 12).unwrap_or_default();
        // The stand-in has records of jobs that its dispatch never heard of: to cancel one is to come too early.
        let early = status == b"503" && answers.windows(11).any(|it| it == b"\"no_answer\"");
        assert!(status.first() != Some(&b'5') || early, "{}", String::from_utf8_lossy(&answers));
    }
    let mut fake = world.fake();
    if fake.records.len() > 100 {
        fake.records.clear();
        fake.keys.clear();
    }
});
