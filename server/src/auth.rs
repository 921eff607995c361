//! Access tokens: made at the first start, loaded at later ones, checked on both ports.
//!
//! `admin.token` opens HTTP, `worker.token` the worker port. Both lie in the data directory, readable by its owner only.
//! In memory there is a SHA-256 digest of the one and a SCRAM verifier of the other: enough to check, not enough to use.
//! A secret is 256 random bits, so that no slow hash is needed; it is compared in constant time, and an unknown id takes
//! as long as a wrong secret.
//!
//! Without tokens HTTP is served on loopback addresses only. The worker port always demands its token.
//!
//! Not here: what a caller may do with a job (`http/intake.rs`), the handshake (`net`, `wire::handshake`).

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hostler_wire::handshake::Verifier;
use hostler_wire::token::{InvalidToken, Token};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::config::Config;

/// The token that opens HTTP, beside the data.
pub const ADMIN_FILE: &str = "admin.token";
/// The token that opens the worker port, beside the data.
pub const WORKER_FILE: &str = "worker.token";

/// Who may do what. Nothing in it can be used to pose as somebody.
#[derive(Debug)]
pub struct Auth {
    /// None: whoever reaches the port may do everything.
    http: Option<[Known; 2]>,
    worker: Verifier,
}

/// A token as the server remembers it.
#[derive(Debug)]
struct Known {
    id: Arc<str>,
    role: Role,
    digest: [u8; 32],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Admin,
    Worker,
}

/// Why a caller may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// No access token was sent.
    Missing,
    /// What was sent is no access token.
    Malformed(&'static str),
    /// It is none of this server's.
    Unknown,
    /// It is, and its role is not enough.
    Role,
}

/// Why the server cannot know who may do what.
#[derive(Debug)]
pub enum AuthError {
    /// `no_auth` on an address others can reach.
    Open {
        /// The address.
        listen: SocketAddr,
    },
    /// A token file cannot be read or made.
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A token file does not hold what it should.
    Content {
        /// Which.
        path: PathBuf,
        /// Why, without the secret.
        why: String,
    },
    /// The system gave no random bytes.
    Random(getrandom::Error),
}

impl Auth {
    /// Loads the tokens of the data directory, and makes those that are not there.
    pub fn open(config: &Config) -> Result<Self, AuthError> {
        if config.no_auth && !config.listen.ip().is_loopback() {
            return Err(AuthError::Open {
                listen: config.listen,
            });
        }
        let admin = load_or_make(&config.data_dir, ADMIN_FILE, Role::Admin)?;
        let worker = load_or_make(&config.data_dir, WORKER_FILE, Role::Worker)?;
        Ok(Self::new((!config.no_auth).then_some(&admin), &worker))
    }

    /// From tokens at hand; without an admin token HTTP is open.
    pub fn new(admin: Option<&Token>, worker: &Token) -> Self {
        Self {
            http: admin.map(|admin| {
                [
                    Known::new(admin, Role::Admin),
                    Known::new(worker, Role::Worker),
                ]
            }),
            worker: Verifier::new(worker),
        }
    }

    /// Whether HTTP is served to anyone.
    pub fn is_open(&self) -> bool {
        self.http.is_none()
    }

    /// Who calls, by the `Authorization` header: the id of an admin's token, or an empty one where none is needed.
    pub fn admin(&self, authorization: Option<&[u8]>) -> Result<Arc<str>, Denied> {
        let Some(known) = &self.http else {
            return Ok(Arc::from(""));
        };
        let token = bearer(authorization.ok_or(Denied::Missing)?)?;
        let digest: [u8; 32] = Sha256::digest(token.secret).into();
        // Every known token is compared, whatever the id: time tells nothing.
        let mut found = None;
        for known in known {
            let same = known.digest.ct_eq(&digest) & known.id.as_bytes().ct_eq(token.id.as_bytes());
            if bool::from(same) {
                found = Some(known);
            }
        }
        match found {
            Some(known) if known.role == Role::Admin => Ok(Arc::clone(&known.id)),
            Some(_worker) => Err(Denied::Role),
            None => Err(Denied::Unknown),
        }
    }

    /// What checks a worker that claims the token with this id.
    pub fn verifier(&self, token_id: &str) -> Option<&Verifier> {
        (self.worker.token_id == token_id).then_some(&self.worker)
    }
}

impl Known {
    fn new(token: &Token, role: Role) -> Self {
        Self {
            id: Arc::from(token.id.as_str()),
            role,
            digest: Sha256::digest(token.secret).into(),
        }
    }
}

impl Role {
    const fn name(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Worker => "worker",
        }
    }
}

/// The token of a `Bearer` header.
fn bearer(authorization: &[u8]) -> Result<Token, Denied> {
    let text = std::str::from_utf8(authorization).unwrap_or_default();
    let (scheme, token) = text.split_once(' ').unwrap_or((text, ""));
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(Denied::Malformed(
            "the Authorization header must be of the form `Bearer TOKEN`",
        ));
    }
    Token::parse(token.trim()).map_err(|InvalidToken(why)| Denied::Malformed(why))
}

fn load_or_make(dir: &Path, name: &str, role: Role) -> Result<Token, AuthError> {
    let path = dir.join(name);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let token = make(role).map_err(AuthError::Random)?;
            let kept = keep(dir, &path, &token);
            return kept.map_or_else(|error| Err(AuthError::File { path, error }), |()| Ok(token));
        }
        Err(error) => return Err(AuthError::File { path, error }),
    };
    if let Ok(about) = fs::metadata(&path)
        && about.permissions().mode() & 0o077 != 0
    {
        tracing::warn!(path = %path.display(), "others than its owner may read this access token");
    }
    match Token::parse(text.trim()) {
        Ok(token) if token.role == role.name() => Ok(token),
        Ok(token) => {
            let why = format!(
                "it holds a token for {}, not for {}",
                token.role,
                role.name()
            );
            Err(AuthError::Content { path, why })
        }
        Err(InvalidToken(why)) => Err(AuthError::Content {
            path,
            why: why.into(),
        }),
    }
}

/// Makes a token of random bytes.
fn make(role: Role) -> Result<Token, getrandom::Error> {
    let mut secret = [0; 32];
    getrandom::fill(&mut secret)?;
    let mut id = String::new();
    while id.len() < 8 {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes)?;
        // Bytes above the last multiple of 62 are left out, so that every letter is as likely.
        let fair = bytes.iter().filter(|byte| **byte < 248);
        id.extend(fair.map(|byte| char::from(LETTERS[usize::from(*byte) % LETTERS.len()])));
    }
    id.truncate(8);
    Ok(Token {
        role: role.name().to_owned(),
        id,
        secret,
    })
}

const LETTERS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// Writes the token beside its place and moves it there: a crash leaves a whole file or none.
fn keep(dir: &Path, path: &Path, token: &Token) -> io::Result<()> {
    let fresh = path.with_extension("token.new");
    match fs::remove_file(&fresh) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&fresh)?;
    writeln!(file, "{token}")?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    File::open(dir)?.sync_all()
}

impl fmt::Display for AuthError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open { listen } => write!(
                f,
                "without access tokens HTTP is served on loopback addresses only, and {listen} is none: \
                 listen on 127.0.0.1, or leave out --no-auth"
            ),
            Self::File { path, error } => write!(f, "access token {}: {error}", path.display()),
            Self::Content { path, why } => write!(
                f,
                "access token {}: {why}; remove the file to have a new one made",
                path.display()
            ),
            Self::Random(error) => write!(f, "no random bytes for an access token: {error}"),
        }
    }
}

impl std::error::Error for AuthError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(dir: &tempfile::TempDir) -> Config {
        Config::new(dir.path().to_owned())
    }

    fn header(dir: &tempfile::TempDir, file: &str) -> Vec<u8> {
        let token = fs::read_to_string(dir.path().join(file)).unwrap();
        format!("Bearer {}", token.trim()).into_bytes()
    }

    #[test]
    fn the_first_start_makes_tokens_for_their_owner_only_and_later_ones_load_them() {
        let dir = tempfile::tempdir().unwrap();
        let first = Auth::open(&config(&dir)).unwrap();
        let admin = header(&dir, ADMIN_FILE);
        for file in [ADMIN_FILE, WORKER_FILE] {
            let mode = fs::metadata(dir.path().join(file))
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
        let second = Auth::open(&config(&dir)).unwrap();
        let id = first.admin(Some(&admin)).unwrap();
        assert_eq!(second.admin(Some(&admin)).unwrap(), id);
        assert_eq!(id.len(), 8);
        assert_eq!(header(&dir, ADMIN_FILE), admin);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn only_the_admin_of_this_server_is_let_in() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let auth = Auth::open(&config(&dir)).unwrap();
        Auth::open(&config(&other)).unwrap();
        assert_eq!(auth.admin(None), Err(Denied::Missing));
        assert_eq!(
            auth.admin(Some(&header(&dir, WORKER_FILE))),
            Err(Denied::Role)
        );
        assert_eq!(
            auth.admin(Some(&header(&other, ADMIN_FILE))),
            Err(Denied::Unknown)
        );
        for wrong in ["Bearer x", "Basic abc", "", "Bearer", "bearer \u{e9}"] {
            let denied = auth.admin(Some(wrong.as_bytes()));
            assert!(
                matches!(denied, Err(Denied::Malformed(_))),
                "{wrong:?}: {denied:?}"
            );
        }
    }

    #[test]
    fn a_known_id_with_another_secret_is_unknown() {
        let dir = tempfile::tempdir().unwrap();
        let auth = Auth::open(&config(&dir)).unwrap();
        let text = fs::read_to_string(dir.path().join(ADMIN_FILE)).unwrap();
        let mut token = Token::parse(text.trim()).unwrap();
        token.secret[31] ^= 1;
        let header = format!("Bearer {token}");
        assert_eq!(auth.admin(Some(header.as_bytes())), Err(Denied::Unknown));
    }

    #[test]
    fn a_worker_is_checked_by_its_tokens_id() {
        let dir = tempfile::tempdir().unwrap();
        let auth = Auth::open(&config(&dir)).unwrap();
        let text = fs::read_to_string(dir.path().join(WORKER_FILE)).unwrap();
        let token = Token::parse(text.trim()).unwrap();
        assert_eq!(auth.verifier(&token.id), Some(&Verifier::new(&token)));
        assert_eq!(auth.verifier("nobody00"), None);
    }

    #[test]
    fn a_damaged_or_exchanged_file_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        Auth::open(&config(&dir)).unwrap();
        let (admin, worker) = (dir.path().join(ADMIN_FILE), dir.path().join(WORKER_FILE));
        fs::copy(&worker, &admin).unwrap();
        let error = Auth::open(&config(&dir)).unwrap_err().to_string();
        assert!(
            error.contains("admin.token") && error.contains("not for admin"),
            "{error}"
        );
        fs::write(&admin, "hostler_admin_half").unwrap();
        let error = Auth::open(&config(&dir)).unwrap_err().to_string();
        assert!(
            error.contains("admin.token") && !error.contains("half"),
            "{error}"
        );
    }

    #[test]
    fn without_tokens_only_loopback_is_served() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(&dir);
        config.no_auth = true;
        assert!(Auth::open(&config).unwrap().is_open());
        assert_eq!(&*Auth::open(&config).unwrap().admin(None).unwrap(), "");
        for wide in ["0.0.0.0:7440", "[::]:7440", "10.0.0.1:7440"] {
            config.listen = wide.parse().unwrap();
            let error = Auth::open(&config).unwrap_err();
            assert!(matches!(error, AuthError::Open { .. }), "{wide}");
        }
    }
}
