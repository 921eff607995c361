//! Whatever a client says to a server, or a server to a client: only who knows the token is believed, and only in what
//! was really said. Nonces are fixed here, so the golden handshake is the one thing that may be accepted.

#![no_main]

use hostler_wire::Epoch;
use hostler_wire::decoder::Decoder;
use hostler_wire::frame::{Challenge, Frame, Hello, Login, Role};
use hostler_wire::handshake::{ClientHandshake, Identity, ServerHandshake, Verifier};
use hostler_wire::limits::HANDSHAKE_FRAME_BYTES_MAX;
use hostler_wire::token::Token;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut decoder = Decoder::new();
    decoder.accept_up_to(HANDSHAKE_FRAME_BYTES_MAX);
    decoder.buffer().extend_from_slice(data);
    let mut hello = None;
    while let Ok(Some(frame)) = decoder.next_frame() {
        match frame {
            Frame::Hello(said) => hello = Some(said),
            Frame::Challenge(said) => ask_client(&said),
            Frame::Login(said) => {
                if let Some(hello) = hello.take() {
                    ask_server(&hello, &said);
                }
            }
            _ => {}
        }
    }
});

fn token() -> Token {
    Token {
        role: "worker".to_owned(),
        id: "Ab3dE6gH".to_owned(),
        secret: count_up(0),
    }
}

fn client(role: Role) -> (ClientHandshake, Hello) {
    let nonce = if role == Role::Control { 0x20 } else { 0x40 };
    ClientHandshake::new(&token(), role, count_up(nonce))
}

fn server(hello: &Hello, known: bool) -> Option<(ServerHandshake, Challenge)> {
    let epoch_nonce = std::array::from_fn(|i| 0xd0 + i as u8);
    let cluster = std::array::from_fn(|i| 0xc0 + i as u8);
    let identity = Identity {
        cluster,
        epoch: Epoch::new(7),
        epoch_nonce,
    };
    let random = if hello.role == Role::Control {
        0xa0
    } else {
        0x80
    };
    let verifier = Verifier::new(&token());
    ServerHandshake::new(
        identity,
        hello,
        known.then_some(&verifier),
        count_up(random),
    )
    .ok()
}

fn ask_server(hello: &Hello, login: &Login) {
    let Some((stranger, _)) = server(hello, false) else {
        return;
    };
    assert!(
        stranger.login(login).is_err(),
        "an unknown token was believed"
    );
    let Some((server, challenge)) = server(hello, true) else {
        return;
    };
    if server.login(login).is_err() {
        return;
    }
    let (client, our_hello) = client(hello.role);
    let mut our_login = login.clone();
    assert_eq!(*hello, our_hello, "a hello nobody said was believed");
    assert_eq!(client.login(&challenge, &mut our_login), Ok(()));
    assert_eq!(*login, our_login, "a proof nobody made was believed");
}

fn ask_client(challenge: &Challenge) {
    for role in [Role::Control, Role::Output] {
        let (client, hello) = client(role);
        let mut login = login(role);
        match client.login(challenge, &mut login) {
            Ok(()) => assert_eq!(
                Some(challenge),
                server(&hello, true).as_ref().map(|(_, said)| said)
            ),
            Err(_) => assert_eq!(login.proof, [0; 32], "a stranger was told a proof"),
        }
    }
}

fn login(role: Role) -> Login {
    Login {
        proof: [0; 32],
        name: "w".to_owned(),
        instance: 1,
        session: (role == Role::Output).then_some(hostler_wire::SessionId::new(3)),
        slots: 1,
        commands: true,
        handlers: vec![],
        queues: vec![],
        labels: vec![],
        allocation: String::new(),
        held: vec![],
        last_report: 0,
        epochs: vec![],
    }
}

fn count_up(from: u8) -> [u8; 32] {
    std::array::from_fn(|i| from + i as u8)
}
