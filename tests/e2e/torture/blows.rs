//! What is done to the processes and to the wire of a tortured cluster, chosen at random by weight.

use std::fmt;
use std::fs;
use std::time::{Duration, Instant};

use hostler_tests::{Cluster, Damage, Random, Relay, Way, WorkerProc, full, now, pause};
use hostler_wire::frame::Role;
use rustix::process::Pid;

/// How long a silent worker keeps its work; as short as the heartbeat (every two seconds) allows.
pub(crate) const GRACE: Duration = Duration::from_secs(6);
pub(crate) const WORKERS: usize = 2;
const SLOTS: usize = 4;

/// A blow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blow {
    /// kill -9 of the server, and a new start.
    KillServer,
    /// The same, and the new one is killed while it recovers.
    KillServerTwice,
    /// kill -9 of a worker, and a new start under its name.
    KillWorker,
    /// The same, and the new one is killed before it has said much.
    KillWorkerTwice,
    /// kill -9 of everything.
    KillAll,
    /// SIGTERM of the server, which must end well, and a new start.
    StopServer,
    /// SIGSTOP and a little later SIGCONT.
    FreezeServer,
    /// The same, while other things happen, for less than the grace.
    FreezeWorker,
    /// For longer than the grace: its work goes elsewhere meanwhile.
    FreezeWorkerLong,
    /// A blow to the wire, if there is a relay.
    Wire,
}

/// How often what was done.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    server: usize,
    server_starting: usize,
    worker: usize,
    worker_starting: usize,
    all: usize,
    stops: usize,
    freezes: usize,
    wire: [usize; 5],
    /// How long it took after the last blow until every job had ended.
    pub(crate) settled: Duration,
}

/// The one who deals them.
pub(crate) struct Blows<'a> {
    cluster: &'a mut Cluster,
    relay: Option<&'a Relay>,
    workers: Vec<Hand>,
    random: Random,
    release_at: Option<Instant>,
    pub(crate) tally: Tally,
}

/// A worker.
struct Hand {
    process: WorkerProc,
    thaw_at: Option<Instant>,
}

impl<'a> Blows<'a> {
    pub(crate) fn new(cluster: &'a mut Cluster, relay: Option<&'a Relay>, random: Random) -> Self {
        let mut blows = Self {
            cluster,
            relay,
            workers: Vec::new(),
            random,
            release_at: None,
            tally: Tally::default(),
        };
        for n in 0..WORKERS {
            let process = blows.spawn_worker(n);
            blows.workers.push(Hand {
                process,
                thaw_at: None,
            });
        }
        blows
    }

    /// Waits a random moment and deals one.
    pub(crate) fn deal(&mut self) {
        // Mostly soon after the last one: half of what can go wrong goes wrong in the first moments.
        let longest = self.random.weighted(&[(3, 20), (5, 300), (2, 1_500)]);
        pause(Duration::from_millis(self.random.below(longest)));
        self.heal(false);
        let wire = if self.relay.is_some() { 60 } else { 0 };
        // A short run has no time for one that lasts longer than the grace.
        let long = if full() { 1 } else { 0 };
        let blow = self.random.weighted(&[
            (24, Blow::KillServer),
            (8, Blow::KillServerTwice),
            (30, Blow::KillWorker),
            (6, Blow::KillWorkerTwice),
            (12, Blow::KillAll),
            (4, Blow::StopServer),
            (6, Blow::FreezeServer),
            (9, Blow::FreezeWorker),
            (long, Blow::FreezeWorkerLong),
            (wire, Blow::Wire),
        ]);
        self.strike(blow);
    }

    /// kill -9 of the server or of a worker.
    pub(crate) fn kill_something(&mut self) {
        let blow = *self.random.pick(&[Blow::KillServer, Blow::KillWorker]);
        self.strike(blow);
    }

    fn strike(&mut self, blow: Blow) {
        let n = self.random.index(WORKERS);
        match blow {
            Blow::KillServer => {
                self.cluster.restart_server();
                self.tally.server += 1;
            }
            Blow::KillServerTwice => {
                self.cluster.kill_server();
                let mut starting = self.cluster.spawn_server();
                pause(Duration::from_millis(self.random.below(120)));
                starting.kill();
                self.cluster.start_server();
                self.tally.server += 1;
                self.tally.server_starting += 1;
            }
            Blow::KillWorker => {
                self.replace_worker(n);
                self.tally.worker += 1;
            }
            Blow::KillWorkerTwice => {
                self.replace_worker(n);
                pause(Duration::from_millis(self.random.below(150)));
                self.replace_worker(n);
                self.tally.worker += 1;
                self.tally.worker_starting += 1;
            }
            Blow::KillAll => {
                let server_first = self.random.percent(50);
                if server_first {
                    self.cluster.kill_server();
                }
                for n in 0..WORKERS {
                    self.workers[n].process.kill();
                }
                if !server_first {
                    self.cluster.kill_server();
                }
                self.cluster.start_server();
                for n in 0..WORKERS {
                    self.replace_worker(n);
                }
                self.tally.all += 1;
            }
            Blow::StopServer => {
                self.cluster.stop_server().expect_code(0);
                self.cluster.start_server();
                self.tally.stops += 1;
            }
            Blow::FreezeServer => {
                self.cluster.server().freeze();
                pause(Duration::from_millis(50 + self.random.below(1_500)));
                self.cluster.server().thaw();
                self.tally.freezes += 1;
            }
            Blow::FreezeWorker => self.freeze(n, 200, 2_500),
            Blow::FreezeWorkerLong => self.freeze(n, 7_000, 4_000),
            Blow::Wire => self.strike_wire(),
        }
    }

    fn freeze(&mut self, n: usize, least_ms: u64, more_ms: u64) {
        let hand = &mut self.workers[n];
        if hand.thaw_at.is_none() {
            hand.process.process.freeze();
            let span = Duration::from_millis(least_ms + self.random.below(more_ms));
            hand.thaw_at = Some(now() + span);
            self.tally.freezes += 1;
        }
    }

    fn strike_wire(&mut self) {
        let relay = self.relay.expect("a blow to the wire needs one");
        let role = *self
            .random
            .pick(&[Role::Control, Role::Control, Role::Output]);
        let kind = self.random.index(5);
        match kind {
            0 => {
                relay.cut(role);
            }
            1 => {
                relay.abandon(role);
            }
            2 => {
                relay.hold(role);
                let span = Duration::from_millis(50 + self.random.below(2_500));
                self.release_at = Some(now() + span);
            }
            3 => relay.delay(Duration::from_millis(*self.random.pick(&[0, 5, 50, 200]))),
            _ => {
                let way = *self.random.pick(&[Way::Up, Way::Down]);
                // Half of it in the header and the first numbers after it.
                let at = self.random.weighted(&[(1, 24), (1, 4_096)]);
                let at = self.random.index(at);
                let damage = match self.random.below(6) {
                    0 => Damage::CutInFrame,
                    1 => {
                        let n = 1 + self.random.index(500);
                        Damage::Insert(at, self.random.bytes(n))
                    }
                    _ => Damage::Flip(at, 1 << self.random.below(8)),
                };
                relay.damage(role, way, damage);
            }
        }
        self.tally.wire[kind] += 1;
    }

    /// Lets go what was frozen or held for long enough, or all of it.
    fn heal(&mut self, all: bool) {
        let due = |at: Option<Instant>| at.is_some_and(|at| all || now() >= at);
        for hand in &mut self.workers {
            if due(hand.thaw_at) {
                hand.process.process.thaw();
                hand.thaw_at = None;
            }
        }
        if due(self.release_at) {
            self.relay.expect("something was held").release();
            self.release_at = None;
        }
    }

    /// The last blow has been dealt.
    pub(crate) fn end(&mut self) {
        self.heal(true);
        if let Some(relay) = self.relay {
            relay.delay(Duration::ZERO);
            relay.spare();
        }
    }

    /// # Panics
    /// If a worker has left that nobody killed.
    pub(crate) fn expect_workers(&mut self) {
        for hand in &mut self.workers {
            let name = &hand.process.name;
            assert!(
                hand.process.process.runs(),
                "worker {name} has left: {}",
                hand.process.process.stderr()
            );
        }
        for n in 0..WORKERS {
            self.cluster.await_worker(&worker_name(n));
        }
    }

    fn replace_worker(&mut self, n: usize) {
        self.workers[n].process.kill();
        self.workers[n] = Hand {
            process: self.spawn_worker(n),
            thaw_at: None,
        };
    }

    fn spawn_worker(&self, n: usize) -> WorkerProc {
        let addr = (self.relay).map_or(self.cluster.worker_addr(), Relay::addr);
        let flags = ["--kill-grace", "1s"];
        (self.cluster).spawn_worker(&addr.to_string(), &worker_name(n), SLOTS, &flags)
    }

    /// What server and workers use at present.
    pub(crate) fn measure(&mut self) -> String {
        let data = self.cluster.data();
        let server = Usage::of(self.cluster.server().pid());
        let mut workers = Usage::default();
        for hand in &self.workers {
            let usage = Usage::of(hand.process.process.pid());
            workers.rss_kib += usage.rss_kib;
            workers.descriptors += usage.descriptors;
        }
        let bytes = |name: &str| fs::metadata(data.join(name)).map_or(0, |it| it.len() >> 10);
        format!(
            "server {} KiB, {} descriptors; workers {} KiB, {}; database {} KiB, WAL {} KiB; {} files",
            server.rss_kib,
            server.descriptors,
            workers.rss_kib,
            workers.descriptors,
            bytes("hostler.db"),
            bytes("hostler.db-wal"),
            count_files(&data),
        )
    }
}

impl Drop for Blows<'_> {
    fn drop(&mut self) {
        // What is frozen cannot be ended in good order; a failed test should not wait for it.
        self.heal(true);
    }
}

#[derive(Default)]
struct Usage {
    rss_kib: u64,
    descriptors: usize,
}

impl Usage {
    fn of(pid: Pid) -> Self {
        let dir = format!("/proc/{}", pid.as_raw_nonzero());
        let status = fs::read_to_string(format!("{dir}/status")).unwrap_or_default();
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let rss = rss.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        Self {
            rss_kib: rss.unwrap_or(0),
            descriptors: fs::read_dir(format!("{dir}/fd")).map_or(0, Iterator::count),
        }
    }
}

fn count_files(dir: &std::path::Path) -> usize {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => count_files(&entry.path()),
            Ok(_) | Err(_) => 1,
        })
        .sum()
}

fn worker_name(n: usize) -> String {
    format!("w-{}", n + 1)
}

impl Tally {
    /// kill -9, however many died of it.
    pub(crate) fn kills(&self) -> usize {
        self.server + self.server_starting + self.worker + self.worker_starting + self.all
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} kills (server {}, starting server {}, worker {}, starting worker {}, all at once {}), {} stops, {} freezes",
            self.kills(),
            self.server,
            self.server_starting,
            self.worker,
            self.worker_starting,
            self.all,
            self.stops,
            self.freezes
        )?;
        let [cut, abandoned, held, delayed, damaged] = self.wire;
        if cut + abandoned + held + delayed + damaged > 0 {
            write!(
                f,
                "; wire: {cut} cuts, {abandoned} abandoned, {held} held, {delayed} delays set, {damaged} damaged"
            )?;
        }
        Ok(())
    }
}
