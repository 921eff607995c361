//! Version, capabilities, role, challenge and response, as two state machines without I/O, clock or randomness:
//! nonces are arguments.

use crate::Epoch;
use crate::frame::{Challenge, Hello, Login, RefuseCode, Role};
use crate::token::Token;

/// The protocol versions this crate speaks.
pub const VERSION: u16 = 1;

/// What a server keeps of a token: enough to check it, not enough to use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verifier {
    /// The token's public id.
    pub token_id: String,
    /// SHA-256 of the client key.
    pub stored_key: [u8; 32],
    /// Proves the server to the client.
    pub server_key: [u8; 32],
}

impl Verifier {
    /// Derives it from the token.
    pub fn new(_token: &Token) -> Self {
        todo!()
    }
}

/// Who the server is.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// The cluster.
    pub cluster: [u8; 16],
    /// This start.
    pub epoch: Epoch,
    /// This start's random bytes.
    pub epoch_nonce: [u8; 16],
}

/// Why a handshake ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandshakeError {
    /// What to tell the other side.
    pub code: RefuseCode,
    /// One sentence.
    pub message: String,
}

/// The server's half.
#[derive(Debug)]
pub struct ServerHandshake {/* private */}

impl ServerHandshake {
    /// Takes the hello. `verifier` is that of `hello.token_id`; without one a made-up verifier is used, so that an
    /// unknown id and a wrong secret look the same and take as long.
    pub fn new(
        _identity: Identity,
        _hello: &Hello,
        _verifier: Option<&Verifier>,
        _nonce: [u8; 32],
    ) -> Result<(Self, Challenge), HandshakeError> {
        todo!()
    }

    /// The role asked for.
    pub fn role(&self) -> Role {
        todo!()
    }

    /// Checks the proof and the limits of the fields.
    pub fn login(self, _login: &Login) -> Result<(), HandshakeError> {
        todo!()
    }
}

/// The client's half.
#[derive(Debug)]
pub struct ClientHandshake {/* private */}

impl ClientHandshake {
    /// Begins.
    pub fn new(_token: &Token, _role: Role, _nonce: [u8; 32]) -> (Self, Hello) {
        todo!()
    }

    /// Checks the server's proof, then fills `login.proof`. An error means: this is not our server, tell it nothing.
    pub fn login(self, _challenge: &Challenge, _login: &mut Login) -> Result<(), HandshakeError> {
        todo!()
    }
}
