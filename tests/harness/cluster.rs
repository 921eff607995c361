//! A server in a data directory of its own, with workers: started, killed and started again on the same ports.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::binary::find_binary;
use crate::clock::{PATIENCE, eventually, wait_for};
use crate::database::Database;
use crate::disk::SmallDisk;
use crate::effects::Effects;
use crate::http::{Client, Request, Response};
use crate::process::{Finished, Process};
use crate::scratch::{Scratch, free_port};

/// A server and its surroundings. Everything ends with it.
#[derive(Debug)]
pub struct Cluster {
    server: Option<Process>,
    binary: PathBuf,
    flags: Vec<String>,
    env: Vec<(String, String)>,
    http: SocketAddr,
    workers: SocketAddr,
    data: PathBuf,
    disk: Option<SmallDisk>,
    // Last, because it removes what the others still use.
    scratch: Scratch,
}

/// A worker of a cluster.
#[derive(Debug)]
pub struct WorkerProc {
    /// Its process.
    pub process: Process,
    /// Its name.
    pub name: String,
}

impl Cluster {
    /// A server with default settings, ready.
    #[track_caller]
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// A server with these flags besides addresses and data directory, ready.
    #[track_caller]
    pub fn with(flags: &[&str]) -> Self {
        Self::in_environment(Scratch::new(), flags, Vec::new())
    }

    /// The same in this directory, its server with these variables beside the usual ones.
    #[track_caller]
    pub fn in_environment(scratch: Scratch, flags: &[&str], env: Vec<(String, String)>) -> Self {
        let mut cluster = Self {
            server: None,
            binary: find_binary(),
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            env,
            http: SocketAddr::from(([127, 0, 0, 1], free_port())),
            workers: SocketAddr::from(([127, 0, 0, 1], free_port())),
            data: scratch.join("data"),
            disk: None,
            scratch,
        };
        cluster.start_server();
        cluster
    }

    /// A server whose data lie on a disk of so many MiB, ready; none where such a disk may not be made.
    #[track_caller]
    pub fn on_small_disk(mib: u32) -> Option<Self> {
        let scratch = Scratch::new();
        let disk = SmallDisk::mount(&scratch.join("small"), mib)?;
        let mut cluster = Self {
            server: None,
            binary: find_binary(),
            flags: Vec::new(),
            env: Vec::new(),
            http: SocketAddr::from(([127, 0, 0, 1], free_port())),
            workers: SocketAddr::from(([127, 0, 0, 1], free_port())),
            data: scratch.join("small/data"),
            disk: Some(disk),
            scratch,
        };
        cluster.start_server();
        Some(cluster)
    }

    /// The disk of [`Cluster::on_small_disk`].
    #[track_caller]
    pub fn disk(&self) -> &SmallDisk {
        self.disk.as_ref().expect("it has a disk of its own")
    }

    /// Starts the server, which does not run, and waits until it is ready.
    #[track_caller]
    pub fn start_server(&mut self) {
        assert!(self.server.is_none(), "the server runs already");
        let server = self.spawn_server();
        let pid = server.pid().as_raw_nonzero().get();
        let server = self.server.insert(server);
        let file = self.data.join("addresses.json");
        let addresses = wait_for(PATIENCE, "the server is ready", || {
            assert!(server.runs(), "the server ended: {}", server.stderr());
            let text = fs::read(&file).ok()?;
            // It may be the file of the server before this one, or half of the new one.
            let addresses: Value = serde_json::from_slice(&text).ok()?;
            (addresses["pid"] == pid).then_some(addresses)
        });
        let parse = |name: &str| addresses[name].as_str().unwrap().parse().unwrap();
        assert_eq!((self.http, self.workers), (parse("http"), parse("workers")));
    }

    /// Starts a server process on our addresses and data, and does not wait for anything.
    pub fn spawn_server(&self) -> Process {
        let (http, workers) = (self.http.to_string(), self.workers.to_string());
        let data = self.data.display().to_string();
        let mut args = vec![
            "server",
            "--listen",
            &http,
            "--worker-listen",
            &workers,
            "--data-dir",
            &data,
        ];
        args.extend(self.flags.iter().map(String::as_str));
        let env: Vec<(&str, &str)> = (self.env.iter())
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        Process::of(&self.binary, &self.scratch, &args, &env, Stdio::null())
    }

    /// From now on servers and workers are of that build.
    pub fn use_binary(&mut self, binary: &Path) {
        binary.clone_into(&mut self.binary);
    }

    /// Starts the server, which does not run, if it can be started; else what it said on its way out.
    #[track_caller]
    pub fn try_server(&mut self) -> Result<(), String> {
        let mut server = self.spawn_server();
        let pid = server.pid().as_raw_nonzero().get();
        let file = self.data.join("addresses.json");
        wait_for(PATIENCE, "the server is ready or has ended", || {
            if !server.runs() {
                return Some(Err(server.stderr()));
            }
            let addresses: Value = serde_json::from_slice(&fs::read(&file).ok()?).ok()?;
            (addresses["pid"] == pid).then_some(Ok(()))
        })?;
        self.server = Some(server);
        Ok(())
    }

    /// kill -9 of the server alone.
    #[track_caller]
    pub fn kill_server(&mut self) {
        self.server.take().expect("the server runs").kill();
    }

    /// kill -9 and a new start.
    #[track_caller]
    pub fn restart_server(&mut self) {
        self.kill_server();
        self.start_server();
    }

    /// A new start of a server that has ended by itself.
    #[track_caller]
    pub fn start_anew(&mut self) {
        let mut ended = self.server.take().expect("there was a server");
        assert!(!ended.runs(), "the server still runs");
        self.start_server();
    }

    /// SIGTERM, and how the server ended.
    #[track_caller]
    pub fn stop_server(&mut self) -> Finished {
        let mut server = self.server.take().expect("the server runs");
        server.terminate(PATIENCE)
    }

    /// The running server.
    #[track_caller]
    pub fn server(&mut self) -> &mut Process {
        self.server.as_mut().expect("the server runs")
    }

    /// Starts a worker and waits until the server has it.
    #[track_caller]
    pub fn worker(&mut self, name: &str, slots: usize) -> WorkerProc {
        self.worker_via(self.workers, name, slots, &[])
    }

    /// Starts a worker that connects to `addr`, and waits until the server has it.
    #[track_caller]
    pub fn worker_via(
        &mut self,
        addr: SocketAddr,
        name: &str,
        slots: usize,
        flags: &[&str],
    ) -> WorkerProc {
        let worker = self.spawn_worker(&addr.to_string(), name, slots, flags);
        self.await_worker(name);
        worker
    }

    /// Starts a worker and does not wait.
    pub fn spawn_worker(
        &self,
        servers: &str,
        name: &str,
        slots: usize,
        flags: &[&str],
    ) -> WorkerProc {
        let token = self.data.join("worker.token").display().to_string();
        let slots = slots.to_string();
        let mut args = vec![
            "worker",
            "--server",
            servers,
            "--token-file",
            &token,
            "--slots",
            &slots,
            "--name",
            name,
        ];
        args.extend(flags);
        let process = Process::of(&self.binary, &self.scratch, &args, &[], Stdio::null());
        WorkerProc {
            process,
            name: name.to_owned(),
        }
    }

    /// Waits until a worker of this name is connected.
    #[track_caller]
    pub fn await_worker(&self, name: &str) {
        let mut client = self.client();
        eventually(PATIENCE, format!("worker {name} is connected"), || {
            worker_view(&client.get("/workers").expect(200).json(), name)
                .is_some_and(|it| it["connected"] == true)
        });
    }

    /// The worker of this name as the server shows it.
    #[track_caller]
    pub fn worker_view(&self, name: &str) -> Option<Value> {
        worker_view(&self.client().get("/workers").expect(200).json(), name)
    }

    /// A client with the administrator's token.
    #[track_caller]
    pub fn client(&self) -> Client {
        let token = fs::read_to_string(self.data.join("admin.token")).unwrap();
        Client::new(self.http, Some(token.trim().to_owned()))
    }

    /// Submits a job and gives its id.
    #[track_caller]
    pub fn submit(&self, job: &Value) -> u64 {
        let answer = self.client().post("/jobs", job).expect(201);
        answer.json()["id"].as_u64().unwrap()
    }

    /// A job as the server shows it, without asking its worker.
    #[track_caller]
    pub fn job(&self, id: u64) -> Value {
        self.client()
            .get(format!("/jobs/{id}?live=0"))
            .expect(200)
            .json()
    }

    /// Waits until a job is in this state.
    #[track_caller]
    pub fn await_state(&self, id: u64, state: &str) -> Value {
        let mut client = self.client();
        let mut last = Value::Null;
        wait_for(PATIENCE, format!("job {id} is {state}"), || {
            last = client.get(format!("/jobs/{id}?live=0")).expect(200).json();
            let ended = last["finished_at"].is_string();
            assert!(
                last["state"] == state || !ended,
                "job {id} ended otherwise: {last}"
            );
            (last["state"] == state).then(|| last.clone())
        })
    }

    /// Waits for a job's end, by long polling.
    #[track_caller]
    pub fn await_end(&self, id: u64) -> Value {
        let answer = self
            .client()
            .get(format!("/jobs/{id}?wait=60s&live=0"))
            .expect(200)
            .json();
        assert!(
            answer["finished_at"].is_string(),
            "job {id} has not ended in a minute: {answer}"
        );
        answer
    }

    /// A job's output, all of one stream.
    #[track_caller]
    pub fn log(&self, id: u64, stream: &str) -> Response {
        self.client()
            .get(format!("/jobs/{id}/logs?stream={stream}"))
    }

    /// Runs a command of the command line against the server, to its end.
    #[track_caller]
    pub fn hostler(&self, args: &[&str]) -> Finished {
        self.spawn_hostler(args).wait(PATIENCE)
    }

    /// Starts a command of the command line against the server.
    pub fn spawn_hostler(&self, args: &[&str]) -> Process {
        let (url, token) = self.cli_settings();
        Process::hostler(
            &self.scratch,
            args,
            &[("HOSTLER_URL", &url), ("HOSTLER_TOKEN", &token)],
        )
    }

    /// Runs a command that reads `stdin`.
    #[track_caller]
    pub fn hostler_reading(&self, args: &[&str], stdin: &str) -> Finished {
        let file = self.scratch.join("stdin");
        fs::write(&file, stdin).unwrap();
        let (url, token) = self.cli_settings();
        let env = [
            ("HOSTLER_URL", url.as_str()),
            ("HOSTLER_TOKEN", token.as_str()),
        ];
        let stdin = fs::File::open(file).unwrap();
        Process::with_stdin(&self.scratch, args, &env, stdin).wait(PATIENCE)
    }

    fn cli_settings(&self) -> (String, String) {
        let token = fs::read_to_string(self.data.join("admin.token")).unwrap();
        (format!("http://{}", self.http), token.trim().to_owned())
    }

    /// The database, read-only.
    pub fn database(&self) -> Database {
        Database::open(&self.data)
    }

    /// A file that jobs append to.
    pub fn effects(&self) -> Effects {
        Effects::new(&self.scratch, "effects")
    }

    /// Shows that the cluster still does its work: a job goes through.
    #[track_caller]
    pub fn prove_healthy(&self) {
        let id = self.submit(&serde_json::json!({"handler": "noop"}));
        let end = self.await_end(id);
        assert_eq!(end["state"], "succeeded", "{end}");
        self.client().ask(Request::get("/healthz")).expect(200);
    }

    /// Where HTTP listens.
    pub fn http_addr(&self) -> SocketAddr {
        self.http
    }

    /// Where workers connect.
    pub fn worker_addr(&self) -> SocketAddr {
        self.workers
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.data.clone()
    }

    /// The test's directory.
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }
}

impl WorkerProc {
    /// kill -9 of the worker alone: its jobs' processes live on.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Asks it to drain.
    pub fn drain(&self) {
        self.process.signal(Signal::TERM);
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(&mut self, within: Duration) -> Finished {
        self.process.wait(within)
    }
}

fn worker_view(workers: &Value, name: &str) -> Option<Value> {
    workers["workers"]
        .as_array()
        .unwrap()
        .iter()
        .find(|it| it["name"] == name)
        .cloned()
}
