//! A false server: it speaks the handshake perfectly, but does not know the workers' token. Or one of another release,
//! which knows it and speaks another version of the protocol.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use bytes::BytesMut;
use hostler_wire::Epoch;
use hostler_wire::decoder::Decoder;
use hostler_wire::frame::{Frame, Hello};
use hostler_wire::handshake::{Identity, ServerHandshake, Verifier};
use hostler_wire::limits::HANDSHAKE_FRAME_BYTES_MAX;
use hostler_wire::token::Token;

/// A false server, listening until the test ends.
#[derive(Debug)]
pub struct Impostor {
    addr: SocketAddr,
    met: Receiver<Option<Frame>>,
}

impl Impostor {
    /// Starts one.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let (tell, met) = channel();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // Each worker tells at most its hello; a broken connection is told as silence.
                if meet(stream, &tell).is_none() && tell.send(None).is_err() {
                    return;
                }
            }
        });
        Self { addr, met }
    }

    /// Starts one that answers each hello with this frame, made from it, and closes.
    pub fn answering(answer: impl Fn(&Hello) -> Frame + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let (_tell, met) = channel();
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut decoder = Decoder::new();
                if let Some(Frame::Hello(hello)) = read_frame(&mut stream, &mut decoder) {
                    let mut out = BytesMut::new();
                    answer(&hello).encode(&mut out);
                    stream.write_all(&out).ok();
                    // Until the worker has gone, so that it can read the answer.
                    read_frame(&mut stream, &mut decoder);
                }
            }
        });
        Self { addr, met }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What the next worker said after our challenge: `None` if it went away without a word.
    #[track_caller]
    pub fn answer(&self, within: Duration) -> Option<Frame> {
        self.met
            .recv_timeout(within)
            .expect("no worker came to the false server")
    }
}

fn meet(mut stream: TcpStream, tell: &Sender<Option<Frame>>) -> Option<()> {
    let mut decoder = Decoder::new();
    let Frame::Hello(hello) = read_frame(&mut stream, &mut decoder)? else {
        return None;
    };
    let mut out = BytesMut::new();
    Frame::Challenge(challenge(&hello)).encode(&mut out);
    stream.write_all(&out).ok()?;
    decoder.accept_up_to(HANDSHAKE_FRAME_BYTES_MAX);
    let answer = read_frame(&mut stream, &mut decoder)?;
    tell.send(Some(answer)).ok()
}

/// A proof over the right words, by a token with the right id and another secret.
fn challenge(hello: &Hello) -> hostler_wire::frame::Challenge {
    let mut random = [0; 32];
    getrandom::fill(&mut random).unwrap();
    let token = Token {
        role: "worker".to_owned(),
        id: hello.token_id.clone(),
        secret: [7; 32],
    };
    let identity = Identity {
        cluster: [1; 16],
        epoch: Epoch::new(1),
        epoch_nonce: [2; 16],
    };
    let verifier = Verifier::new(&token);
    let (_handshake, challenge) =
        ServerHandshake::new(identity, hello, Some(&verifier), random).unwrap();
    challenge
}

/// The next frame, `None` if the other side closes first or sends what is none.
fn read_frame(stream: &mut TcpStream, decoder: &mut Decoder) -> Option<Frame> {
    let mut buffer = [0; 4096];
    loop {
        if let Some(frame) = decoder.next_frame().ok()? {
            return Some(frame);
        }
        let read = stream.read(&mut buffer).ok().filter(|read| *read > 0)?;
        decoder.buffer().extend_from_slice(&buffer[..read]);
    }
}
