//! An old worker and a new server, and the other way round: a pair without a common version of the protocol is refused in
//! words that say which versions, and nothing else is disturbed. The same with a real older build, and with the database it
//! leaves, where `HOSTLER_OLD_BIN` names one.

use std::io::{Read, Write};
use std::net::TcpStream;

use bytes::BytesMut;
use hostler_tests::{
    Cluster, Impostor, PATIENCE, WorkerProc, eventually, find_binary, find_old_binary, wait_for,
};
use hostler_wire::decoder::Decoder;
use hostler_wire::frame::{Frame, RefuseCode, Refused, Role};
use hostler_wire::handshake::ClientHandshake;
use hostler_wire::token::Token;
use serde_json::json;

use crate::submit::until_exists_line;

#[test]
fn a_worker_of_another_release_is_refused_and_told_the_versions() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 1);
    let text = std::fs::read_to_string(cluster.data().join("worker.token")).unwrap();
    let token = Token::parse(text.trim()).unwrap();
    for (min, max) in [(7, 9), (1, 1), (3, 3), (u16::MAX, u16::MAX)] {
        let (_handshake, mut hello) = ClientHandshake::new(&token, Role::Control, [3; 32]);
        (hello.version_min, hello.version_max) = (min, max);
        let mut out = BytesMut::new();
        Frame::Hello(hello).encode(&mut out);
        let mut stream = TcpStream::connect(cluster.worker_addr()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(&out).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let mut decoder = Decoder::new();
        decoder.buffer().extend_from_slice(&answer);
        let Some(Frame::Refused(refused)) = decoder.next_frame().unwrap() else {
            panic!("not refused: {answer:?}");
        };
        assert_eq!(refused.code, RefuseCode::Version);
        for version in [format!("{min} to {max}"), "2 to 2".to_owned()] {
            assert!(refused.message.contains(&version), "{}", refused.message);
        }
    }
    // Whoever speaks a common one among others is welcome.
    cluster.prove_healthy();
    assert_eq!(cluster.worker_view("w-1").unwrap()["connected"], true);
}

#[test]
fn a_server_of_another_release_sends_its_worker_away_with_the_versions() {
    let cluster = Cluster::start();
    let newer = Impostor::answering(|hello| {
        let (min, max) = (hello.version_min, hello.version_max);
        Frame::Refused(Refused {
            code: RefuseCode::Version,
            message: format!(
                "no protocol version in common: the client speaks {min} to {max}, the server 7 to 9"
            ),
        })
    });
    let mut worker = cluster.spawn_worker(&newer.addr().to_string(), "w-1", 1, &[]);
    let end = worker.wait(PATIENCE).expect_code(1);
    for words in ["2 to 2", "7 to 9", "hint:", "release"] {
        assert!(end.stderr.contains(words), "no {words}: {}", end.stderr);
    }
    assert!(
        !end.stderr.contains("worker.token"),
        "the token is not the matter: {}",
        end.stderr
    );
    // With the address of a server it understands, it goes there.
    let both = format!("{},{}", newer.addr(), cluster.worker_addr());
    let mut worker = cluster.spawn_worker(&both, "w-2", 1, &[]);
    eventually(PATIENCE, "it finds the server it understands", || {
        worker.process.runs() && cluster.worker_view("w-2").is_some()
    });
    cluster.prove_healthy();
}

/// Jobs that run, and more that wait; all of them go on when the gate opens.
struct Backlog {
    gate: std::path::PathBuf,
    ids: Vec<u64>,
}

impl Backlog {
    fn submit(cluster: &Cluster) -> Self {
        let gate = cluster.scratch().join("gate");
        let job = json!({"command": until_exists_line(&gate), "max_losses": 9});
        let ids: Vec<u64> = (0..20).map(|_| cluster.submit(&job)).collect();
        for id in &ids[..2] {
            cluster.await_state(*id, "running");
        }
        Self { gate, ids }
    }

    /// None is lost, whoever ran it.
    fn expect_whole(&self, cluster: &Cluster) {
        std::fs::write(&self.gate, "").unwrap();
        for id in &self.ids {
            let end = cluster.await_end(*id);
            assert_eq!(end["state"], "succeeded", "{end}");
        }
    }
}

/// Whether the worker is taken; if not it has ended, and said both ranges of versions.
fn is_taken(cluster: &Cluster, worker: &mut WorkerProc) -> bool {
    let taken = wait_for(PATIENCE, "the worker is there or has ended", || {
        let view = cluster.worker_view(&worker.name);
        let there = view.is_some_and(|it| it["connected"] == true);
        (there || !worker.process.runs()).then_some(there)
    });
    if !taken {
        let end = worker.wait(PATIENCE);
        let said = end.stderr;
        let both = said.contains("the client speaks") && said.contains("the server");
        assert!(end.code != 0 && both, "{}: {said}", end.code);
        eprintln!("  refused: {}", said.lines().next().unwrap_or_default());
    }
    taken
}

/// Stops the server and starts that build on its files. If it refuses them it has said which version they have, and
/// the build that made them goes on.
fn changes_to(cluster: &mut Cluster, next: &std::path::Path, back: &std::path::Path) -> bool {
    cluster.stop_server().expect_code(0);
    cluster.use_binary(next);
    let Err(said) = cluster.try_server() else {
        return true;
    };
    let version = cluster.database().number("PRAGMA user_version");
    let words = format!("schema version {version}");
    assert!(
        said.contains(&words) && !said.contains("panicked"),
        "no {words}: {said}"
    );
    eprintln!("  refused: {}", said.lines().next().unwrap_or_default());
    cluster.use_binary(back);
    cluster.start_server();
    false
}

#[test]
fn an_upgrade_and_the_way_back_lose_no_job_or_are_refused_with_the_versions() {
    let Some(old) = find_old_binary() else {
        return eprintln!("left out: HOSTLER_OLD_BIN names no older build");
    };
    let new = find_binary();
    for (what, first, second) in [("upgrade", &old, &new), ("way back", &new, &old)] {
        eprintln!("{what}:");
        let mut cluster = Cluster::start();
        cluster.stop_server().expect_code(0);
        let data = cluster.data();
        std::fs::remove_dir_all(&data).unwrap();
        cluster.use_binary(first);
        cluster.start_server();
        let worker = cluster.worker("w-1", 2);
        let backlog = Backlog::submit(&cluster);
        // The server of the other build takes the files over, with jobs queued and running; or it does not.
        let changed = changes_to(&mut cluster, second, first);
        eprintln!("  the server changed: {changed}");
        // A worker of the other build beside the old one.
        cluster.use_binary(if changed { first } else { second });
        let address = cluster.worker_addr().to_string();
        let mut other = cluster.spawn_worker(&address, "w-2", 2, &[]);
        let taken = is_taken(&cluster, &mut other);
        eprintln!("  a worker of the other build is taken: {taken}");
        backlog.expect_whole(&cluster);
        // And back, with what the other build has written.
        if changed {
            let returned = changes_to(&mut cluster, first, second);
            eprintln!("  the server changed back: {returned}");
        }
        let listed = cluster.client().get("/jobs?limit=100").expect(200).json();
        let listed = listed["jobs"].as_array().unwrap().len();
        assert_eq!(listed, backlog.ids.len());
        if changed {
            cluster.database().check();
        }
        drop((worker, other));
    }
}
