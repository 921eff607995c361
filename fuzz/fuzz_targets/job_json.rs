//! Any bytes as the body of a submission: taken in only if it is JSON for everybody else too, refused with a problem that
//! has a code otherwise.

#![no_main]

use std::cell::RefCell;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use serde_json::Value;

#[path = "../../server/tests/http/world.rs"]
#[expect(dead_code, reason = "shared with the server's own tests, which use more of it")]
mod world;

use world::{Client, World};

static WORLD: LazyLock<World> = LazyLock::new(World::new);

thread_local! {
    static CLIENT: RefCell<Option<Client>> = const { RefCell::new(None) };
}

fuzz_target!(|data: &[u8]| {
    let Some((first, body)) = data.split_first() else {
        return;
    };
    let lines = first % 2 == 1;
    let kind = if lines { "application/x-ndjson" } else { "application/json" };
    let world = &*WORLD;
    let mut client = CLIENT.take().unwrap_or_else(|| world.connect());
    let answer = client.ask("POST", "/jobs", &[("content-type", kind)], body);
    if answer.status == 201 {
        let documents: Vec<&[u8]> = if lines { body.split(|byte| *byte == b'\n').collect() } else { vec![body] };
        for document in documents {
            let blank = document.iter().all(u8::is_ascii_whitespace);
            assert!(
                lines && blank || serde_json::from_slice::<Value>(document).is_ok(),
                "taken in, though it is no JSON: {document:?}"
            );
        }
    } else {
        assert!((400..500).contains(&answer.status), "{answer:?}");
        assert_eq!(answer.header("content-type"), Some("application/problem+json"));
        assert!(!answer.code().is_empty(), "{answer:?}");
    }
    if answer.header("connection") != Some("close") {
        CLIENT.set(Some(client));
    }
    let mut fake = world.fake();
    if fake.records.len() > 100 {
        fake.records.clear();
    }
});
