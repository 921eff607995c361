//! A token in memory: what is kept of it, and what changes while the server runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hostler_engine::{Time, WallTime};
use hostler_wire::Allow;
use hostler_wire::frame::Login;
use hostler_wire::handshake::Verifier;
use hostler_wire::token::Token;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::rate::Bucket;
use super::{Denied, Proof, Right, Role, TokenRecord};

/// How often a use is worth a word to the store.
const USED_EVERY_MS: u64 = 60_000;

/// A token the server knows.
#[derive(Debug)]
pub struct Bearer {
    /// Its public id; empty for anyone.
    pub id: Arc<str>,
    /// As it was when it was loaded or made.
    pub record: TokenRecord,
    /// The file it lies in.
    pub file: Option<&'static str>,
    /// Wall-clock milliseconds; 0 = not.
    revoked_ms: AtomicU64,
    used_ms: AtomicU64,
    /// The last use the store was told of.
    told_ms: AtomicU64,
    requests: Option<(u32, Bucket)>,
    jobs: Option<(u32, Bucket)>,
}

impl Bearer {
    pub(super) fn new(record: TokenRecord, rates: (Option<u32>, Option<u32>)) -> Self {
        let ms = |at: Option<WallTime>| AtomicU64::new(at.map_or(0, WallTime::millis));
        // Full at its first use: time begins with it.
        let bucket = |own: Option<u32>, default: Option<u32>| {
            own.or(default)
                .map(|rate| (rate, Bucket::new(rate, Time::ZERO)))
        };
        Self {
            id: Arc::clone(&record.id),
            file: None,
            revoked_ms: ms(record.revoked),
            used_ms: ms(record.used),
            told_ms: ms(record.used),
            requests: bucket(record.requests_per_second, rates.0),
            jobs: bucket(record.jobs_per_second, rates.1),
            record,
        }
    }

    /// Whoever comes, where no token is needed.
    pub fn anyone() -> Self {
        let token = Token {
            role: Role::Admin.name().to_owned(),
            id: String::new(),
            secret: [0; 32],
        };
        Self::new(TokenRecord::new(&token, Role::Admin), (None, None))
    }

    pub(super) fn in_file(mut self, file: &'static str) -> Self {
        self.file = Some(file);
        self
    }

    /// Whether that token's secret is this one's.
    pub(super) fn proves(&self, token: &Token) -> bool {
        match &self.record.proof {
            Proof::Digest(digest) => {
                let theirs: [u8; 32] = Sha256::digest(token.secret).into();
                digest.ct_eq(&theirs).into()
            }
            Proof::Scram { stored_key, .. } => {
                stored_key.ct_eq(&Verifier::new(token).stored_key).into()
            }
        }
    }

    pub(super) fn verifier(&self) -> Option<Verifier> {
        match self.record.proof {
            Proof::Scram {
                stored_key,
                server_key,
            } => Some(Verifier {
                token_id: self.id.to_string(),
                stored_key,
                server_key,
            }),
            Proof::Digest(_) => None,
        }
    }

    /// Whether it is good for anything at that time.
    pub fn check(&self, wall: WallTime) -> Result<(), Denied> {
        if self.revoked().is_some() {
            return Err(Denied::Revoked);
        }
        match self.record.expires {
            Some(expires) if expires <= wall => Err(Denied::Expired),
            Some(_) | None => Ok(()),
        }
    }

    /// Whether its role is enough.
    pub fn may(&self, needs: Right) -> Result<(), Denied> {
        let role = self.record.role;
        if role.has(needs) {
            Ok(())
        } else {
            Err(Denied::Role { role, needs })
        }
    }

    /// The only queues it is good for, if it is not good for all.
    pub fn scope(&self) -> Option<&[Box<str>]> {
        Some(&self.record.queues[..]).filter(|queues| !queues.is_empty())
    }

    /// Whether it is good for that queue.
    pub fn sees(&self, queue: &str) -> bool {
        self.scope()
            .is_none_or(|queues| queues.iter().any(|ours| &**ours == queue))
    }

    /// The types of job it is good for.
    pub fn allow(&self) -> &Allow {
        &self.record.allow
    }

    pub(super) fn take_request(&self, now: Time) -> Result<(), Denied> {
        take(self.requests.as_ref(), "requests", 1, now)
    }

    /// Submits that many jobs, as far as its rate goes.
    pub fn take_jobs(&self, count: u64, now: Time) -> Result<(), Denied> {
        take(self.jobs.as_ref(), "jobs", count, now)
    }

    /// Whether a worker may be what it says it is.
    pub(super) fn admits(&self, login: &Login) -> Result<(), String> {
        if let Some(queue) = login.queues.iter().find(|queue| !self.sees(queue)) {
            return Err(format!(
                "the access token is good for the queues {} and not for {queue}",
                self.record.queues.join(", ")
            ));
        }
        if login.commands && !self.record.allow.commands {
            return Err(
                "the access token does not let this worker run commands: start it with --no-commands"
                    .to_owned(),
            );
        }
        let allow = &self.record.allow;
        match login.handlers.iter().find(|name| !allow.handler(name)) {
            Some(name) => Err(format!(
                "the access token does not let this worker run the handler {name}: limit it with --allow-handler"
            )),
            None => Ok(()),
        }
    }

    /// It is good for nothing from now on.
    pub fn revoke(&self, at: WallTime) {
        self.revoked_ms.store(at.millis().max(1), Ordering::Release);
    }

    /// When it was revoked.
    pub fn revoked(&self) -> Option<WallTime> {
        moment(&self.revoked_ms)
    }

    /// When it was used last.
    pub fn used(&self) -> Option<WallTime> {
        moment(&self.used_ms)
    }

    /// It is used. True if the store should hear of it: once a minute, and only of tokens it keeps.
    pub fn touch(&self, wall: WallTime) -> bool {
        if self.id.is_empty() {
            return false;
        }
        let (now, told) = (wall.millis(), self.told_ms.load(Ordering::Relaxed));
        self.used_ms.store(now, Ordering::Relaxed);
        let due = now.abs_diff(told) >= USED_EVERY_MS && self.file.is_none();
        due && self
            .told_ms
            .compare_exchange(told, now, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
    }
}

fn moment(ms: &AtomicU64) -> Option<WallTime> {
    Some(ms.load(Ordering::Acquire))
        .filter(|ms| *ms > 0)
        .map(WallTime::from_millis)
}

fn take(
    bucket: Option<&(u32, Bucket)>,
    what: &'static str,
    count: u64,
    now: Time,
) -> Result<(), Denied> {
    let Some((per_second, bucket)) = bucket else {
        return Ok(());
    };
    bucket.take(count, now).map_err(|wait| Denied::Rate {
        what,
        per_second: *per_second,
        wait,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(change: impl FnOnce(&mut TokenRecord)) -> Bearer {
        let token = Token {
            role: "worker".into(),
            id: "Ab3dE6gH".into(),
            secret: [7; 32],
        };
        let mut record = TokenRecord::new(&token, Role::Worker);
        change(&mut record);
        Bearer::new(record, (None, None))
    }

    fn login(commands: bool, handlers: &[&str], queues: &[&str]) -> Login {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        Login {
            proof: [0; 32],
            name: "w".into(),
            instance: 1,
            session: None,
            slots: 1,
            commands,
            handlers: names(handlers),
            queues: names(queues),
            labels: Vec::new(),
            allocation: String::new(),
            held: Vec::new(),
            last_report: 0,
            epochs: Vec::new(),
        }
    }

    #[test]
    fn a_worker_may_serve_and_run_what_its_token_is_good_for_and_nothing_else() {
        let free = known(|_| {});
        assert_eq!(free.admits(&login(true, &["noop"], &["any"])), Ok(()));
        let queues = known(|it| it.queues = vec!["video".into(), "audio".into()]);
        assert_eq!(queues.admits(&login(true, &[], &["audio"])), Ok(()));
        assert!(
            queues
                .admits(&login(true, &[], &["audio", "bank"]))
                .is_err()
        );
        let types = known(|it| it.allow = Allow::of_words(["handler:img.*"]).unwrap());
        assert_eq!(types.admits(&login(false, &["img.crop"], &["q"])), Ok(()));
        assert!(types.admits(&login(true, &["img.crop"], &["q"])).is_err());
        assert!(types.admits(&login(false, &["noop"], &["q"])).is_err());
    }

    #[test]
    fn a_use_is_told_once_a_minute() {
        let known = known(|_| {});
        let at = |ms| WallTime::from_millis(ms);
        assert!(known.touch(at(100_000)));
        assert!(!known.touch(at(100_001)) && !known.touch(at(159_999)));
        assert_eq!(known.used(), Some(at(159_999)));
        assert!(known.touch(at(160_000)));
        assert!(!known.in_file("worker.token").touch(at(900_000)));
    }
}
