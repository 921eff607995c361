//! An old worker and a new server, and the other way round: a pair without a common version of the protocol is refused in
//! words that say which versions, and nothing else is disturbed.

use std::io::{Read, Write};
use std::net::TcpStream;

use bytes::BytesMut;
use hostler_tests::{Cluster, Impostor, PATIENCE, eventually};
use hostler_wire::decoder::Decoder;
use hostler_wire::frame::{Frame, RefuseCode, Refused, Role};
use hostler_wire::handshake::ClientHandshake;
use hostler_wire::token::Token;

#[test]
fn a_worker_of_another_release_is_refused_and_told_the_versions() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 1);
    let text = std::fs::read_to_string(cluster.data().join("worker.token")).unwrap();
    let token = Token::parse(text.trim()).unwrap();
    for (min, max) in [(7, 9), (3, 3), (u16::MAX, u16::MAX)] {
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
