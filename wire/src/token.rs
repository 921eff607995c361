//! Access tokens as text: `hostler_<role>_<id>_<secret><check>`: found by secret scanners, typing errors detected
//! offline, the id safe to print. Making the random bytes is the caller's business.

use std::fmt;

/// A parsed access token. `Debug` never shows the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// `admin` or `worker` (more later).
    pub role: String,
    /// Eight base-62 characters that may be logged.
    pub id: String,
    /// What must not be.
    pub secret: [u8; 32],
}

impl Token {
    /// Reads one; the error says what is wrong without repeating the text.
    pub fn parse(_text: &str) -> Result<Self, InvalidToken> {
        todo!()
    }
}

impl fmt::Display for Token {
    /// The whole token, secret included: for writing it to its file.
    fn fmt(&self, _f: &mut fmt::Formatter<'_>) -> fmt::Result {
        todo!()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hostler_{}_{}_…", self.role, self.id)
    }
}

/// Why a text is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidToken(pub &'static str);

impl fmt::Display for InvalidToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for InvalidToken {}
