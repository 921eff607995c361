//! Writes the corpora to start from: the golden blocks of `wire/PROTOCOL.md`, a file each.

use std::collections::BTreeMap;
use std::path::Path;
use std::{fs, io};

const PROTOCOL: &str = include_str!("../../../wire/PROTOCOL.md");

fn main() -> io::Result<()> {
    let golden = golden();
    let mut stream = Vec::new();
    for (name, bytes) in &golden {
        if name.starts_with("key/") {
            continue;
        }
        write("frame", name, bytes)?;
        if !name.starts_with("bad/") && !name.starts_with("work/") {
            stream.extend(bytes);
        }
    }
    write("frame", "all", &stream)?;

    for suffix in ["", "/output"] {
        let [hello, challenge, login] =
            ["hello", "challenge", "login"].map(|name| &golden[format!("{name}{suffix}").as_str()]);
        write(
            "handshake",
            &format!("client{suffix}"),
            &[&hello[..], login].concat(),
        )?;
        write("handshake", &format!("server{suffix}"), challenge)?;
    }
    Ok(())
}

fn golden() -> BTreeMap<&'static str, Vec<u8>> {
    let mut blocks = BTreeMap::new();
    let mut lines = PROTOCOL.lines();
    while let Some(line) = lines.next() {
        let Some(info) = line.strip_prefix("```") else {
            continue;
        };
        let text: Vec<_> = lines.by_ref().take_while(|line| *line != "```").collect();
        if let Some(name) = info.strip_prefix("hex ") {
            blocks.insert(name, unhex(&text));
        }
    }
    blocks
}

fn unhex(lines: &[&str]) -> Vec<u8> {
    let digits: Vec<_> = lines
        .iter()
        .flat_map(|line| line.split('#').next().unwrap_or_default().chars())
        .filter_map(|c| c.to_digit(16))
        .collect();
    digits
        .chunks_exact(2)
        .map(|pair| (pair[0] * 16 + pair[1]) as u8)
        .collect()
}

fn write(target: &str, name: &str, bytes: &[u8]) -> io::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target);
    fs::create_dir_all(&corpus)?;
    fs::write(corpus.join(name.replace('/', "-")), bytes)
}
