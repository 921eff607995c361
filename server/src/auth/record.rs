//! What is kept of an access token: enough to check it and to say what it is good for, not enough to use it.

use std::fmt;
use std::sync::Arc;

use hostler_engine::WallTime;
use hostler_wire::Allow;
use hostler_wire::handshake::Verifier;
use hostler_wire::token::Token;
use sha2::{Digest, Sha256};

/// What the bearer of a token may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Everything on HTTP.
    Admin,
    /// Submit, retry and cancel jobs, and read.
    Submit,
    /// Read.
    Read,
    /// Be a worker: the worker port, and nothing on HTTP.
    Worker,
}

/// What a request needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// To see jobs, output, queues, workers.
    Read,
    /// To make and end jobs.
    Submit,
    /// To do anything.
    Admin,
}

/// An access token as the store keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRecord {
    /// Eight letters and digits that may be logged.
    pub id: Arc<str>,
    /// What it may do.
    pub role: Role,
    /// What people call it.
    pub name: Option<Box<str>>,
    /// What it is checked by.
    pub proof: Proof,
    /// Queues it is good for; empty = all.
    pub queues: Vec<Box<str>>,
    /// Types of job it is good for.
    pub allow: Allow,
    /// Most HTTP requests a second; none = the server's default.
    pub requests_per_second: Option<u32>,
    /// Most jobs submitted a second; none = the server's default.
    pub jobs_per_second: Option<u32>,
    /// When it was made; none for those of files.
    pub created: Option<WallTime>,
    /// By whom.
    pub created_by: Arc<str>,
    /// Good until then.
    pub expires: Option<WallTime>,
    /// Revoked then.
    pub revoked: Option<WallTime>,
    /// Last used.
    pub used: Option<WallTime>,
}

/// What a secret is checked by.
#[derive(Clone, PartialEq, Eq)]
pub enum Proof {
    /// SHA-256 of the secret, for HTTP.
    Digest([u8; 32]),
    /// The two keys of the worker port's handshake.
    Scram {
        /// SHA-256 of the client's key.
        stored_key: [u8; 32],
        /// Proves the server to the worker.
        server_key: [u8; 32],
    },
}

/// What becomes of the tokens in a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenChange {
    /// There is a new one.
    New(Box<TokenRecord>),
    /// It is good for nothing any more.
    Revoked {
        /// Which.
        id: Arc<str>,
        /// When.
        at: WallTime,
    },
    /// It was used.
    Used {
        /// Which.
        id: Arc<str>,
        /// When.
        at: WallTime,
    },
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 4] = [Self::Admin, Self::Submit, Self::Read, Self::Worker];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Submit => "submit",
            Self::Read => "read",
            Self::Worker => "worker",
        }
    }

    /// The other way.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.name() == name)
    }

    /// Whether it has that right.
    pub const fn has(self, right: Right) -> bool {
        match self {
            Self::Admin => true,
            Self::Submit => matches!(right, Right::Read | Right::Submit),
            Self::Read => matches!(right, Right::Read),
            Self::Worker => false,
        }
    }
}

impl TokenRecord {
    /// A token that is good for everything its role allows.
    pub fn new(token: &Token, role: Role) -> Self {
        Self {
            id: Arc::from(token.id.as_str()),
            role,
            name: None,
            proof: Proof::of(token, role),
            queues: Vec::new(),
            allow: Allow::ALL,
            requests_per_second: None,
            jobs_per_second: None,
            created: None,
            created_by: Arc::from(""),
            expires: None,
            revoked: None,
            used: None,
        }
    }
}

impl Proof {
    fn of(token: &Token, role: Role) -> Self {
        if role == Role::Worker {
            let verifier = Verifier::new(token);
            Self::Scram {
                stored_key: verifier.stored_key,
                server_key: verifier.server_key,
            }
        } else {
            Self::Digest(Sha256::digest(token.secret).into())
        }
    }
}

impl fmt::Debug for Proof {
    /// Without the keys: with `server_key` one can pose as the server.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Digest(_) => "Digest(…)",
            Self::Scram { .. } => "Scram(…)",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_role_has_its_rights_and_no_more() {
        let rights = [Right::Read, Right::Submit, Right::Admin];
        for (role, has) in [
            (Role::Admin, [true, true, true]),
            (Role::Submit, [true, true, false]),
            (Role::Read, [true, false, false]),
            (Role::Worker, [false, false, false]),
        ] {
            assert_eq!(rights.map(|right| role.has(right)), has, "{role:?}");
            assert_eq!(Role::from_name(role.name()), Some(role));
        }
        assert_eq!(Role::from_name("root"), None);
    }

    #[test]
    fn what_is_kept_of_a_token_shows_no_key() {
        let token = Token {
            role: "worker".into(),
            id: "Ab3dE6gH".into(),
            secret: [7; 32],
        };
        for role in Role::ALL {
            let shown = format!("{:?}", TokenRecord::new(&token, role));
            assert!(
                shown.contains("Digest(…)") || shown.contains("Scram(…)"),
                "{shown}"
            );
        }
    }
}
