//! Who should not be here: false servers, replayed words, garbage, a second server. Each is refused, clearly, and
//! nothing that runs notices.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use bytes::BytesMut;
use hostler_tests::{
    Cluster, Impostor, PATIENCE, Process, Relay, Request, Scratch, eventually, free_port,
};
use hostler_wire::decoder::Decoder;
use hostler_wire::frame::{Frame, RefuseCode, Role};
use hostler_wire::handshake::ClientHandshake;
use hostler_wire::limits::FRAME_BYTES_MAX;
use hostler_wire::token::Token;
use serde_json::json;

use crate::submit::{first_start, until_exists_line};

#[test]
fn a_false_server_learns_nothing_and_the_worker_goes_on_to_the_real_one() {
    let mut cluster = Cluster::start();
    let impostor = Impostor::start();
    let both = format!("{},{}", impostor.addr(), cluster.worker_addr());
    let mut worker = cluster.spawn_worker(&both, "w-1", 1, &[]);
    let said = impostor.answer(PATIENCE);
    // Told that it is not our server at most; never who we are or what we can.
    assert!(
        !matches!(said, Some(Frame::Login(_))),
        "the worker logged in: {said:?}"
    );
    cluster.await_worker("w-1");
    cluster.prove_healthy();
    assert!(worker.process.runs());
    let _server = cluster.server();
}

#[test]
fn a_worker_with_another_token_is_refused_and_says_why() {
    let cluster = Cluster::start();
    let other = Cluster::start();
    let token = other.data().join("worker.token");
    let addr = cluster.worker_addr().to_string();
    let args = [
        "worker",
        "--server",
        &addr,
        "--token-file",
        token.to_str().unwrap(),
        "--name",
        "x",
    ];
    let mut worker = Process::hostler(cluster.scratch(), &args, &[]);
    eventually(PATIENCE, "the worker complains of its token", || {
        worker.runs();
        worker.stderr().contains("token")
    });
    assert!(cluster.worker_view("x").is_none());
    let secret = fs::read_to_string(&token).unwrap();
    assert!(
        !worker.stderr().contains(secret.trim()),
        "the secret is in the trace"
    );
    let mut cluster = cluster;
    assert!(
        !cluster.server().stderr().contains(secret.trim()),
        "the secret is in the trace"
    );
}

#[test]
fn a_replayed_handshake_is_refused() {
    let mut cluster = Cluster::start();
    let relay = Relay::to(cluster.worker_addr());
    let _worker = cluster.worker_via(relay.addr(), "w-1", 1, &[]);
    let talker = cluster.submit(&json!({"command": ["echo", "this opens the output socket"]}));
    cluster.await_end(talker);
    assert!(!cluster.log(talker, "stdout").expect(200).body.is_empty());
    let effects = cluster.effects();
    let gate = cluster.scratch().join("gate");
    let id = cluster.submit(&effects.job(&until_exists_line(&gate)));
    first_start(&effects, id);

    for role in [Role::Control, Role::Output] {
        let words = relay.remembered(role).unwrap();
        let mut stream = knock(cluster.worker_addr());
        stream.write_all(&words).unwrap();
        let answers = read_frames(&mut stream);
        assert!(
            !answers
                .iter()
                .any(|frame| matches!(frame, Frame::Welcome(_))),
            "a replay was welcomed: {answers:?}"
        );
        let refused = answers.iter().any(
            |frame| matches!(frame, Frame::Refused(it) if it.code == RefuseCode::Unauthorised),
        );
        assert!(
            refused,
            "the replay as {role:?} was not refused in words: {answers:?}"
        );
    }
    let view = cluster.worker_view("w-1").unwrap();
    assert_eq!(view["connected"], true, "{view}");
    fs::write(&gate, "").unwrap();
    assert_eq!(cluster.await_end(id)["attempt"], 1);
    assert_eq!(effects.of(id).len(), 1);
}

#[test]
fn a_hello_with_a_made_up_token_id_gets_no_more_than_one_with_a_wrong_secret() {
    let cluster = Cluster::start();
    let text = fs::read_to_string(cluster.data().join("worker.token")).unwrap();
    let real = Token::parse(text.trim()).unwrap();
    let unknown = Token {
        id: "zzzzzzzz".to_owned(),
        ..real.clone()
    };
    let wrong = Token {
        secret: [9; 32],
        ..real
    };
    for token in [unknown, wrong] {
        let (handshake, hello) = ClientHandshake::new(&token, Role::Control, [3; 32]);
        let mut stream = knock(cluster.worker_addr());
        let mut out = BytesMut::new();
        Frame::Hello(hello).encode(&mut out);
        stream.write_all(&out).unwrap();
        let mut decoder = Decoder::new();
        decoder.accept_up_to(FRAME_BYTES_MAX);
        let Some(Frame::Challenge(challenge)) = read_frame(&mut stream, &mut decoder) else {
            panic!("no challenge for {token:?}");
        };
        let mut login = login();
        handshake
            .login(&challenge, &mut login)
            .expect_err("the server cannot know this token");
        drop(stream);
    }
    cluster.client().get("/healthz").expect(200);
}

#[test]
fn garbage_on_the_worker_port_is_closed_and_disturbs_nothing() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 1);
    let effects = cluster.effects();
    let gate = cluster.scratch().join("gate");
    let id = cluster.submit(&effects.job(&until_exists_line(&gate)));
    first_start(&effects, id);

    let mut random = vec![0; 100_000];
    getrandom::fill(&mut random).unwrap();
    let (_handshake, hello) = ClientHandshake::new(
        &Token {
            role: "worker".to_owned(),
            id: "00000000".to_owned(),
            secret: [0; 32],
        },
        Role::Control,
        [0; 32],
    );
    let mut hello_bytes = BytesMut::new();
    Frame::Hello(hello).encode(&mut hello_bytes);
    let inputs: Vec<(&str, Vec<u8>)> = vec![
        ("random bytes", random),
        ("a length of 4 GiB", vec![0xff; 6]),
        ("HTTP", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()),
        (
            "a TLS hello",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        ),
        ("zeros", vec![0; 5_000]),
        (
            "half a hello",
            hello_bytes[..hello_bytes.len() / 2].to_vec(),
        ),
        (
            "a hello twice",
            [&hello_bytes[..], &hello_bytes[..]].concat(),
        ),
        ("nothing at all", Vec::new()),
    ];
    for (what, bytes) in inputs {
        let mut stream = knock(cluster.worker_addr());
        // The server may close before all of it is written.
        stream.write_all(&bytes).ok();
        let mut rest = Vec::new();
        // The end of the stream or a reset: both are an end. A timeout is none.
        let end = stream.read_to_end(&mut rest).map_err(|error| error.kind());
        let closed = !matches!(
            end,
            Err(std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
        );
        assert!(closed, "{what}: the connection is still open");
        assert!(
            rest.len() < 1_000,
            "{what}: a stranger was told {} bytes",
            rest.len()
        );
    }
    assert_eq!(cluster.worker_view("w-1").unwrap()["connected"], true);
    fs::write(&gate, "").unwrap();
    assert_eq!(cluster.await_end(id)["attempt"], 1);
    assert_eq!(effects.of(id).len(), 1);
}

#[test]
fn many_silent_connections_do_not_keep_a_worker_out() {
    let mut cluster = Cluster::start();
    let silent: Vec<TcpStream> = (0..300).map(|_| knock(cluster.worker_addr())).collect();
    let _worker = cluster.worker("w-1", 1);
    cluster.prove_healthy();
    drop(silent);
}

#[test]
fn a_second_server_on_the_same_data_is_refused_and_the_first_unharmed() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 1);
    let data = cluster.data().display().to_string();
    let args = [
        "server",
        "--listen",
        "127.0.0.1:0",
        "--worker-listen",
        "127.0.0.1:0",
        "--data-dir",
        &data,
    ];
    let mut second = Process::hostler(cluster.scratch(), &args, &[]);
    let end = second.wait(Duration::from_secs(20));
    assert_ne!(end.code, 0);
    assert!(end.stderr.contains("error:"), "{}", end.stderr);
    assert!(
        end.stderr.contains(&data),
        "which directory? {}",
        end.stderr
    );
    let pid = cluster.server().pid().as_raw_nonzero().to_string();
    assert!(end.stderr.contains(&pid), "held by whom? {}", end.stderr);
    cluster.prove_healthy();
    assert_eq!(cluster.worker_view("w-1").unwrap()["connected"], true);
}

#[test]
fn a_server_open_to_the_network_without_tokens_does_not_start() {
    let scratch = Scratch::new();
    let listen = format!("0.0.0.0:{}", free_port());
    let data = scratch.join("data").display().to_string();
    let args = [
        "server",
        "--no-auth",
        "--listen",
        &listen,
        "--data-dir",
        &data,
    ];
    let end = Process::hostler(&scratch, &args, &[]).wait(PATIENCE);
    assert_ne!(end.code, 0);
    assert!(end.stderr.contains("no-auth"), "{}", end.stderr);
}

#[test]
fn any_free_port_can_be_asked_for_and_is_told() {
    let scratch = Scratch::new();
    let data = scratch.join("data");
    let text = data.display().to_string();
    let args = [
        "server",
        "--listen",
        "127.0.0.1:0",
        "--worker-listen",
        "127.0.0.1:0",
        "--data-dir",
        &text,
    ];
    let mut server = Process::hostler(&scratch, &args, &[]);
    eventually(PATIENCE, "the addresses are told", || {
        assert!(server.runs());
        data.join("addresses.json").exists() && server.stderr().contains("127.0.0.1:")
    });
    let told = fs::read_to_string(data.join("addresses.json")).unwrap();
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    let http: SocketAddr = told["http"].as_str().unwrap().parse().unwrap();
    let workers: SocketAddr = told["workers"].as_str().unwrap().parse().unwrap();
    assert!(http.port() != 0 && workers.port() != 0 && http != workers);
    hostler_tests::Client::new(http, None)
        .get("/healthz")
        .expect(200);
    server.terminate(PATIENCE).expect_code(0);
}

#[test]
fn secrets_are_readable_by_their_owner_only_and_the_first_start_says_where_they_are() {
    let mut cluster = Cluster::start();
    let path = cluster.data().join("admin.token").display().to_string();
    assert!(cluster.server().stderr().contains(&path));
    cluster.restart_server();
    assert!(!cluster.server().stderr().contains(&path));
    for name in ["admin.token", "worker.token", "hostler.db"] {
        let mode = fs::metadata(cluster.data().join(name))
            .unwrap()
            .permissions()
            .mode();
        let others = mode & 0o077;
        assert!(
            others == 0 || (name == "hostler.db" && others & 0o033 == 0),
            "{name}: {mode:o}"
        );
    }
    let token = fs::read_to_string(cluster.data().join("admin.token")).unwrap();
    assert!(Token::parse(token.trim()).is_ok_and(|token| token.role == "admin"));
}

#[test]
fn without_the_right_token_nothing_is_told_and_nothing_done() {
    let cluster = Cluster::start();
    let id = cluster.submit(&json!({"command": ["true"]}));
    let worker_token = fs::read_to_string(cluster.data().join("worker.token")).unwrap();
    let admin_token = fs::read_to_string(cluster.data().join("admin.token")).unwrap();
    let mut mistyped = admin_token.trim().to_owned();
    mistyped.replace_range(
        mistyped.len() - 1..,
        if mistyped.ends_with('0') { "1" } else { "0" },
    );
    let job = format!("/jobs/{id}");
    for request in [
        Request::get(&job),
        Request::get("/jobs"),
        Request::get(format!("{job}/logs")),
        Request::delete(&job),
        Request::post("/jobs").json(&json!({"command": ["true"]})),
        Request::post(format!("{job}/retry")),
        Request::get("/workers"),
        Request::get("/stats"),
    ] {
        let client = cluster.client();
        let answer = client.anonymous().ask(request.clone());
        assert_eq!(answer.problem(401)["code"], "token_missing");
        assert!(answer.header("www-authenticate").is_some());
        client
            .with_token(&mistyped)
            .ask(request.clone())
            .problem(401);
        let status = client.with_token(worker_token.trim()).ask(request).status;
        assert!(
            status == 401 || status == 403,
            "with a worker's token: {status}"
        );
    }
    assert_eq!(cluster.job(id)["state"], "queued");
    cluster.client().anonymous().get("/healthz").expect(200);
}

#[test]
fn pages_of_other_sites_can_do_nothing_whatever_the_method() {
    let cluster = Cluster::start();
    let id = cluster.submit(&json!({"command": ["true"]}));
    let port = cluster.http_addr().port();
    let body = json!({"command": ["true"]});
    for method in ["GET", "POST", "DELETE", "PUT", "PATCH", "OPTIONS"] {
        let request = Request::new(method, format!("/jobs/{id}"));
        for (header, value, statuses) in [
            ("Host", format!("evil.example:{port}"), [403, 421]),
            ("Host", "evil.example".to_owned(), [403, 421]),
            ("Origin", "http://evil.example".to_owned(), [403, 403]),
            ("Origin", "null".to_owned(), [403, 403]),
            ("Sec-Fetch-Site", "cross-site".to_owned(), [403, 403]),
        ] {
            let answer = cluster.client().ask(request.clone().header(header, &value));
            assert!(
                statuses.contains(&answer.status),
                "{method} {header} {value}: {}",
                answer.status
            );
            answer.problem(answer.status);
        }
    }
    for content_type in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
    ] {
        let request = Request::post("/jobs").bytes(content_type, body.to_string());
        cluster.client().ask(request).problem(415);
    }
    assert_eq!(
        cluster.job(id)["state"],
        "queued",
        "a refused request did something"
    );
    assert_eq!(cluster.database().number("SELECT count(*) FROM job"), 1);
}

fn knock(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// The next frame; `None` at the end of the stream.
fn read_frame(stream: &mut TcpStream, decoder: &mut Decoder) -> Option<Frame> {
    let mut buffer = [0; 4096];
    loop {
        if let Some(frame) = decoder.next_frame().unwrap() {
            return Some(frame);
        }
        let read = stream.read(&mut buffer).ok().filter(|read| *read > 0)?;
        decoder.buffer().extend_from_slice(&buffer[..read]);
    }
}

/// Every frame until the server closes.
fn read_frames(stream: &mut TcpStream) -> Vec<Frame> {
    let mut decoder = Decoder::new();
    decoder.accept_up_to(FRAME_BYTES_MAX);
    std::iter::from_fn(|| read_frame(stream, &mut decoder)).collect()
}

fn login() -> hostler_wire::frame::Login {
    hostler_wire::frame::Login {
        proof: [0; 32],
        name: "stranger".to_owned(),
        instance: 1,
        session: None,
        slots: 1,
        commands: true,
        handlers: Vec::new(),
        queues: Vec::new(),
        labels: Vec::new(),
        allocation: String::new(),
        held: Vec::new(),
        last_report: 0,
        epochs: Vec::new(),
    }
}
