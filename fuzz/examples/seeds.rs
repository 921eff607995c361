//! Writes the corpora to start from: the golden blocks of `wire/PROTOCOL.md`, a file each, and words a client may say.

use std::collections::BTreeMap;
use std::path::Path;
use std::{fs, io};

const PROTOCOL: &str = include_str!("../../wire/PROTOCOL.md");

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
    for (target, texts) in TEXTS {
        for (n, text) in texts.iter().enumerate() {
            write(target, &format!("{n:02}"), text.as_bytes())?;
        }
    }
    Ok(())
}

const TEXTS: [(&str, &[&str]); 3] = [
    (
        "job_json",
        &[
            r#"0{"command":["true"]}"#,
            r#"0{"command":["sh","-c","exit 3"],"queue":"q","name":"n","priority":-3,"env":{"A":"b"},"cwd":"/tmp","stdin":"x","timeout_ms":1000,"stall_ms":5,"grace_ms":7,"delay_ms":1,"expires_ms":9,"deadline_ms":9}"#,
            r#"0{"handler":"noop","payload":{"a":[1,2.5e3,null,true,"\u00e9"]},"labels":{"k":"v"},"max_losses":2}"#,
            r#"0{"command":["a"],"retry":{"max_attempts":4,"backoff_ms":5000,"factor":2.0,"max_backoff_ms":60000,"on":["signal","exit:3-9"],"never":["timeout"],"later":[75]}}"#,
            r#"0{"command":["a"],"logs":{"mode":"keep","limit_bytes":4096,"overflow":"block"},"on_partition":"stop"}"#,
            r#"0[{"handler":"noop"},{"handler":"noop","priority":1}]"#,
            "1{\"handler\":\"noop\"}\n\n{\"handler\":\"noop\"}\n",
            r#"0{"command":["true"],"command":["false"]}"#,
            r#"0{"at":"2026-01-01T00:00:00Z","command":["true"],"stdin_b64":"aGk=","unique_key":"u","after":[1]}"#,
        ],
    ),
    (
        "params",
        &[
            "\0state=queued,running&queue=q&name=n&label=k%3Dv&worker=w&since=2026-01-01T00:00:00Z&until=1h&q=x&order=asc",
            "\x02eyJ9", "\x04follow=1&attempt=1&timestamps=1", "\x0510", "\x06bytes", "\x07wait=1ms&live=0", "\x081/explain",
            "\x0a force=1&purge=1", "3-9,12,last", "7",
        ],
    ),
    (
        "http",
        &[
            "GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n",
            "GET /jobs?limit=3 HTTP/1.1\r\n\x01\r\nGET /version HTTP/1.1\r\n\x01\r\n",
            "POST /jobs HTTP/1.1\r\n\x01content-type: application/json\r\ncontent-length: 20\r\n\r\n{\"command\":[\"true\"]}",
            "POST /jobs HTTP/1.1\r\n\x01content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n14\r\n{\"command\":[\"true\"]}\r\n0\r\n\r\n",
            "POST /jobs HTTP/1.1\r\n\x01content-type: application/json\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
            "DELETE /jobs/1?force=1 HTTP/1.1\r\n\x01idempotency-key: a\r\nexpect: 100-continue\r\n\r\n",
            "GET /jobs/1/logs HTTP/1.1\r\n\x01range: bytes=0-5\r\naccept: text/event-stream\r\nlast-event-id: 3\r\n\r\n",
            "OPTIONS * HTTP/1.0\r\n\r\n",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ],
    ),
];

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
        .join("seeds")
        .join(target);
    fs::create_dir_all(&corpus)?;
    fs::write(corpus.join(name.replace('/', "-")), bytes)
}
