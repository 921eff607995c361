//! Any text as an id, as parameters of each endpoint that has some, and as the command line's selector of jobs.

#![no_main]

use std::sync::LazyLock;
use std::time::Duration;

use hostler_wire::{JobId, JobState, Reason};
use libfuzzer_sys::fuzz_target;

#[path = "../../server/tests/http/world.rs"]
#[expect(dead_code, reason = "shared with the server's own tests, which use more of it")]
mod world;

#[path = "../../cli/src/select.rs"]
#[expect(dead_code, reason = "the command line uses more of it")]
mod select;

use select::Selector;
use world::World;

/// One job that has ended and printed something, so that nothing waits for long.
static WORLD: LazyLock<World> = LazyLock::new(|| {
    let world = World::with(|config| config.limits.wait_max = Duration::from_millis(5));
    assert_eq!(world.post(r#"{"command":["true"]}"#).status, 201);
    let mut fake = world.fake();
    fake.end(1, JobState::Succeeded, Reason::None);
    fake.print(1, 1, hostler_wire::frame::Stream::Stdout, 5, b"hello\n");
    fake.end_output(1, 1);
    drop(fake);
    world
});

const FORMS: [(&str, &str, &str); 12] = [
    ("GET", "/jobs?", ""),
    ("GET", "/jobs?limit=3&", ""),
    ("GET", "/jobs?cursor=", ""),
    ("GET", "/jobs?state=", "&live=1"),
    ("GET", "/jobs/1/logs?", ""),
    ("GET", "/jobs/1/logs?tail=", ""),
    ("GET", "/jobs/1/logs?since=", "&stream=all"),
    ("GET", "/jobs/1?", ""),
    ("GET", "/jobs/", ""),
    ("DELETE", "/jobs/", "?reason=x"),
    ("DELETE", "/jobs/1?", ""),
    ("POST", "/jobs/", "/retry"),
];

fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data) {
        selector(text);
    }
    let Some((form, rest)) = data.split_first() else {
        return;
    };
    let (method, before, after) = FORMS[usize::from(*form) % FORMS.len()];
    let mut target = before.to_owned();
    for byte in rest.iter().take(2_000) {
        match byte {
            b'!'..=b'~' if *byte != b'#' => target.push(char::from(*byte)),
            _ => target.push_str(&format!("%{byte:02x}")),
        }
    }
    target.push_str(after);
    let answer = WORLD.ask(method, &target);
    // The stand-in has records of jobs that its dispatch never heard of: to cancel one is to come too early.
    let early = answer.status == 503 && answer.code() == "no_answer";
    assert!((200..500).contains(&answer.status) || early, "{method} {target}: {answer:?}");
    if answer.status >= 400 {
        assert!(!answer.code().is_empty(), "{method} {target}: {answer:?}");
    }
});

/// What parses prints as text that means the same.
fn selector(text: &str) {
    let Ok(selector) = text.parse::<Selector>() else {
        return;
    };
    assert_eq!(selector.to_string().parse(), Ok(selector.clone()));
    if let Ok(selected) = select::resolve(&[selector], JobId::new(7)) {
        assert!(selected.ids.len() <= 100_000);
        assert!(selected.ids.is_sorted_by(|a, b| a < b));
    }
}
