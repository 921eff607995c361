//! PostgreSQL as a queue: rows put and taken with SKIP LOCKED, 100 a transaction, by its own load program.

use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{Daemon, Peer, Plan, place};
use crate::clock::eventually;
use crate::system::free_port;

const PUT: &str = "INSERT INTO job(body) SELECT repeat('x', 100) FROM generate_series(1, 100);\n";
const TAKE: &str = "WITH taken AS (SELECT id FROM job ORDER BY id LIMIT 100 FOR UPDATE SKIP LOCKED)\n\
                    DELETE FROM job USING taken WHERE job.id = taken.id;\n";
const TABLE: &str = "CREATE TABLE job (id bigserial PRIMARY KEY, body text NOT NULL)";

/// Jobs put and taken a second.
pub(super) fn skip_locked(_: &Peer, plan: &Plan, _: u64) -> Result<f64> {
    let seconds: u32 = if plan.quick { 1 } else { 4 };
    let programs = programs()?;
    let dir = place("postgres")?;
    let owner = owner()?;
    if let Some((uid, gid)) = owner {
        chown(dir.path(), Some(uid), Some(gid))?;
    }
    let command = |name: &str| {
        let mut command = Command::new(programs.join(name));
        if let Some((uid, gid)) = owner {
            command.uid(uid).gid(gid);
        }
        command
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        command
    };
    let data = dir.path().join("data");
    let made = command("initdb")
        .args(["-A", "trust", "-U", "postgres", "--no-sync", "-D"])
        .arg(&data)
        .output()?;
    ensure!(made.status.success(), "initdb failed");
    let port = free_port()?.port().to_string();
    let server = command("postgres")
        .stdout(Stdio::null())
        .args(["-p", &port, "-c", "listen_addresses=127.0.0.1"])
        .args(["-c", "synchronous_commit=on", "-c", "shared_buffers=512MB"])
        .args(["-c", "max_wal_size=8GB", "-k"])
        .arg(dir.path())
        .arg("-D")
        .arg(&data)
        .spawn()?;
    let _daemon = Daemon(server);
    let at = ["-h", "127.0.0.1", "-p", &port, "-U", "postgres"];
    let ask = |sql: &str| -> Result<String> {
        let answer = command("psql").args(at).args(["-At", "-c", sql]).output()?;
        ensure!(answer.status.success(), "psql failed at: {sql}");
        Ok(String::from_utf8(answer.stdout)?.trim().to_owned())
    };
    let is_up = eventually(Duration::from_secs(30), Duration::from_millis(50), || {
        ask("SELECT 1").is_ok()
    });
    ensure!(is_up, "PostgreSQL does not answer");
    ask(TABLE)?;
    let script = |name: &str, sql: &str| -> Result<PathBuf> {
        let path = dir.path().join(name);
        fs::write(&path, sql)?;
        Ok(path)
    };
    let (put, take) = (script("put.sql", PUT)?, script("take.sql", TAKE)?);
    let ran = command("pgbench")
        .args(at)
        .args(["-n", "-c", "8", "-j", "2", "-T", &seconds.to_string(), "-f"])
        .arg(&put)
        .arg("-f")
        .arg(&take)
        .arg("postgres")
        .output()?;
    ensure!(ran.status.success(), "pgbench failed");
    let taken: f64 =
        ask("SELECT (SELECT last_value FROM job_id_seq) - (SELECT count(*) FROM job)")?.parse()?;
    Ok(taken / f64::from(seconds))
}

/// Where the newest installed version has its programs.
fn programs() -> Result<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").context("PostgreSQL is not installed")?;
    let mut found: Vec<PathBuf> = versions
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .filter(|bin| bin.join("postgres").is_file() && bin.join("pgbench").is_file())
        .collect();
    found.sort();
    found.pop().context("PostgreSQL's server is not installed")
}

/// PostgreSQL refuses to be root: then it is the user that its package made.
fn owner() -> Result<Option<(u32, u32)>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let users = fs::read_to_string(Path::new("/etc/passwd"))?;
    let line = users.lines().find(|line| line.starts_with("postgres:"));
    let mut fields = line
        .context("there is no user postgres")?
        .split(':')
        .skip(2);
    let mut id = || -> Result<u32> { Ok(fields.next().context("a user without id")?.parse()?) };
    Ok(Some((id()?, id()?)))
}
