//! Version, capabilities, role, challenge and response, as two state machines without I/O, clock or randomness:
//! nonces are arguments.
//!
//! In the manner of SCRAM, but with HMAC keys straight from the token, whose secret is random and needs no stretching:
//!
//! ```text
//! client_key = HMAC(secret, "Client Key")        server_key = HMAC(secret, "Server Key")
//! stored_key = SHA-256(client_key)
//! server proof = HMAC(server_key, hello ‖ challenge)
//! client proof = client_key XOR HMAC(stored_key, hello ‖ challenge ‖ login)
//! ```
//!
//! where each frame stands for its body without its own proof. So both ends prove the token over everything that was
//! said: a replayed hello meets another nonce, and a changed field breaks a proof. The server goes first: a client
//! says nothing about itself to a server that does not know the token.
//!
//! Under TLS what is proven begins with the session's own exporter (RFC 9266): whoever stands in the middle with two TLS
//! sessions, whatever certificate it has, cannot pass a proof from the one to the other.
//!
//! Not here: deadlines, connection limits and what a name or a session means (the server's).

use std::fmt;

use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use crate::Epoch;
use crate::codec::body_of;
use crate::frame::hello::PROOF_BYTES;
use crate::frame::{Challenge, Hello, Login, RefuseCode, Role};
use crate::limits::{
    EPOCHS_MAX, HANDLERS_MAX, HELD_MAX, LABELS_MAX, NAME_BYTES_MAX, QUEUES_MAX, SLOTS_MAX,
};
use crate::token::Token;

/// The protocol versions this crate speaks.
pub const VERSION: u16 = 2;

/// The lowest of them. Version 1, of which there was no release, had no checksums.
const VERSION_MIN: u16 = 2;

/// The optional abilities this crate has: none yet.
const CAPABILITIES: u64 = 0;

/// What a server keeps of a token: enough to check it, not enough to use it.
#[derive(Clone, PartialEq, Eq)]
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
    pub fn new(token: &Token) -> Self {
        Self::from_secret(token.id.clone(), &token.secret)
    }

    fn from_secret(token_id: String, secret: &[u8; 32]) -> Self {
        let stored_key = sha256(&client_key(secret));
        Self {
            token_id,
            stored_key,
            server_key: server_key(secret),
        }
    }
}

impl fmt::Debug for Verifier {
    /// Without the keys: with `server_key` one can pose as the server.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier")
            .field("token_id", &self.token_id)
            .finish_non_exhaustive()
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

impl HandshakeError {
    fn new(code: RefuseCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for HandshakeError {}

/// The server's half.
pub struct ServerHandshake {
    role: Role,
    /// The token id is one we know.
    known: Choice,
    stored_key: [u8; 32],
    transcript: Transcript,
}

impl ServerHandshake {
    /// On a plain connection: see [`bound`](Self::bound).
    pub fn new(
        identity: Identity,
        hello: &Hello,
        verifier: Option<&Verifier>,
        random: [u8; 32],
    ) -> Result<(Self, Challenge), HandshakeError> {
        Self::bound(identity, hello, verifier, random, None)
    }

    /// Takes the hello. `verifier` is that of `hello.token_id`; without one a made-up verifier is used, so that an
    /// unknown id and a wrong secret look the same and take as long. `random` is 32 fresh random bytes: nonce and
    /// made-up keys are derived from them, and they themselves stay here, or one could recompute those keys. `tls` is
    /// the exporter of the TLS session that all this travels in.
    pub fn bound(
        identity: Identity,
        hello: &Hello,
        verifier: Option<&Verifier>,
        random: [u8; 32],
        tls: Option<[u8; 32]>,
    ) -> Result<(Self, Challenge), HandshakeError> {
        let version = agree(hello)?;
        let made_up =
            Verifier::from_secret(hello.token_id.clone(), &hmac(&random, &[b"Made-up Secret"]));
        let known = verifier.filter(|verifier| verifier.token_id == hello.token_id);
        let Verifier {
            stored_key,
            server_key,
            ..
        } = known.unwrap_or(&made_up);
        let mut challenge = Challenge {
            version,
            capabilities: hello.capabilities & CAPABILITIES,
            nonce: hmac(&random, &[b"Nonce"]),
            cluster: identity.cluster,
            epoch: identity.epoch,
            epoch_nonce: identity.epoch_nonce,
            proof: [0; PROOF_BYTES],
        };
        let transcript = Transcript::new(tls, hello, &challenge);
        challenge.proof = transcript.server_proof(server_key);
        let known = Choice::from(u8::from(known.is_some()));
        let handshake = Self {
            role: hello.role,
            known,
            stored_key: *stored_key,
            transcript,
        };
        Ok((handshake, challenge))
    }

    /// The role asked for.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Checks the proof and the limits of the fields.
    pub fn login(self, login: &Login) -> Result<(), HandshakeError> {
        check(self.role, login)?;
        let pad = self.transcript.client_pad(&self.stored_key, login);
        let proven = sha256(&xor(&login.proof, &pad)).ct_eq(&self.stored_key);
        if bool::from(proven & self.known) {
            Ok(())
        } else {
            Err(HandshakeError::new(
                RefuseCode::Unauthorised,
                "the access token is unknown, revoked, or its secret is wrong",
            ))
        }
    }
}

impl fmt::Debug for ServerHandshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerHandshake")
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

/// The client's half.
pub struct ClientHandshake {
    client_key: [u8; 32],
    server_key: [u8; 32],
    hello: Hello,
    tls: Option<[u8; 32]>,
}

impl ClientHandshake {
    /// Begins.
    pub fn new(token: &Token, role: Role, nonce: [u8; 32]) -> (Self, Hello) {
        let hello = Hello {
            version_min: VERSION_MIN,
            version_max: VERSION,
            capabilities: CAPABILITIES,
            role,
            token_id: token.id.clone(),
            nonce,
        };
        let client_key = client_key(&token.secret);
        let server_key = server_key(&token.secret);
        (
            Self {
                client_key,
                server_key,
                hello: hello.clone(),
                tls: None,
            },
            hello,
        )
    }

    /// All this travels in the TLS session with that exporter.
    pub fn bind(&mut self, tls: [u8; 32]) {
        self.tls = Some(tls);
    }

    /// Checks the server's proof, then fills `login.proof`. An error means: this is not our server, tell it nothing;
    /// or, with the code `Invalid`, that `login` has a field out of its limits.
    pub fn login(self, challenge: &Challenge, login: &mut Login) -> Result<(), HandshakeError> {
        let transcript = Transcript::new(self.tls, &self.hello, challenge);
        let proof = transcript.server_proof(&self.server_key);
        if !bool::from(proof.ct_eq(&challenge.proof)) {
            return Err(HandshakeError::new(
                RefuseCode::Unauthorised,
                match self.tls {
                    None => {
                        "the server does not know this access token: another server, or the token was revoked"
                    }
                    Some(_) => {
                        "the server does not know this access token: another server, the token was revoked, \
                         or somebody ends TLS on the way to it"
                    }
                },
            ));
        }
        if !(self.hello.version_min..=self.hello.version_max).contains(&challenge.version) {
            return Err(HandshakeError::new(
                RefuseCode::Version,
                format!(
                    "the server chose protocol version {}, this client speaks {} to {}",
                    challenge.version, self.hello.version_min, self.hello.version_max
                ),
            ));
        }
        if challenge.capabilities & !self.hello.capabilities != 0 {
            return Err(HandshakeError::new(
                RefuseCode::Version,
                "the server chose capabilities this client does not have",
            ));
        }
        check(self.hello.role, login)?;
        let pad = transcript.client_pad(&sha256(&self.client_key), login);
        login.proof = xor(&self.client_key, &pad);
        Ok(())
    }
}

impl fmt::Debug for ClientHandshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientHandshake")
            .field("hello", &self.hello)
            .finish_non_exhaustive()
    }
}

/// The highest version both speak.
fn agree(hello: &Hello) -> Result<u16, HandshakeError> {
    let (min, max) = (hello.version_min, hello.version_max);
    if min > max {
        return Err(HandshakeError::new(
            RefuseCode::Invalid,
            format!("the lowest protocol version, {min}, is above the highest, {max}"),
        ));
    }
    let version = max.min(VERSION);
    if version < min.max(VERSION_MIN) {
        return Err(HandshakeError::new(
            RefuseCode::Version,
            format!(
                "no protocol version in common: the client speaks {min} to {max}, the server {VERSION_MIN} to {VERSION}"
            ),
        ));
    }
    Ok(version)
}

/// Whether every field of a login is within its limits and fits the role.
fn check(role: Role, login: &Login) -> Result<(), HandshakeError> {
    let invalid = |message: String| Err(HandshakeError::new(RefuseCode::Invalid, message));
    match (role, login.session) {
        (Role::Control, Some(_)) => {
            return invalid("a control connection belongs to no session yet".to_owned());
        }
        (Role::Output, None) => {
            return invalid("an output connection must name its control session".to_owned());
        }
        (Role::Control, None) | (Role::Output, Some(_)) => {}
    }
    if role == Role::Control && login.slots == 0 || login.slots > SLOTS_MAX {
        return invalid(format!(
            "slots is {}, must be 1 to {SLOTS_MAX}",
            login.slots
        ));
    }
    for (what, count, limit) in [
        ("handlers", login.handlers.len(), HANDLERS_MAX),
        ("queues", login.queues.len(), QUEUES_MAX),
        ("labels", login.labels.len(), LABELS_MAX),
        ("held attempts", login.held.len(), HELD_MAX),
        ("epochs", login.epochs.len(), EPOCHS_MAX),
    ] {
        if count > limit {
            return invalid(format!("{count} {what}, the limit is {limit}"));
        }
    }
    let values = login.labels.iter().map(|(_, value)| ("label value", value));
    for (what, text) in values.chain([("allocation", &login.allocation)]) {
        if text.len() > NAME_BYTES_MAX {
            return invalid(format!(
                "a {what} has {} bytes, the limit is {NAME_BYTES_MAX}",
                text.len()
            ));
        }
    }
    let handlers = login.handlers.iter().map(|name| ("handler name", name));
    let queues = login.queues.iter().map(|name| ("queue name", name));
    let labels = login.labels.iter().map(|(key, _)| ("label", key));
    for (what, name) in handlers
        .chain(queues)
        .chain(labels)
        .chain([("worker name", &login.name)])
    {
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return invalid(format!(
                "a {what} has {} bytes, must have 1 to {NAME_BYTES_MAX}",
                name.len()
            ));
        }
    }
    Ok(())
}

/// What both have heard so far, as the proofs take it: bodies, each without its own proof.
struct Transcript {
    /// Nothing on a plain connection. A hello begins with another letter, so the two cannot be taken for each other.
    channel: Vec<u8>,
    hello: Bytes,
    challenge: Bytes,
}

impl Transcript {
    fn new(tls: Option<[u8; 32]>, hello: &Hello, challenge: &Challenge) -> Self {
        Self {
            channel: tls.map_or_else(Vec::new, |exporter| [&b"TLS "[..], &exporter].concat()),
            hello: body_of(hello),
            challenge: without_proof(body_of(challenge)),
        }
    }

    fn server_proof(&self, server_key: &[u8; 32]) -> [u8; 32] {
        hmac(server_key, &[&self.channel, &self.hello, &self.challenge])
    }

    /// What the client key is hidden under.
    fn client_pad(&self, stored_key: &[u8; 32], login: &Login) -> [u8; 32] {
        let login = without_proof(body_of(login));
        let parts = [&self.channel[..], &self.hello, &self.challenge, &login];
        hmac(stored_key, &parts)
    }
}

fn without_proof(mut body: Bytes) -> Bytes {
    body.truncate(body.len() - PROOF_BYTES);
    body
}

fn client_key(secret: &[u8; 32]) -> [u8; 32] {
    hmac(secret, &[b"Client Key"])
}

fn server_key(secret: &[u8; 32]) -> [u8; 32] {
    hmac(secret, &[b"Server Key"])
}

fn hmac(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

fn sha256(bytes: &[u8; 32]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

fn xor(a: &[u8; 32], b: &[u8; 32]) -> [u8; 32] {
    std::array::from_fn(|i| a[i] ^ b[i])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Held;
    use crate::{Attempt, Fence, JobId, SessionId};

    const IDENTITY: Identity = Identity {
        cluster: [1; 16],
        epoch: Epoch::new(3),
        epoch_nonce: [2; 16],
    };

    fn token() -> Token {
        Token {
            role: "worker".to_owned(),
            id: "Ab3dE6gH".to_owned(),
            secret: [9; 32],
        }
    }

    fn login() -> Login {
        Login {
            proof: [0; 32],
            name: "w1".to_owned(),
            instance: 7,
            session: None,
            slots: 2,
            commands: true,
            handlers: vec!["noop".to_owned()],
            queues: vec!["default".to_owned()],
            labels: vec![("zone".to_owned(), "a".to_owned())],
            allocation: String::new(),
            held: vec![Held {
                fence: Fence {
                    job: JobId::MIN,
                    epoch: Epoch::new(3),
                    attempt: Attempt::FIRST,
                },
                started: true,
            }],
            last_report: 41,
            epochs: vec![(Epoch::new(3), [2; 16])],
        }
    }

    /// A whole handshake; `meddle` may change what travels.
    fn shake(
        client: &Token,
        server: Option<&Token>,
        mut meddle: impl FnMut(&mut Hello, &mut Challenge, &mut Login),
    ) -> (
        Result<(), HandshakeError>,
        Option<Result<(), HandshakeError>>,
    ) {
        let (ours, hello) = ClientHandshake::new(client, Role::Control, [5; 32]);
        let (mut heard, mut unused) = (hello.clone(), login());
        let mut nothing = challenge_of(&hello);
        meddle(&mut heard, &mut nothing, &mut unused);

        let verifier = server.map(Verifier::new);
        let (theirs, challenge) =
            ServerHandshake::new(IDENTITY, &heard, verifier.as_ref(), [6; 32]).unwrap();
        let (mut received, mut unused_hello) = (challenge, hello);
        meddle(&mut unused_hello, &mut received, &mut unused);

        let mut sent = login();
        let client_says = ours.login(&received, &mut sent);
        if client_says.is_err() {
            return (client_says, None);
        }
        meddle(&mut unused_hello, &mut received, &mut sent);
        (client_says, Some(theirs.login(&sent)))
    }

    fn challenge_of(hello: &Hello) -> Challenge {
        ServerHandshake::new(IDENTITY, hello, None, [6; 32])
            .unwrap()
            .1
    }

    fn code(result: &Result<(), HandshakeError>) -> Option<RefuseCode> {
        result.as_ref().err().map(|error| error.code)
    }

    #[test]
    fn two_who_know_the_token_believe_each_other() {
        assert_eq!(
            shake(&token(), Some(&token()), |_, _, _| {}),
            (Ok(()), Some(Ok(())))
        );
    }

    #[test]
    fn a_server_without_the_token_is_told_nothing() {
        let other = Token {
            secret: [8; 32],
            ..token()
        };
        for server in [Some(&other), None] {
            let (client, theirs) = shake(&token(), server, |_, _, _| {});
            assert_eq!(
                (code(&client), theirs),
                (Some(RefuseCode::Unauthorised), None)
            );
        }
    }

    #[test]
    fn a_changed_field_breaks_a_proof() {
        let meddlers: [fn(&mut Hello, &mut Challenge, &mut Login); 5] = [
            |hello, _, _| hello.nonce[0] ^= 1,
            |hello, _, _| hello.capabilities ^= 1,
            |_, challenge, _| challenge.cluster[0] ^= 1,
            |_, challenge, _| challenge.nonce[0] ^= 1,
            |_, challenge, _| challenge.proof[0] ^= 1,
        ];
        for meddle in meddlers {
            let (client, _) = shake(&token(), Some(&token()), meddle);
            assert_eq!(code(&client), Some(RefuseCode::Unauthorised));
        }
        let meddlers: [fn(&mut Login); 4] = [
            |login| login.proof[31] ^= 1,
            |login| login.slots += 1,
            |login| login.held.clear(),
            |login| login.name.push('x'),
        ];
        for meddle in meddlers {
            let mut rounds = 0;
            let (_, server) = shake(&token(), Some(&token()), |_, _, login| {
                rounds += 1;
                if rounds == 3 {
                    meddle(login);
                }
            });
            assert_eq!(code(&server.unwrap()), Some(RefuseCode::Unauthorised));
        }
    }

    #[test]
    fn a_replayed_hello_and_login_meet_another_nonce() {
        let (ours, hello) = ClientHandshake::new(&token(), Role::Control, [5; 32]);
        let verifier = Verifier::new(&token());
        let (_, challenge) =
            ServerHandshake::new(IDENTITY, &hello, Some(&verifier), [6; 32]).unwrap();
        let mut recorded = login();
        ours.login(&challenge, &mut recorded).unwrap();

        let (again, other) =
            ServerHandshake::new(IDENTITY, &hello, Some(&verifier), [7; 32]).unwrap();
        assert_ne!(challenge.nonce, other.nonce);
        assert_eq!(
            code(&again.login(&recorded)),
            Some(RefuseCode::Unauthorised)
        );
    }

    /// A handshake whose ends see these TLS sessions: what the client says of the server, and the server of the client.
    fn shake_in(
        client: Option<[u8; 32]>,
        server: Option<[u8; 32]>,
    ) -> Result<Result<(), HandshakeError>, HandshakeError> {
        let (mut ours, hello) = ClientHandshake::new(&token(), Role::Control, [5; 32]);
        if let Some(exporter) = client {
            ours.bind(exporter);
        }
        let verifier = Verifier::new(&token());
        let (theirs, challenge) =
            ServerHandshake::bound(IDENTITY, &hello, Some(&verifier), [6; 32], server).unwrap();
        let mut login = login();
        ours.login(&challenge, &mut login)?;
        Ok(theirs.login(&login))
    }

    #[test]
    fn proofs_cannot_be_passed_from_one_tls_session_to_another() {
        assert_eq!(shake_in(Some([1; 32]), Some([1; 32])), Ok(Ok(())));
        for (client, server) in [
            (Some([1; 32]), Some([2; 32])),
            (None, Some([2; 32])),
            (Some([1; 32]), None),
        ] {
            let refused = shake_in(client, server).unwrap_err();
            assert_eq!(refused.code, RefuseCode::Unauthorised);
        }
    }

    #[test]
    fn a_login_made_for_another_tls_session_is_refused_whatever_the_client_believes() {
        let verifier = Verifier::new(&token());
        let (mut ours, hello) = ClientHandshake::new(&token(), Role::Control, [5; 32]);
        ours.bind([1; 32]);
        let of = |exporter| {
            ServerHandshake::bound(IDENTITY, &hello, Some(&verifier), [6; 32], exporter).unwrap()
        };
        let (_, convincing) = of(Some([1; 32]));
        let mut login = login();
        ours.login(&convincing, &mut login).unwrap();
        for other in [Some([2; 32]), None] {
            let (server, challenge) = of(other);
            assert_eq!(challenge.nonce, convincing.nonce);
            assert_eq!(code(&server.login(&login)), Some(RefuseCode::Unauthorised));
        }
    }

    #[test]
    fn an_unknown_id_and_a_wrong_secret_look_the_same() {
        let (_, hello) = ClientHandshake::new(&token(), Role::Control, [5; 32]);
        let other = Verifier::new(&Token {
            secret: [8; 32],
            ..token()
        });
        let answers = [None, Some(&other)].map(|verifier| {
            let (server, challenge) =
                ServerHandshake::new(IDENTITY, &hello, verifier, [6; 32]).unwrap();
            // Whoever knows the code and all that travelled still cannot tell that the keys were made up.
            let guess = Verifier::from_secret(hello.token_id.clone(), &challenge.nonce);
            let transcript = Transcript::new(None, &hello, &challenge);
            assert_ne!(transcript.server_proof(&guess.server_key), challenge.proof);
            (
                server.login(&login()),
                Challenge {
                    proof: [0; 32],
                    ..challenge
                },
            )
        });
        assert_eq!(answers[0], answers[1]);
        assert_eq!(code(&answers[0].0), Some(RefuseCode::Unauthorised));
    }

    #[test]
    fn even_the_right_answer_to_made_up_keys_is_refused() {
        let (_, hello) = ClientHandshake::new(&token(), Role::Control, [5; 32]);
        let (server, challenge) = ServerHandshake::new(IDENTITY, &hello, None, [6; 32]).unwrap();
        let secret = hmac(&[6; 32], &[b"Made-up Secret"]);
        let (made_up, _) =
            ClientHandshake::new(&Token { secret, ..token() }, Role::Control, [5; 32]);
        let mut login = login();
        made_up.login(&challenge, &mut login).unwrap();
        assert_eq!(code(&server.login(&login)), Some(RefuseCode::Unauthorised));
    }

    #[test]
    fn versions_without_overlap_are_both_named() {
        let (_, hello) = ClientHandshake::new(&token(), Role::Control, [5; 32]);
        let ask = |version_min, version_max| {
            let hello = Hello {
                version_min,
                version_max,
                ..hello.clone()
            };
            ServerHandshake::new(IDENTITY, &hello, None, [6; 32])
                .map(|(_, challenge)| challenge.version)
        };
        assert_eq!(ask(2, 2), Ok(2));
        assert_eq!(ask(0, 9), Ok(VERSION));
        assert_eq!(ask(3, 2).unwrap_err().code, RefuseCode::Invalid);
        let error = ask(3, 5).unwrap_err();
        assert_eq!(error.code, RefuseCode::Version);
        assert!(
            error.message.contains("3 to 5") && error.message.contains("2 to 2"),
            "{error}"
        );
        assert_eq!(ask(0, 1).unwrap_err().code, RefuseCode::Version);
    }

    #[test]
    fn a_field_out_of_its_limits_is_named() {
        let ask = |role, change: &dyn Fn(&mut Login)| {
            let mut login = login();
            change(&mut login);
            check(role, &login).map_err(|error| error.message)
        };
        let session = Some(SessionId::new(1));
        assert_eq!(ask(Role::Control, &|_| {}), Ok(()));
        assert_eq!(
            ask(Role::Output, &|login| (login.session, login.slots) =
                (session, 0)),
            Ok(())
        );
        for (role, change, word) in [
            (
                Role::Output,
                &(|_: &mut Login| {}) as &dyn Fn(&mut Login),
                "session",
            ),
            (Role::Control, &|login| login.session = session, "session"),
            (Role::Control, &|login| login.slots = 0, "slots is 0"),
            (
                Role::Control,
                &|login| login.slots = SLOTS_MAX + 1,
                "slots is 4097",
            ),
            (Role::Control, &|login| login.name.clear(), "worker name"),
            (
                Role::Control,
                &|login| login.name = "n".repeat(129),
                "worker name",
            ),
            (
                Role::Control,
                &|login| login.queues[0].clear(),
                "queue name",
            ),
            (
                Role::Control,
                &|login| login.labels[0].1 = "v".repeat(129),
                "label value",
            ),
            (
                Role::Control,
                &|login| login.handlers = vec!["h".to_owned(); 1025],
                "1025 handlers",
            ),
        ] {
            let message = ask(role, change).unwrap_err();
            assert!(message.contains(word), "{message}");
        }
    }

    #[test]
    fn both_ends_look_at_the_fields() {
        let (ours, hello) = ClientHandshake::new(&token(), Role::Control, [5; 32]);
        let verifier = Verifier::new(&token());
        let (theirs, challenge) =
            ServerHandshake::new(IDENTITY, &hello, Some(&verifier), [6; 32]).unwrap();
        let mut nobody = Login {
            slots: 0,
            ..login()
        };
        assert_eq!(
            code(&ours.login(&challenge, &mut nobody)),
            Some(RefuseCode::Invalid)
        );
        assert_eq!(nobody.proof, [0; 32]);
        assert_eq!(code(&theirs.login(&nobody)), Some(RefuseCode::Invalid));
    }

    #[test]
    fn no_key_is_printed() {
        let (ours, hello) = ClientHandshake::new(&token(), Role::Control, [5; 32]);
        let verifier = Verifier::new(&token());
        let (theirs, _) = ServerHandshake::new(IDENTITY, &hello, Some(&verifier), [6; 32]).unwrap();
        for text in [
            format!("{ours:?}"),
            format!("{verifier:?}"),
            format!("{theirs:?}"),
        ] {
            assert!(!text.contains("key"), "{text}");
        }
    }
}
