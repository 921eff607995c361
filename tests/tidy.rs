//! The repository's own rules, as tests: which part may name which, where clocks and SQL live, that documents match
//! code, that files say what they are.
//!
//! Works on the text of the sources: comments and string literals count as little as can be managed without a parser
//! (a line is judged up to its `//`). A rule that a file breaks for a good reason is written down here, with the
//! reason.

#![expect(
    clippy::unwrap_used,
    reason = "a file that cannot be read fails the test"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Longest line of text or code, in characters.
const LINE_CHARS_MAX: usize = 120;

/// Which crates a crate may depend on: style, section 2. Dev-dependencies too, except where noted.
const ARROWS: &[(&str, &[&str])] = &[
    ("wire", &[]),
    ("engine", &["hostler-wire"]),
    ("wire/tls", &[]),
    ("server", &["hostler-wire", "hostler-engine", "hostler-tls"]),
    ("worker", &["hostler-wire", "hostler-tls"]),
    (
        "cli",
        &[
            "hostler-wire",
            "hostler-tls",
            "hostler-server",
            "hostler-worker",
            "hostler-benches",
        ],
    ),
];

/// What each part of the server may name of the others: `server.rs → http → dispatch → {net, store} → output → …`.
const LAYERS: &[(&str, &[&str])] = &[
    ("http", &["server"]),
    ("dispatch", &["server", "http"]),
    ("net", &["server", "http", "dispatch", "store"]),
    ("store", &["server", "http", "dispatch", "net"]),
    ("output", &["server", "http", "dispatch", "net", "store"]),
    (
        "mailbox",
        &["server", "http", "dispatch", "net", "store", "output"],
    ),
    (
        "clock",
        &["server", "http", "dispatch", "net", "store", "output"],
    ),
    (
        "config",
        &["server", "http", "dispatch", "net", "store", "output"],
    ),
    (
        "metrics",
        &["server", "http", "dispatch", "net", "store", "output"],
    ),
    (
        "auth",
        &["server", "http", "dispatch", "net", "store", "output"],
    ),
    (
        "findings",
        &["server", "http", "dispatch", "net", "store", "output"],
    ),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

/// A file of the repository: its path from the root, and its text.
struct Source {
    path: String,
    text: String,
}

impl Source {
    /// Lines of code with their numbers, without what follows `//`.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(n, line)| {
            let code = match line.find("//") {
                // Not the `//` of an address in a string.
                Some(at) if !line[..at].ends_with(':') => &line[..at],
                _ => line,
            };
            (n + 1, code)
        })
    }

    fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap()
    }

    fn is_in(&self, folder: &str) -> bool {
        self.path.starts_with(folder)
    }
}

/// Every file with this ending; there must be some.
fn sources(ending: &str) -> Vec<Source> {
    let found = files(&[ending]);
    assert!(!found.is_empty(), "no {ending} in {}", root().display());
    found
}

/// Every file with one of these endings, build output and hidden folders left out.
fn files(endings: &[&str]) -> Vec<Source> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let generated = ["target", "corpus", "artifacts"].contains(&name.as_str());
            if path.is_symlink() || name.starts_with('.') || generated {
                continue;
            }
            if path.is_dir() {
                walk(&path, found);
            } else {
                found.push(path);
            }
        }
    }
    let root = root();
    let mut paths = Vec::new();
    walk(&root, &mut paths);
    paths.sort();
    paths
        .into_iter()
        .filter(|path| {
            endings
                .iter()
                .any(|ending| path.to_string_lossy().ends_with(ending))
        })
        .map(|path| Source {
            path: path
                .strip_prefix(&root)
                .unwrap()
                .to_string_lossy()
                .into_owned(),
            text: String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned(),
        })
        .collect()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Fails with every breach of a rule, not only the first.
#[track_caller]
fn expect_none(rule: &str, breaches: &[String]) {
    assert!(breaches.is_empty(), "{rule}\n  {}", breaches.join("\n  "));
}

/// Whether `text` has `word` not as part of a longer one.
fn has_word(text: &str, word: &str) -> bool {
    let letter = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| {
        !text[..at].ends_with(letter) && !text[at + word.len()..].starts_with(letter)
    })
}

#[test]
fn crates_depend_only_on_those_below_them() {
    let mut breaches = Vec::new();
    for (name, allowed) in ARROWS {
        for line in read(&format!("{name}/Cargo.toml")).lines() {
            let Some(dependency) = line.split(['.', '=', ' ']).next() else {
                continue;
            };
            let ours = dependency.starts_with("hostler-");
            if ours && !allowed.contains(&dependency) {
                breaches.push(format!("{name}/Cargo.toml: {line}"));
            }
        }
    }
    expect_none(
        "an arrow between crates that style section 2 does not have",
        &breaches,
    );

    // The binary is a leaf: nobody builds on it, not even tests and benches.
    let on_cli: Vec<String> = sources("Cargo.toml")
        .iter()
        .filter(|source| source.path != "Cargo.toml")
        .flat_map(|source| {
            source
                .text
                .lines()
                .filter(|line| line.starts_with("hostler-cli"))
                .map(|line| format!("{}: {line}", source.path))
        })
        .collect();
    expect_none("nothing depends on hostler-cli", &on_cli);
}

#[test]
fn the_engine_sees_ids_and_states_but_no_frames() {
    let manifest = read("engine/Cargo.toml");
    let (normal, _dev) = manifest
        .split_once("[dev-dependencies]")
        .unwrap_or((manifest.as_str(), ""));
    let wire = normal
        .lines()
        .find(|line| line.starts_with("hostler-wire"))
        .unwrap();
    assert!(!wire.contains("default-features = true"), "{wire}");
    assert!(!wire.contains("frames") && !wire.contains("api"), "{wire}");
    let workspace = read("Cargo.toml");
    let wire = workspace
        .lines()
        .find(|line| line.starts_with("hostler-wire"))
        .unwrap();
    assert!(wire.contains("default-features = false"), "{wire}");
    let breaches: Vec<String> = sources(".rs")
        .iter()
        .filter(|source| source.is_in("engine/src/"))
        .flat_map(|source| {
            source
                .code()
                .filter(|(_, code)| {
                    ["hostler_wire::frame", "std::net", "std::fs", "std::io"]
                        .iter()
                        .any(|name| code.contains(name))
                })
                .map(|(line, code)| format!("{}:{line}: {}", source.path, code.trim()))
                .collect::<Vec<_>>()
        })
        .collect();
    expect_none("the engine has no I/O and no frames", &breaches);
}

#[test]
fn parts_of_the_server_never_name_those_above_them() {
    let mut breaches = Vec::new();
    for source in sources(".rs")
        .iter()
        .filter(|source| source.is_in("server/src/"))
    {
        let inner = source.path.strip_prefix("server/src/").unwrap();
        let part = inner.split(['/', '.']).next().unwrap();
        let Some((_, forbidden)) = LAYERS.iter().find(|(name, _)| *name == part) else {
            continue;
        };
        for (line, code) in source.code() {
            let above = forbidden
                .iter()
                .find(|name| has_word(code, &format!("crate::{name}")));
            if let Some(above) = above {
                breaches.push(format!("{}:{line}: {part} names {above}", source.path));
            }
        }
    }
    expect_none(
        "an arrow that points upwards; hand a Sender in at spawn instead",
        &breaches,
    );
}

#[test]
fn sql_http_and_sockets_stay_where_they_belong() {
    let homes: &[(&str, &[&str])] = &[
        (
            "rusqlite",
            &["server/src/store", "server/tests/", "tests/", "benches/"],
        ),
        (
            "hyper",
            &["server/src/http", "server/tests/", "cli/", "benches/"],
        ),
        (
            "tokio",
            &["server/src/http", "server/tests/", "cli/", "benches/"],
        ),
        (
            "mio",
            &["server/src/net", "server/src/output", "worker/", "benches/"],
        ),
        ("clap", &["cli/", "benches/"]),
    ];
    let mut breaches = Vec::new();
    for source in sources(".rs") {
        for (line, code) in source.code() {
            for (name, folders) in homes {
                // A channel by which an answer wakes the HTTP thread is not a runtime.
                let code = code.replace("tokio::sync::", "");
                let used = code.contains(&format!("use {name}::"))
                    || has_word(&code, &format!("{name}::")) && !code.contains('"');
                if used && !folders.iter().any(|folder| source.is_in(folder)) {
                    breaches.push(format!("{}:{line}: {name} is not for here", source.path));
                }
            }
        }
    }
    expect_none("a library outside its home", &breaches);
}

#[test]
fn files_have_names_that_say_something() {
    let nameless = [
        "mod.rs",
        "utils.rs",
        "util.rs",
        "common.rs",
        "types.rs",
        "helpers.rs",
        "misc.rs",
    ];
    let breaches: Vec<String> = sources(".rs")
        .into_iter()
        .filter(|source| nameless.contains(&source.name()))
        .map(|source| source.path)
        .collect();
    expect_none("a thing without a home lacks a name", &breaches);
}

#[test]
fn every_file_begins_by_saying_what_it_is() {
    let breaches: Vec<String> = sources(".rs")
        .into_iter()
        // A build script's or a fuzz target's attributes may come first.
        .filter(|source| {
            let first = source
                .text
                .lines()
                .find(|line| !line.is_empty() && !line.starts_with("#!["));
            !first.is_some_and(|line| line.starts_with("//! ") && line.len() > 10)
        })
        .map(|source| source.path)
        .collect();
    expect_none(
        "a file without its `//!`: what it is, how, which promises, what is not here",
        &breaches,
    );
}

#[test]
fn nothing_unfinished_is_left() {
    let unfinished = ["todo!(", "unimplemented!(", "dbg!(", "thread::sleep("];
    let mut breaches = Vec::new();
    for source in sources(".rs")
        .iter()
        .filter(|source| source.path != "tests/tidy.rs")
    {
        for (line, code) in source.code() {
            if let Some(word) = unfinished.iter().find(|word| code.contains(**word)) {
                breaches.push(format!("{}:{line}: {word}", source.path));
            }
        }
    }
    expect_none("left over", &breaches);
}

#[test]
fn clocks_are_read_in_clock_rs_alone() {
    let mut breaches = Vec::new();
    for source in sources(".rs") {
        // Benches measure; what they measure with is their own business.
        let exempt = source.name() == "clock.rs"
            || source.path == "tests/tidy.rs"
            || source.is_in("benches/");
        for (line, code) in source.code().filter(|_| !exempt) {
            let read = ["Instant::now", "SystemTime::now", "Timestamp::now"];
            if read.iter().any(|name| code.contains(name)) {
                breaches.push(format!("{}:{line}: {}", source.path, code.trim()));
            }
        }
    }
    expect_none("time is an argument outside clock.rs", &breaches);
}

#[test]
fn a_lint_is_expected_with_a_reason_or_obeyed() {
    let mut breaches = Vec::new();
    for source in sources(".rs")
        .iter()
        .filter(|source| source.path != "tests/tidy.rs")
    {
        for (line, code) in source.code() {
            if code.contains("#[allow(") || code.contains("#![allow(") {
                breaches.push(format!("{}:{line}: {}", source.path, code.trim()));
            }
        }
    }
    expect_none("use #[expect(…, reason = \"…\")]", &breaches);
    for crate_ in [
        "wire", "engine", "server", "worker", "cli", "tests", "benches",
    ] {
        let manifest = read(&format!("{crate_}/Cargo.toml"));
        assert!(
            manifest.contains("[lints]\nworkspace = true"),
            "{crate_} has lints of its own"
        );
    }
}

#[test]
fn no_line_is_too_long_to_read() {
    let mut breaches = Vec::new();
    for source in files(&[".rs", ".toml", ".sql"]) {
        for (n, line) in source.text.lines().enumerate() {
            // What is read is the text: neither its indentation nor its comment mark counts.
            let start = line.trim_start();
            let marks = ["//! ", "/// ", "// ", "# ", "-- "];
            let text = marks
                .iter()
                .find_map(|mark| start.strip_prefix(mark))
                .unwrap_or(start);
            let length = text.chars().count();
            // A string that cannot be broken stands on a line of its own.
            let one_string = ["\"", "r#\"", "b\"", "format!(\""]
                .iter()
                .any(|it| start.starts_with(it));
            if length > LINE_CHARS_MAX && !one_string && !line.contains(" = \"") {
                breaches.push(format!("{}:{}: {length} characters", source.path, n + 1));
            }
        }
    }
    expect_none("lines have 120 characters at most", &breaches);
}

#[test]
fn who_knows_the_protocols_page_alone_can_speak_it() {
    let page = root().join("wire/PROTOCOL.md");
    let reader = root().join("tests/protocol.py");
    let output = match Command::new("python3").args([reader, page]).output() {
        Ok(output) => output,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return eprintln!("SKIPPED: python3 is missing, the second reader was not run");
        }
        Err(error) => panic!("python3: {error}"),
    };
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.ends_with("blocks read\n"), "{said}");
}

#[test]
fn every_frame_is_in_the_protocol() {
    let text = read("wire/src/frame.rs");
    let body = text
        .split_once("pub enum Frame {")
        .unwrap()
        .1
        .split_once("\n}")
        .unwrap()
        .0;
    let protocol = read("wire/PROTOCOL.md");
    let mut count = 0;
    let mut breaches = Vec::new();
    for variant in body.lines().filter_map(|line| line.trim().split_once('(')) {
        let name = variant.0;
        if !name.starts_with(char::is_uppercase) {
            continue;
        }
        count += 1;
        let snake = snake_case(name);
        let golden = protocol.lines().any(|line| {
            let block = line.strip_prefix("```hex ").unwrap_or_default();
            block == snake
                || block
                    .strip_prefix(&snake)
                    .is_some_and(|rest| rest.starts_with('/'))
        });
        if !protocol.contains(&format!("`{snake}`")) || !golden {
            breaches.push(format!("{name} ({snake}): no section or no golden frame"));
        }
    }
    assert!(
        count >= 21,
        "only {count} frames found: does the test still read the enum?"
    );
    expect_none("PROTOCOL.md is the specification", &breaches);
}

#[test]
fn every_limit_is_documented() {
    let documented = read("docs/limits.md");
    let config = read("server/src/config.rs");
    let limits = config
        .split_once("pub struct Limits {")
        .unwrap()
        .1
        .split_once("\n}")
        .unwrap()
        .0;
    let of_server = limits.lines().filter_map(|line| {
        let field = line.trim().strip_prefix("pub ")?;
        Some(field.split_once(':')?.0.to_owned())
    });
    let wire = read("wire/src/limits.rs");
    let of_wire = wire.lines().filter_map(|line| {
        let name = line.strip_prefix("pub const ")?;
        Some(name.split_once(':')?.0.to_owned())
    });
    let names: BTreeSet<String> = of_server.chain(of_wire).collect();
    assert!(names.len() >= 30, "only {} limits found", names.len());
    let missing: Vec<String> = names
        .into_iter()
        .filter(|name| !has_word(&documented, name))
        .collect();
    expect_none("limits that docs/limits.md does not name", &missing);
}

#[test]
fn secrets_are_compared_in_constant_time() {
    let mut breaches = Vec::new();
    for path in ["server/src/auth/bearer.rs", "wire/src/handshake.rs"] {
        let text = read(path);
        let text = text.split("mod tests {").next().unwrap_or_default();
        assert!(text.contains(".ct_eq("), "{path} compares no secret");
        let secret = |line: &&str| {
            let compares = line.contains(" == ") || line.contains(" != ");
            let words = ["proof", "digest", "secret", "_key", "pad"];
            compares && words.iter().any(|word| line.contains(word))
        };
        breaches.extend(
            text.lines()
                .filter(secret)
                .map(|line| format!("{path}: {line}")),
        );
    }
    expect_none("a comparison that ends at the first difference", &breaches);
}

#[test]
fn states_and_reasons_are_named_for_http_users() {
    let text = read("wire/src/state.rs");
    let names: Vec<&str> = text
        .lines()
        .filter_map(|line| {
            line.trim()
                .strip_suffix("\";")?
                .rsplit_once(", \"")
                .map(|it| it.1)
        })
        .collect();
    assert!(names.len() >= 28, "only {} names found", names.len());
    let mut seen = BTreeMap::new();
    for name in &names {
        *seen.entry(*name).or_insert(0) += 1;
        let snake = name.chars().all(|c| c.is_ascii_lowercase() || c == '_');
        assert!(snake, "{name} is not snake_case");
    }
    let twice: Vec<String> = seen
        .into_iter()
        .filter(|(_, n)| *n > 1)
        .map(|(name, _)| name.to_owned())
        .collect();
    expect_none("names used for two things", &twice);
}

/// What a document names as a test: a sentence of five words and more, or its beginning and an ellipsis.
fn named_tests(text: &str) -> Vec<(&str, bool)> {
    let quoted = text.split('`').skip(1).step_by(2);
    let words = quoted.flat_map(|quoted| quoted.split_whitespace());
    let named = words.filter_map(|word| {
        let name = word.rsplit("::").next()?.trim_matches(['\'', '"', ',']);
        let (name, is_whole) = match name.strip_suffix('…') {
            Some(beginning) => (beginning, false),
            None => (name, true),
        };
        let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let words = name.matches('_').count() + usize::from(is_whole);
        let is_test = name.chars().all(letter) && words >= if is_whole { 5 } else { 1 };
        // Settings and metrics of as many words.
        (is_test && !name.starts_with("hostler_")).then_some((name, is_whole))
    });
    named.collect()
}

#[test]
fn tests_that_documents_name_are_there() {
    let mut known = BTreeSet::new();
    for source in sources(".rs") {
        for (_, code) in source.code() {
            let name = code.trim_start().strip_prefix("fn ");
            let name = name.and_then(|rest| rest.split(['(', '<']).next());
            known.extend(name.map(str::to_owned));
        }
    }
    let mut breaches = Vec::new();
    for document in ["docs/security.md", "docs/reliability.md"] {
        let text = read(document);
        let named = named_tests(&text);
        assert!(named.len() > 50, "{document}: {named:?}");
        for (name, is_whole) in named {
            let there = if is_whole {
                known.contains(name)
            } else {
                known.iter().any(|known| known.starts_with(name))
            };
            if !there {
                breaches.push(format!("{document}: {name}"));
            }
        }
    }
    expect_none("a document names a test that is not there", &breaches);
}

#[test]
fn sources_say_nothing_of_the_machine_they_were_written_on() {
    // Put together, so that this file does not contain them.
    let places = [
        ["/wo", "rk/"].concat(),
        ["/ho", "me/"].concat(),
        ["/ro", "ot/"].concat(),
    ];
    let mut breaches = Vec::new();
    for source in files(&[".rs", ".md", ".toml", ".sql", ".yml", "/check"]) {
        for (n, line) in source.text.lines().enumerate() {
            if places.iter().any(|place| line.contains(place.as_str())) {
                breaches.push(format!("{}:{}: {}", source.path, n + 1, line.trim()));
            }
        }
    }
    expect_none("paths of one machine", &breaches);
}

#[test]
fn both_licences_and_the_first_documents_are_there() {
    for path in [
        "LICENSE-MIT",
        "LICENSE-APACHE",
        "Cargo.lock",
        "rust-toolchain.toml",
        "deny.toml",
    ] {
        assert!(root().join(path).is_file(), "{path} is missing");
    }
    for path in [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
    ] {
        assert!(read(path).len() > 200, "{path} says too little");
    }
}

fn snake_case(name: &str) -> String {
    let mut snake = String::new();
    for (n, c) in name.char_indices() {
        if n > 0 && c.is_uppercase() {
            snake.push('_');
        }
        snake.extend(c.to_lowercase());
    }
    snake
}

#[test]
fn the_rules_can_see_a_breach() {
    let named =
        named_tests("| x | `role_missing` | E `e2e a::one_two_three_four_five`, `a_begin_…` |");
    assert_eq!(
        named,
        [("one_two_three_four_five", true), ("a_begin_", false)]
    );
    assert!(has_word("use crate::http::route;", "crate::http"));
    assert!(!has_word("use crate::https;", "crate::http"));
    let source = Source {
        path: "a/b.rs".to_owned(),
        text: "let a = 1; // todo!()\nlet u = \"http://x\"; dbg!(u)\n".to_owned(),
    };
    let code: Vec<(usize, &str)> = source.code().collect();
    assert_eq!(code[0], (1, "let a = 1; "));
    assert!(code[1].1.contains("dbg!("));
    assert_eq!(snake_case("NotLeader"), "not_leader");
}
