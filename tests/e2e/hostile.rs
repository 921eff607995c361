//! Crowds and attacks on both ports of a real server: slow heads and bodies, thousands of connections that say nothing,
//! requests hidden in others; what runs goes on, others are served as before, and what it costs is measured and printed.
//!
//! Crowds come from several addresses of the loopback net, since each address has a limit of its own.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::time::{Duration, Instant};

use hostler_tests::{Client, Cluster, PATIENCE, elapsed, eventually, full, now, size};
use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
use rustix::process::{Pid, Resource, getrlimit, setrlimit};
use serde_json::{Value, json};

/// From each address: well below the limit.
const FROM_EACH: usize = 1_000;

/// So many connections to one port, each of which has sent this, and since when it is silent.
fn crowd(count: usize, to: SocketAddr, first: &[u8]) -> Vec<(TcpStream, Instant)> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    (0..count)
        .map(|n| {
            let mut stream = connect_from(n / FROM_EACH, to);
            stream.write_all(first).unwrap();
            (stream, now())
        })
        .collect()
}

fn connect_from(address: usize, to: SocketAddr) -> TcpStream {
    let stream = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    let from = Ipv4Addr::new(127, 0, 1, 1 + u8::try_from(address).unwrap());
    bind(&stream, &SocketAddrV4::new(from, 0)).unwrap();
    connect(&stream, &to).unwrap();
    let stream = TcpStream::from(stream);
    stream.set_read_timeout(Some(4 * PATIENCE)).unwrap();
    stream
}

/// Median and 99th percentile of a client that submits jobs one after another, each on a connection that is kept.
fn control(client: &mut Client) -> [Duration; 2] {
    let mut took: Vec<Duration> = (0..size(200, 2_000))
        .map(|_| {
            let start = now();
            client
                .post("/jobs", &json!({"handler": "noop"}))
                .expect(201);
            elapsed(start)
        })
        .collect();
    took.sort();
    [took[took.len() / 2], took[took.len() * 99 / 100]]
}

/// Resident memory, as the kernel counts it.
fn rss_bytes(pid: Pid) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib << 10
}

/// What one connection of a crowd takes of the server's memory.
fn each(before: u64, after: u64, count: usize) -> u64 {
    after.saturating_sub(before) / count as u64
}

/// Reads until the server closes them all; how long the one was silent that stayed longest.
fn are_closed(crowd: Vec<(TcpStream, Instant)>) -> Duration {
    let mut longest = Duration::ZERO;
    for (mut stream, since) in crowd {
        let mut rest = Vec::new();
        let end = stream.read_to_end(&mut rest).map_err(|error| error.kind());
        let open = [std::io::ErrorKind::WouldBlock, std::io::ErrorKind::TimedOut];
        assert!(
            !end.is_err_and(|end| open.contains(&end)),
            "it is still open"
        );
        longest = longest.max(elapsed(since));
    }
    longest
}

#[test]
fn slow_and_idle_http_clients_by_the_thousand_leave_others_unharmed() {
    let count = size(600, 10_000);
    let mut cluster = Cluster::start();
    let mut client = cluster.client();
    let addr = cluster.http_addr();
    control(&mut client);
    let alone = control(&mut client);
    let pid = cluster.server().pid();
    let token = std::fs::read_to_string(cluster.data().join("admin.token")).unwrap();
    let head = format!(
        "POST /jobs HTTP/1.1\r\nHost: {addr}\r\nAuthorization: Bearer {}\r\n",
        token.trim()
    );
    let slow_body =
        format!("{head}Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{{");
    for (what, first, at_most) in [
        ("that say nothing", "", 60),
        ("with half a head", &head[..head.len() / 2], 10),
        ("with the first byte of a body", &slow_body[..], 30),
    ] {
        let before = rss_bytes(pid);
        let crowd = crowd(count, addr, first.as_bytes());
        // On a connection of its own: the last one has been idle for too long by now.
        let beside = control(&mut cluster.client());
        let bytes = each(before, rss_bytes(pid), count);
        eprintln!(
            "{count} clients {what}: others p50 {:.1?} → {:.1?}, p99 {:.1?} → {:.1?}; {bytes} bytes each",
            alone[0], beside[0], alone[1], beside[1]
        );
        assert!(bytes <= 20_000, "{bytes} bytes for each client {what}");
        assert!(
            beside[1] <= 2 * alone[1] + Duration::from_millis(50),
            "others waited: {beside:?}"
        );
        if at_most > 10 && !full() {
            continue;
        }
        let stayed = are_closed(crowd);
        eprintln!(
            "clients {what} were thrown out after {stayed:.1?} at most; the limit is {at_most} s"
        );
        assert!(stayed < Duration::from_secs(at_most) + PATIENCE);
    }
    cluster.client().get("/healthz").expect(200);
    cluster.database().check();
}

#[test]
fn connections_to_the_worker_port_that_say_nothing_are_closed_and_cost_little() {
    let count = size(1_000, 10_000);
    let mut cluster = Cluster::start();
    let mut client = cluster.client();
    let mut first = cluster.worker("w-1", 1);
    control(&mut client);
    let alone = control(&mut client);
    let pid = cluster.server().pid();
    let before = rss_bytes(pid);
    let crowd = crowd(count, cluster.worker_addr(), b"");
    let joining = now();
    let second = cluster.worker("w-2", 1);
    eventually(PATIENCE, "a worker joins", || {
        cluster.worker_view("w-2").is_some()
    });
    let joined = elapsed(joining);
    let beside = control(&mut client);
    let bytes = each(before, rss_bytes(pid), count);
    eprintln!(
        "{count} silent strangers: a worker joined in {joined:.1?}; others p50 {:.1?} → {:.1?}; {bytes} bytes each",
        alone[0], beside[0]
    );
    assert!(bytes <= 10_000, "{bytes} bytes for each");
    assert!(joined < Duration::from_secs(1) + PATIENCE / 3);
    let stayed = are_closed(crowd);
    eprintln!("they were closed after {stayed:.1?} at most; the limit is 10 s");
    assert!(stayed < Duration::from_secs(15) + PATIENCE);
    assert!(first.process.runs());
    drop(second);
    cluster.prove_healthy();
    cluster.database().check();
}

#[test]
fn a_client_that_never_reads_costs_its_own_answers_only() {
    let mut cluster = Cluster::start();
    let mut client = cluster.client();
    let addr = cluster.http_addr();
    let batch = vec![json!({"command": ["x".repeat(100)], "name": "n".repeat(100)}); 1_000];
    client.post("/jobs", &Value::Array(batch)).expect(201);
    let alone = control(&mut client);
    let pid = cluster.server().pid();
    let before = rss_bytes(pid);
    let token = std::fs::read_to_string(cluster.data().join("admin.token")).unwrap();
    let one = format!(
        "GET /jobs?limit=1000 HTTP/1.1\r\nHost: {addr}\r\nAuthorization: Bearer {}\r\n\r\n",
        token.trim()
    );
    let deaf: Vec<TcpStream> = (0..20).map(|_| connect_from(0, addr)).collect();
    for mut stream in &deaf {
        stream
            .set_write_timeout(Some(Duration::from_millis(300)))
            .unwrap();
        // As many as it takes in: it stops reading once its answers are not taken.
        (0..2_000)
            .take_while(|_| stream.write_all(one.as_bytes()).is_ok())
            .for_each(drop);
    }
    let beside = control(&mut client);
    let grown = rss_bytes(pid).saturating_sub(before);
    eprintln!(
        "20 clients that never read: others p99 {:.1?} → {:.1?}, the server has {} KiB more",
        alone[1],
        beside[1],
        grown >> 10
    );
    assert!(grown < 64 << 20, "{grown} bytes more");
    drop(deaf);
    client.get("/healthz").expect(200);
}

#[test]
fn no_request_can_be_hidden_in_another_and_fifty_at_once_are_answered_in_order() {
    let cluster = Cluster::start();
    let client = cluster.client();
    let addr = cluster.http_addr();
    let token = std::fs::read_to_string(cluster.data().join("admin.token")).unwrap();
    let head = format!("Host: {addr}\r\nAuthorization: Bearer {}\r\n", token.trim());
    let job = r#"{"command":["true"],"name":"hidden"}"#;
    let hidden = format!(
        "POST /jobs HTTP/1.1\r\n{head}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{job}",
        job.len()
    );
    for framing in [
        format!("Content-Length: 0\r\nContent-Length: {}", hidden.len()),
        format!(
            "Content-Length: {}\r\nTransfer-Encoding: chunked",
            hidden.len()
        ),
        "Transfer-Encoding: chunked\r\nContent-Length: 5".to_owned(),
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity".to_owned(),
        "Transfer-Encoding: xchunked".to_owned(),
        "Transfer-Encoding : chunked".to_owned(),
        "Transfer-Encoding:\u{b}chunked".to_owned(),
        "Content-Length: +0".to_owned(),
        "Content-Length: 0x0".to_owned(),
    ] {
        let bytes = format!("GET /jobs HTTP/1.1\r\n{head}{framing}\r\n\r\n0\r\n\r\n{hidden}");
        let answer = client.raw(bytes.as_bytes()).unwrap_or_default();
        let text = String::from_utf8_lossy(&answer);
        let answers = text
            .lines()
            .filter(|line| line.starts_with("HTTP/1.1 "))
            .count();
        assert!(answers <= 1, "{framing}: {answers} answers");
    }
    assert_eq!(cluster.database().number("SELECT count(*) FROM job"), 0);

    let mut bytes = String::new();
    for n in 0..50 {
        bytes.push_str(&format!(
            "GET /version HTTP/1.1\r\n{head}X-Request-Id: r{n}\r\n\r\n"
        ));
    }
    let answer = client.raw(bytes.as_bytes()).unwrap();
    let text = String::from_utf8_lossy(&answer).to_lowercase();
    let ids: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("x-request-id: "))
        .collect();
    // Saying that there is no more to say may end the connection before all are answered; never out of order.
    let in_order = (0..50).map(|n| format!("r{n}"));
    assert!(
        !ids.is_empty() && ids.iter().zip(in_order).all(|(id, n)| *id == n),
        "{ids:?}"
    );
}

#[test]
fn what_a_name_says_to_a_terminal_is_not_said_in_tables_and_kept_in_json() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 1);
    let odd = "\u{1b}[31mred\u{1b}]0;title\u{7}\u{9b}2J";
    let name = "\u{202e}eman";
    let script = r"printf '\033[31mred\033]0;title\007' >&2; exit 3";
    let job = json!({
        "command": ["sh", "-c", script, odd],
        "name": name,
        "cwd": "/tmp",
        "env": {"E\u{1b}[1m": "v"},
    });
    cluster
        .client()
        .post("/jobs", &json!({"command": ["true"], "name": odd}))
        .problem(422);
    let id = cluster.submit(&job);
    cluster.await_end(id);
    let id = id.to_string();
    for args in [
        &["list"][..],
        &["list", "-o", "wide"],
        &["status", &id],
        &["wait", &id],
        &["queues"],
        &["workers"],
        &["list", "--color", "always"],
    ] {
        let said = cluster.hostler(args);
        for text in [&said.stdout, &said.stderr] {
            for steering in [
                "\u{1b}[31mred",
                "\u{1b}]",
                "\u{7}",
                "\u{9b}",
                "\u{202e}",
                "\u{1b}[1m",
            ] {
                assert!(!text.contains(steering), "{args:?} says {text:?}");
            }
        }
    }
    let raw = cluster.hostler(&["list", "-o", "json"]).stdout;
    let raw: Value = serde_json::from_str(&raw).unwrap();
    assert!(raw.to_string().contains(&json!(name).to_string()), "{raw}");
    assert_eq!(cluster.job(id.parse().unwrap())["name"], name);
}
