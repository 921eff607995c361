//! Access tokens: who may do what, on both ports.
//!
//! The first start makes two in files of the data directory, `admin.token` and `worker.token`, readable by their owner
//! only; others are made by an admin and kept by the store. In memory and in the store there are digests and SCRAM
//! keys: enough to check, not enough to use. A secret is 256 random bits, so that no slow hash is needed; it is compared
//! in constant time, and an unknown id takes as long as a wrong secret.
//!
//! Revocation and expiry hold from the moment they are known: every request, and every beat of a worker's session, asks.
//! Without tokens HTTP is served on loopback addresses only. The worker port always demands one.
//!
//! Not here: what a request does with its permission (`http`), the handshake (`net`, `wire::handshake`), the table of
//! tokens on disk (`store`).

mod bearer;
mod files;
mod rate;
mod record;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use hostler_engine::{Span, Time, WallTime};
use hostler_wire::frame::Login;
use hostler_wire::handshake::Verifier;
use hostler_wire::token::{InvalidToken, Token};

use crate::config::Config;

pub use bearer::Bearer;
pub use rate::Failures;
pub use record::{Proof, Right, Role, TokenChange, TokenRecord};

/// The token that opens HTTP, beside the data.
pub const ADMIN_FILE: &str = "admin.token";
/// The token that opens the worker port, beside the data.
pub const WORKER_FILE: &str = "worker.token";
/// Most tokens kept, those of the last 30 days that are good for nothing any more included.
pub const TOKENS_MAX: usize = 10_000;

/// Who may do what. Nothing in it can be used to pose as somebody.
#[derive(Debug)]
pub struct Auth {
    /// HTTP is served to anyone; this is who they are.
    anyone: Option<Arc<Bearer>>,
    known: RwLock<HashMap<Arc<str>, Arc<Bearer>>>,
    /// Stands in for a token nobody knows, so that its secret is compared too.
    nobody: Bearer,
    /// Addresses that showed wrong tokens to HTTP.
    failures: Mutex<Failures>,
    /// Requests a second and jobs a second of tokens that say nothing else.
    rates: (Option<u32>, Option<u32>),
    counts: Counts,
}

/// What is counted here.
#[derive(Debug, Default)]
pub struct Counts {
    /// HTTP requests without a token that is good for them.
    pub denied: AtomicU64,
    /// Of these, those above their address's rate that no entry of the audit trail tells of yet.
    pub unsaid: AtomicU64,
    /// HTTP requests above a token's rate.
    pub rate_limited: AtomicU64,
}

/// Why a caller may not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denied {
    /// No access token was sent.
    Missing,
    /// What was sent is no access token.
    Malformed(&'static str),
    /// It is none of this server's.
    Unknown,
    /// It was, and was revoked.
    Revoked,
    /// It was, until its time was over.
    Expired,
    /// Too many wrong ones from that address.
    TooMany,
    /// It is one, and its role is not enough.
    Role {
        /// What it is.
        role: Role,
        /// What is needed.
        needs: Right,
    },
    /// Too much in too short a time.
    Rate {
        /// Of what.
        what: &'static str,
        /// How many a second.
        per_second: u32,
        /// When to try again.
        wait: Span,
    },
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
    /// Whether that configuration may be served at all: without tokens only on loopback.
    pub fn check(config: &Config) -> Result<(), AuthError> {
        if config.no_auth && !config.listen.ip().is_loopback() {
            return Err(AuthError::Open {
                listen: config.listen,
            });
        }
        Ok(())
    }

    /// Loads the tokens of the data directory, makes those that are not there, and takes those the store keeps.
    pub fn open(config: &Config, kept: &[TokenRecord]) -> Result<Self, AuthError> {
        Self::check(config)?;
        let admin = files::load_or_make(&config.data_dir, ADMIN_FILE, Role::Admin)?;
        let worker = files::load_or_make(&config.data_dir, WORKER_FILE, Role::Worker)?;
        let mut auth = Self::new((!config.no_auth).then_some(&admin), &worker);
        let limits = &config.limits;
        auth.rates = (
            limits.token_requests_per_second,
            limits.token_jobs_per_second,
        );
        for record in kept {
            auth.add(record.clone());
        }
        // The files come last: what they hold is good, whatever the store remembers of that id.
        auth.add_file(&admin, Role::Admin, ADMIN_FILE);
        auth.add_file(&worker, Role::Worker, WORKER_FILE);
        Ok(auth)
    }

    /// Reads the token files again, and makes those that are not there: whatever else they held is good for nothing now.
    /// On an error the old ones stay. Returns how many were exchanged.
    pub fn reload(&self, data_dir: &Path) -> Result<usize, AuthError> {
        let files = [(ADMIN_FILE, Role::Admin), (WORKER_FILE, Role::Worker)];
        let mut exchanged = 0;
        for (file, role) in files {
            let token = files::load_or_make(data_dir, file, role)?;
            let new = Bearer::new(TokenRecord::new(&token, role), self.rates).in_file(file);
            let mut all = self.known.write().unwrap_or_else(PoisonError::into_inner);
            if all
                .get(&*token.id)
                .is_some_and(|known| known.proves(&token))
            {
                continue;
            }
            all.retain(|_, known| known.file != Some(file));
            all.insert(Arc::clone(&new.id), Arc::new(new));
            exchanged += 1;
        }
        Ok(exchanged)
    }

    /// From tokens at hand; without an admin token HTTP is open.
    pub fn new(admin: Option<&Token>, worker: &Token) -> Self {
        let nobody = Token {
            role: String::new(),
            id: String::new(),
            secret: [0; 32],
        };
        let auth = Self {
            anyone: admin.is_none().then(|| Arc::new(Bearer::anyone())),
            known: RwLock::default(),
            nobody: Bearer::new(TokenRecord::new(&nobody, Role::Read), (None, None)),
            failures: Mutex::default(),
            rates: (None, None),
            counts: Counts::default(),
        };
        if let Some(admin) = admin {
            auth.add_file(admin, Role::Admin, ADMIN_FILE);
        }
        auth.add_file(worker, Role::Worker, WORKER_FILE);
        auth
    }

    /// Whether HTTP is served to anyone.
    pub fn is_open(&self) -> bool {
        self.anyone.is_some()
    }

    /// What is counted.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Who calls, by the `Authorization` header.
    pub fn caller(
        &self,
        authorization: Option<&[u8]>,
        from: IpAddr,
        now: Time,
        wall: WallTime,
    ) -> Result<Arc<Bearer>, Denied> {
        if let Some(anyone) = &self.anyone {
            return Ok(Arc::clone(anyone));
        }
        let found = self.find(authorization, wall);
        match &found {
            Ok(known) => {
                let granted = known.take_request(now);
                if granted.is_err() {
                    self.counts.rate_limited.fetch_add(1, Ordering::Relaxed);
                }
                granted?;
            }
            Err(_) => {
                self.counts.denied.fetch_add(1, Ordering::Relaxed);
                let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
                if !failures.add(from, now) {
                    return Err(Denied::TooMany);
                }
            }
        }
        found
    }

    fn find(&self, authorization: Option<&[u8]>, wall: WallTime) -> Result<Arc<Bearer>, Denied> {
        let token = token_of(authorization.ok_or(Denied::Missing)?)?;
        let known = self.get(&token.id);
        // A made-up one is compared, too: time tells nothing.
        let same = known.as_deref().unwrap_or(&self.nobody).proves(&token);
        let known = known.filter(|_| same).ok_or(Denied::Unknown)?;
        known.check(wall).map(|()| known)
    }

    /// What checks a worker that claims the token with this id, if that is good for anything.
    pub fn verifier(&self, id: &str, wall: WallTime) -> Option<Verifier> {
        let known = self.get(id)?;
        known.check(wall).ok()?;
        known.verifier()
    }

    /// Whether a worker that has proven this token may be what it says it is; else why not.
    pub fn admits(&self, id: &str, login: &Login, wall: WallTime) -> Result<(), String> {
        let known = self.get(id).filter(|known| known.check(wall).is_ok());
        let known = known.ok_or("the access token was revoked, or has expired")?;
        known.admits(login)
    }

    /// Whether that token is still good.
    pub fn holds(&self, id: &str, wall: WallTime) -> bool {
        self.get(id).is_some_and(|known| known.check(wall).is_ok())
    }

    /// There is a new one.
    pub fn add(&self, record: TokenRecord) {
        let known = Arc::new(Bearer::new(record, self.rates));
        self.insert(known);
    }

    fn add_file(&self, token: &Token, role: Role, file: &'static str) {
        let record = TokenRecord::new(token, role);
        self.insert(Arc::new(Bearer::new(record, self.rates).in_file(file)));
    }

    fn insert(&self, known: Arc<Bearer>) {
        let mut all = self.known.write().unwrap_or_else(PoisonError::into_inner);
        all.insert(Arc::clone(&known.id), known);
    }

    /// That one, whether it is good for anything or not.
    pub fn get(&self, id: &str) -> Option<Arc<Bearer>> {
        let all = self.known.read().unwrap_or_else(PoisonError::into_inner);
        all.get(id).cloned()
    }

    /// All of them, oldest first.
    pub fn all(&self) -> Vec<Arc<Bearer>> {
        let all = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = all.values().cloned().collect();
        all.sort_by(|a, b| (a.record.created, &a.id).cmp(&(b.record.created, &b.id)));
        all
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        let all = self.known.read().unwrap_or_else(PoisonError::into_inner);
        all.len()
    }

    /// A secret and an id nobody has yet.
    pub fn make(&self, role: Role) -> Result<Token, AuthError> {
        loop {
            let token = files::make(role).map_err(AuthError::Random)?;
            if self.get(&token.id).is_none() {
                return Ok(token);
            }
        }
    }
}

/// The token of a `Bearer` header.
fn token_of(authorization: &[u8]) -> Result<Token, Denied> {
    let text = std::str::from_utf8(authorization).unwrap_or_default();
    let (scheme, token) = text.split_once(' ').unwrap_or((text, ""));
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(Denied::Malformed(
            "the Authorization header must be of the form `Bearer TOKEN`",
        ));
    }
    Token::parse(token.trim()).map_err(|InvalidToken(why)| Denied::Malformed(why))
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
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const NOW: Time = Time::from_micros(1_000_000);
    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn wall(ms: u64) -> WallTime {
        WallTime::from_millis(ms)
    }

    fn config(dir: &tempfile::TempDir) -> Config {
        Config::new(dir.path().to_owned())
    }

    fn open(dir: &tempfile::TempDir) -> Auth {
        Auth::open(&config(dir), &[]).unwrap()
    }

    fn header(dir: &tempfile::TempDir, file: &str) -> Vec<u8> {
        let token = fs::read_to_string(dir.path().join(file)).unwrap();
        format!("Bearer {}", token.trim()).into_bytes()
    }

    fn ask(auth: &Auth, header: &[u8], at: u64) -> Result<Arc<str>, Denied> {
        let caller = auth.caller(Some(header), HERE, NOW, wall(at));
        caller.map(|known| Arc::clone(&known.id))
    }

    /// A token of that role, good until then.
    fn made(auth: &Auth, role: Role, change: impl FnOnce(&mut TokenRecord)) -> (Token, Vec<u8>) {
        let token = auth.make(role).unwrap();
        let mut record = TokenRecord::new(&token, role);
        change(&mut record);
        auth.add(record);
        let header = format!("Bearer {token}").into_bytes();
        (token, header)
    }

    #[test]
    fn the_first_start_makes_tokens_for_their_owner_only_and_later_ones_load_them() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(&dir);
        let admin = header(&dir, ADMIN_FILE);
        for file in [ADMIN_FILE, WORKER_FILE] {
            let mode = fs::metadata(dir.path().join(file))
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
        let second = open(&dir);
        let id = ask(&first, &admin, 0).unwrap();
        assert_eq!(ask(&second, &admin, 0), Ok(Arc::clone(&id)));
        assert_eq!(id.len(), 8);
        assert_eq!(header(&dir, ADMIN_FILE), admin);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn only_tokens_of_this_server_are_let_in() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let auth = open(&dir);
        open(&other);
        let missing = auth.caller(None, HERE, NOW, wall(0));
        assert_eq!(missing.unwrap_err(), Denied::Missing);
        assert_eq!(
            ask(&auth, &header(&other, ADMIN_FILE), 0),
            Err(Denied::Unknown)
        );
        for wrong in ["Bearer x", "Basic abc", "", "Bearer", "bearer \u{e9}"] {
            let denied = ask(&auth, wrong.as_bytes(), 0);
            assert!(
                matches!(denied, Err(Denied::Malformed(_))),
                "{wrong:?}: {denied:?}"
            );
        }
    }

    #[test]
    fn a_workers_token_is_known_on_http_and_has_no_right_there() {
        let dir = tempfile::tempdir().unwrap();
        let auth = open(&dir);
        let worker = auth.caller(Some(&header(&dir, WORKER_FILE)), HERE, NOW, wall(0));
        let worker = worker.unwrap();
        for needs in [Right::Read, Right::Submit, Right::Admin] {
            let role = Role::Worker;
            assert_eq!(worker.may(needs), Err(Denied::Role { role, needs }));
        }
    }

    #[test]
    fn a_known_id_with_another_secret_is_unknown() {
        let dir = tempfile::tempdir().unwrap();
        let auth = open(&dir);
        for file in [ADMIN_FILE, WORKER_FILE] {
            let text = fs::read_to_string(dir.path().join(file)).unwrap();
            let mut token = Token::parse(text.trim()).unwrap();
            token.secret[31] ^= 1;
            let header = format!("Bearer {token}");
            assert_eq!(ask(&auth, header.as_bytes(), 0), Err(Denied::Unknown));
        }
    }

    #[test]
    fn the_role_is_the_one_that_is_kept_whatever_the_text_of_the_token_says() {
        let dir = tempfile::tempdir().unwrap();
        let auth = open(&dir);
        let (mut token, _) = made(&auth, Role::Read, |_| {});
        token.role = "admin".into();
        let header = format!("Bearer {token}");
        let caller = auth.caller(Some(header.as_bytes()), HERE, NOW, wall(0));
        let caller = caller.unwrap();
        assert!(caller.may(Right::Read).is_ok());
        assert!(caller.may(Right::Submit).is_err() && caller.may(Right::Admin).is_err());
    }

    #[test]
    fn an_expired_or_revoked_token_opens_neither_port_from_that_moment_on() {
        let dir = tempfile::tempdir().unwrap();
        let auth = open(&dir);
        let until = |record: &mut TokenRecord| record.expires = Some(wall(500));
        let (_, header) = made(&auth, Role::Submit, until);
        assert!(ask(&auth, &header, 499).is_ok());
        assert_eq!(ask(&auth, &header, 500), Err(Denied::Expired));
        let (worker, _) = made(&auth, Role::Worker, until);
        assert!(auth.verifier(&worker.id, wall(499)).is_some());
        assert!(auth.holds(&worker.id, wall(499)));
        assert_eq!(auth.verifier(&worker.id, wall(500)), None);
        assert!(!auth.holds(&worker.id, wall(500)));

        let (token, header) = made(&auth, Role::Submit, |_| {});
        let caller = auth.caller(Some(&header), HERE, NOW, wall(0)).unwrap();
        auth.get(&token.id).unwrap().revoke(wall(7));
        assert_eq!(ask(&auth, &header, 8), Err(Denied::Revoked));
        // Whoever was let in before is asked again and out, too.
        assert_eq!(caller.check(wall(8)), Err(Denied::Revoked));
    }

    #[test]
    fn a_worker_is_checked_by_its_tokens_id() {
        let dir = tempfile::tempdir().unwrap();
        let auth = open(&dir);
        let text = fs::read_to_string(dir.path().join(WORKER_FILE)).unwrap();
        let token = Token::parse(text.trim()).unwrap();
        assert_eq!(
            auth.verifier(&token.id, wall(0)),
            Some(Verifier::new(&token))
        );
        assert_eq!(auth.verifier("nobody00", wall(0)), None);
        let admin = fs::read_to_string(dir.path().join(ADMIN_FILE)).unwrap();
        let admin = Token::parse(admin.trim()).unwrap();
        assert_eq!(auth.verifier(&admin.id, wall(0)), None);
    }

    #[test]
    fn wrong_tokens_are_rate_limited_by_address_and_a_right_one_is_never_kept_out() {
        let dir = tempfile::tempdir().unwrap();
        let auth = open(&dir);
        let admin = header(&dir, ADMIN_FILE);
        let denials: Vec<_> = (0..50)
            .map(|_| ask(&auth, b"Bearer x", 0).unwrap_err())
            .collect();
        assert_eq!(
            denials.iter().filter(|it| **it == Denied::TooMany).count(),
            30
        );
        assert!(ask(&auth, &admin, 0).is_ok());
        let elsewhere = IpAddr::from([10, 0, 0, 1]);
        let other = auth.caller(Some(b"Bearer x"), elsewhere, NOW, wall(0));
        assert!(matches!(other, Err(Denied::Malformed(_))));
    }

    #[test]
    fn a_token_has_its_own_rate_or_the_servers() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(&dir);
        config.limits.token_requests_per_second = Some(3);
        let auth = Auth::open(&config, &[]).unwrap();
        let (_, plain) = made(&auth, Role::Read, |_| {});
        let (_, own) = made(&auth, Role::Read, |it| it.requests_per_second = Some(5));
        let granted = |header: &[u8]| (0..9).filter(|_| ask(&auth, header, 0).is_ok()).count();
        assert_eq!((granted(&plain), granted(&own)), (3, 5));
        assert_eq!(auth.counts().rate_limited.load(Ordering::Relaxed), 6 + 4);
    }

    #[test]
    fn a_damaged_or_exchanged_file_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        open(&dir);
        let (admin, worker) = (dir.path().join(ADMIN_FILE), dir.path().join(WORKER_FILE));
        fs::copy(&worker, &admin).unwrap();
        let error = Auth::open(&config(&dir), &[]).unwrap_err().to_string();
        assert!(
            error.contains("admin.token") && error.contains("not for admin"),
            "{error}"
        );
        fs::write(&admin, "hostler_admin_half").unwrap();
        let error = Auth::open(&config(&dir), &[]).unwrap_err().to_string();
        assert!(
            error.contains("admin.token") && !error.contains("half"),
            "{error}"
        );
    }

    #[test]
    fn a_file_that_was_removed_has_another_token_once_they_are_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let auth = open(&dir);
        let (old_admin, worker) = (header(&dir, ADMIN_FILE), header(&dir, WORKER_FILE));
        assert_eq!(auth.reload(dir.path()).unwrap(), 0);
        fs::remove_file(dir.path().join(ADMIN_FILE)).unwrap();
        assert_eq!(auth.reload(dir.path()).unwrap(), 1);
        assert_eq!(ask(&auth, &old_admin, 0).unwrap_err(), Denied::Unknown);
        assert!(ask(&auth, &header(&dir, ADMIN_FILE), 0).is_ok());
        assert!(ask(&auth, &worker, 0).is_ok());
        assert_eq!(auth.count(), 2);
        // What cannot be read closes no door and opens none.
        fs::write(dir.path().join(WORKER_FILE), "hostler_worker_half").unwrap();
        assert!(auth.reload(dir.path()).is_err());
        assert!(ask(&auth, &worker, 0).is_ok());
    }

    #[test]
    fn without_tokens_only_loopback_is_served() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(&dir);
        config.no_auth = true;
        let auth = Auth::open(&config, &[]).unwrap();
        assert!(auth.is_open());
        let anyone = auth.caller(None, HERE, NOW, wall(0)).unwrap();
        assert_eq!((&*anyone.id, anyone.may(Right::Admin)), ("", Ok(())));
        for wide in ["0.0.0.0:7440", "[::]:7440", "10.0.0.1:7440"] {
            config.listen = wide.parse().unwrap();
            let error = Auth::open(&config, &[]).unwrap_err();
            assert!(matches!(error, AuthError::Open { .. }), "{wide}");
        }
    }
}
