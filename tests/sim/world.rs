//! One run: a cluster, its network, disk, people and faults, in virtual time from one seed.
//!
//! A heap of what will happen, the earliest first. Whatever happens is one step of one part; what it causes is put on
//! the heap for later, so that anything else may come in between: a crash between a commit and its answer, a cut between
//! an assignment and its frame.
//!
//! First the stormy phase, with faults and new work. Then peace: every fault is put right, nothing new comes, and
//! everything must come to an end.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hostler_engine::effect::CancelAnswer;
use hostler_engine::{Fact, WallTime};
use hostler_server::clock::Readings;
use hostler_server::dispatch::Ask;
use hostler_server::store::memory::Disk;
use hostler_server::store::seam::Lookup;
use hostler_server::store::writer::{Accepted, Rest, SubmitError};
use hostler_wire::handshake::Verifier;
use hostler_wire::token::Token;
use hostler_wire::{Fence, JobId, JobState, Reason};
use tokio::sync::oneshot;

use crate::disk::{Fate, ModelStore, SharedOracle};
use crate::faults::Fault;
use crate::files::ModelFiles;
use crate::follow::{Follower, Look};
use crate::frames;
use crate::machine::{Around, Machine};
use crate::network::{ConnId, End, Held, Network, Piece};
use crate::options::{MS, Options, S};
use crate::oracle::Oracle;
use crate::order;
use crate::restart::Backup;
use crate::rng::Rng;
use crate::server::{Said, Server};
use crate::trace::Trace;
use crate::workload::{LATE, QUEUES, Request, Workload};

/// Where the wall clock stands at the beginning, milliseconds.
const WALL_MS: u64 = 1_764_000_000_000;
/// Whether a worker idles is looked at after so many turns.
const IDLE_TURNS: u64 = 64;
/// Peace that lasts longer than this without an end of everything is a run that hangs.
const PEACE_MAX: u64 = 6 * 3_600 * S;

/// What happens at a moment. `u32`s named `epoch` say which start of the server is meant.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Happening {
    ServerStarts,
    Recovers {
        epoch: u32,
    },
    Turn {
        epoch: u32,
    },
    Gather {
        epoch: u32,
    },
    Commit {
        epoch: u32,
    },
    Read {
        epoch: u32,
    },
    Post {
        epoch: u32,
    },
    /// The output thread takes in what has come.
    Gathers {
        epoch: u32,
    },
    /// Its sync is done.
    Stores {
        epoch: u32,
    },
    KeepsHouse {
        epoch: u32,
    },
    /// A stopping server has waited long enough for what it called back.
    Settles {
        epoch: u32,
    },
    Prints {
        at: usize,
        serial: u64,
        fence: Fence,
    },
    Follows,
    Beat {
        epoch: u32,
    },
    Deliver {
        conn: ConnId,
        end: End,
    },
    MachineStarts {
        at: usize,
    },
    MachineTurn {
        at: usize,
    },
    ChildEnds {
        at: usize,
        serial: u64,
        fence: Fence,
    },
    Submits,
    Repeats {
        request: usize,
    },
    Cancels,
    Breaks(Fault),
    ServerThaws,
    DiskIsFine,
    Thaws {
        at: usize,
    },
    Heals {
        at: usize,
    },
    HasRoom {
        at: usize,
    },
    Peace,
    InstantsCome,
}

struct Entry(u64, u64, Happening);

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

/// A request whose answer is awaited.
struct Asked {
    epoch: u32,
    request: usize,
    answer: oneshot::Receiver<Result<Accepted, SubmitError>>,
}

/// A question about a job.
pub(crate) enum Question {
    Cancel {
        was_there: bool,
        answer: oneshot::Receiver<CancelAnswer>,
    },
    Wait(oneshot::Receiver<Option<(JobState, Reason)>>),
}

/// What a run did.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) events: u64,
    pub(crate) jobs: u64,
    pub(crate) commits: u64,
    pub(crate) virtual_us: u64,
    pub(crate) faults: [u64; Fault::ALL.len()],
    /// Logs read in the moment in which a wait was answered.
    pub(crate) looks: u64,
    pub(crate) printed: u64,
    pub(crate) compared: u64,
}

/// See the module.
pub(crate) struct World {
    pub(crate) options: Options,
    pub(crate) rng: Rng,
    pub(crate) now: u64,
    heap: BinaryHeap<Reverse<Entry>>,
    seq: u64,
    readings: &'static Readings,
    pub(crate) boot: u64,
    booted_at: u64,
    pub(crate) wall_offset_ms: i64,
    pub(crate) disk: Disk,
    pub(crate) files: ModelFiles,
    pub(crate) output_slow: bool,
    pub(crate) backup: Option<Box<Backup>>,
    /// How many backups have come back.
    pub(crate) history: u32,
    /// Starts of the server.
    lives: u32,
    pub(crate) followers: Vec<Follower>,
    /// People who were told of an end and look at the log at once.
    pub(crate) looks: Vec<Look>,
    pub(crate) fate: Arc<Fate>,
    pub(crate) oracle: SharedOracle,
    pub(crate) network: Network,
    pub(crate) server: Option<Server>,
    pub(crate) server_frozen_until: u64,
    pub(crate) disk_full: bool,
    pub(crate) disk_slow: bool,
    pub(crate) unknown_next: bool,
    pub(crate) crash_in_commit: bool,
    pub(crate) machines: Vec<Machine>,
    next_instance: u64,
    next_serial: u64,
    workload: Workload,
    requests: Vec<Request>,
    asked: Vec<Asked>,
    /// Requests that are not answered for good.
    unanswered: usize,
    pub(crate) questions: Vec<(u32, JobId, Question)>,
    pub(crate) promised: Vec<JobId>,
    pub(crate) peace: bool,
    token: Token,
    said: Vec<Said>,
    deliveries: Vec<(ConnId, End, u64)>,
    endings: Vec<(u64, Fence, u64)>,
    printings: Vec<(u64, Fence, u64)>,
    pub(crate) tally: Tally,
    pub(crate) trace: Trace,
}

impl World {
    pub(crate) fn new(options: Options, readings: &'static Readings, trace: Trace) -> Self {
        let mut rng = Rng::new(options.seed.wrapping_mul(0x2545_f491_4f6c_dd1d) + 1);
        let token = Token {
            role: "worker".to_owned(),
            id: "00000000".to_owned(),
            secret: [9; 32],
        };
        let workload = Workload::new(&options, &mut rng);
        let mut machines: Vec<Machine> = Vec::new();
        for at in 0..=options.workers {
            // The last one comes only to take the first one's name.
            let name = format!("w{}", at % options.workers);
            let slots = u32::try_from(1 + rng.below(options.slots_max)).expect("few");
            let mut machine = Machine::new(at, name, slots, &mut rng);
            machine.commands = at == 0 || rng.chance(800);
            let served = QUEUES.iter().filter(|_| at == 0 || rng.chance(600));
            machine.queues = served.map(|queue| (*queue).to_owned()).collect();
            if machine.queues.is_empty() {
                machine.queues.push(QUEUES[0].to_owned());
            }
            machines.push(machine);
        }
        let mut world = Self {
            disk: Disk::new(options.seed),
            files: ModelFiles::default(),
            output_slow: false,
            backup: None,
            history: 0,
            lives: 0,
            followers: Vec::new(),
            looks: Vec::new(),
            oracle: Arc::new(Mutex::new(Oracle::new(
                options.durability,
                options.faults.iter().all(|every| *every == 0),
            ))),
            options,
            rng,
            now: 0,
            heap: BinaryHeap::new(),
            seq: 0,
            readings,
            boot: 1,
            booted_at: 0,
            wall_offset_ms: 0,
            fate: Arc::default(),
            network: Network::default(),
            server: None,
            server_frozen_until: 0,
            disk_full: false,
            disk_slow: false,
            unknown_next: false,
            crash_in_commit: false,
            machines,
            next_instance: 1,
            next_serial: 1,
            workload,
            requests: Vec::new(),
            asked: Vec::new(),
            unanswered: 0,
            questions: Vec::new(),
            promised: Vec::new(),
            peace: false,
            token,
            said: Vec::new(),
            deliveries: Vec::new(),
            endings: Vec::new(),
            printings: Vec::new(),
            tally: Tally::default(),
            trace,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        self.at(0, Happening::ServerStarts);
        for at in 0..self.options.workers {
            let delay = self.rng.below(2 * S);
            self.at(delay, Happening::MachineStarts { at });
        }
        self.at(self.options.horizon, Happening::Peace);
        self.at(self.rng.clone().below(S), Happening::Submits);
        if self.options.cancel_every > 0 {
            self.at(self.options.cancel_every, Happening::Cancels);
        }
        if self.options.prints > 0 {
            self.at(2 * S, Happening::Follows);
        }
        for fault in Fault::ALL {
            let every = self.options.faults[fault.at()];
            if every > 0 {
                let delay = self.rng.waits(every);
                self.at(delay, Happening::Breaks(fault));
            }
        }
    }

    /// Lets everything happen. Panics at the first thing that is not as promised.
    pub(crate) fn run(&mut self) {
        while let Some(Reverse(Entry(at, _, happening))) = self.heap.pop() {
            self.now = at;
            self.tally.events += 1;
            self.set_clocks();
            if self.is_over() {
                break;
            }
            assert!(
                at < self.options.horizon + PEACE_MAX,
                "no end in sight: {}",
                self.whats_left()
            );
            self.happen(happening);
        }
        self.finish();
    }

    /// It is to happen then.
    pub(crate) fn at(&mut self, at: u64, what: Happening) {
        self.seq += 1;
        self.heap.push(Reverse(Entry(at, self.seq, what)));
    }

    /// It is to happen after so long.
    pub(crate) fn after(&mut self, delay: u64, what: Happening) {
        self.at(self.now + delay, what);
    }

    fn set_clocks(&self) {
        let wall_ms = (WALL_MS + self.now / MS).saturating_add_signed(self.wall_offset_ms);
        let boottime = self.now - self.booted_at;
        self.readings
            .set(self.boot, boottime, WallTime::from_millis(wall_ms));
    }

    fn wall(&self) -> WallTime {
        let wall_ms = (WALL_MS + self.now / MS).saturating_add_signed(self.wall_offset_ms);
        WallTime::from_millis(wall_ms)
    }

    pub(crate) fn oracle(&self) -> MutexGuard<'_, Oracle> {
        self.oracle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn epoch(&self) -> u32 {
        self.server.as_ref().map_or(0, |server| server.life)
    }

    /// The server, if it is that start of it; if it stands still, the event comes again later.
    pub(crate) fn server(&mut self, epoch: u32, what: Happening) -> Option<&mut Server> {
        if self.epoch() != epoch {
            return None;
        }
        if self.now < self.server_frozen_until {
            let until = self.server_frozen_until;
            self.at(until, what);
            return None;
        }
        self.server.as_mut()
    }

    fn happen(&mut self, what: Happening) {
        match what {
            Happening::ServerStarts => self.server_starts(),
            Happening::Recovers { epoch } => {
                if let Some(server) = self.server(epoch, what) {
                    let more = server.recover_on();
                    if more {
                        let delay = self.rng.below(300 * MS);
                        self.after(delay, what);
                    } else {
                        self.trace.say(self.now, || "server is ready".into());
                    }
                    self.wake();
                }
            }
            Happening::Turn { epoch } => self.turn(epoch, what),
            Happening::Gather { epoch } => self.gather(epoch, what),
            Happening::Commit { epoch } => self.commit(epoch, what),
            Happening::Read { epoch } => {
                if let Some(server) = self.server(epoch, what) {
                    server.read_at = None;
                    server.read();
                    self.wake();
                }
            }
            Happening::Post { epoch } => {
                if let Some(server) = self.server(epoch, what) {
                    server.post_at = None;
                    let mut said = std::mem::take(&mut self.said);
                    if let Some(server) = &mut self.server {
                        server.post(&mut said);
                    }
                    self.say(&mut said);
                    self.said = said;
                    self.wake();
                }
            }
            Happening::Gathers { epoch } => self.output_gathers(epoch, what),
            Happening::Stores { epoch } => self.output_stores(epoch, what),
            Happening::KeepsHouse { epoch } => {
                if let Some(server) = self.server(epoch, what) {
                    if !server.storing {
                        server.keeper.keep_house();
                    }
                    self.after(S, what);
                    self.output_looks();
                }
            }
            Happening::Settles { epoch } => self.settles(epoch, what),
            Happening::Prints { at, serial, fence } => self.prints(at, serial, fence),
            Happening::Follows => self.follows(),
            Happening::Beat { epoch } => {
                if let Some(server) = self.server(epoch, what) {
                    let mut said = Vec::new();
                    server.beat(&mut said);
                    self.say(&mut said);
                    self.after(u64::from(hostler_server::net::BEAT_MS) * MS, what);
                    self.network.sweep();
                }
            }
            Happening::Deliver { conn, end } => self.deliver(conn, end, what),
            Happening::MachineStarts { at } => self.machine_starts(at),
            Happening::MachineTurn { at } => self.machine_turn(at),
            Happening::ChildEnds { at, serial, fence } => {
                if self.machines[at].child_ends(serial, fence, &self.oracle) {
                    self.trace
                        .say(self.now, || format!("w{at}: {fence:?} ends"));
                    self.wake_machine(at);
                }
            }
            Happening::Submits => {
                if !self.peace && self.workload.planned() < self.options.jobs_max {
                    self.submits();
                    let delay = self.rng.waits(self.options.request_every);
                    self.after(delay, what);
                }
            }
            Happening::Repeats { request } => self.submit(request),
            Happening::Cancels => {
                if !self.peace {
                    self.asks();
                    let delay = self.rng.waits(self.options.cancel_every);
                    self.after(delay, what);
                }
            }
            Happening::Breaks(fault) => self.breaks(fault),
            Happening::ServerThaws => {
                if let Some(server) = &mut self.server {
                    server.idle = order::Idle::default();
                }
                self.wake();
            }
            Happening::DiskIsFine => {
                self.disk_full = false;
                self.disk_slow = false;
                self.output_slow = false;
                self.files.set_full(false);
            }
            Happening::Thaws { at } => self.thaws(at),
            Happening::Heals { at } => self.heals(at),
            Happening::HasRoom { at } => self.machines[at].no_room = false,
            Happening::Peace => self.make_peace(),
            // Every instant that anybody named, whatever the clock showed then.
            Happening::InstantsCome => self.wall_offset_ms = 2 * 86_400_000,
        }
    }

    // The server.

    fn server_starts(&mut self) {
        if self.server.is_some() {
            return;
        }
        self.fate.fine();
        let store = ModelStore::open(&self.disk, &self.fate, &self.oracle);
        let verifier = Verifier::new(&self.token);
        self.files.revive();
        let server = Server::start(store, &self.files, &self.options, self.readings, verifier);
        self.lives += 1;
        let Some(mut server) = server else {
            // Its files cannot be opened: whoever starts it tries again.
            self.trace.say(self.now, || "server does not start".into());
            return self.after(S, Happening::ServerStarts);
        };
        server.life = self.lives;
        let epoch = server.life;
        self.trace.say(self.now, || {
            format!(
                "server starts, epoch {:?}, engine time {:?}",
                server.opening.epoch,
                server.clock.now()
            )
        });
        self.server = Some(server);
        let facts = self.oracle().facts;
        if let Some(server) = &mut self.server {
            server.facts_before = facts;
        }
        self.wake();
        let delay = self.rng.below(100 * MS);
        self.after(delay, Happening::Recovers { epoch });
        let beat = self.rng.below(2 * S);
        self.after(beat, Happening::Beat { epoch });
        if self.options.prints > 0 {
            self.after(S, Happening::KeepsHouse { epoch });
        }
    }

    /// The server is gone, with all it had in memory. `silent`: nobody is told, as when a machine goes.
    pub(crate) fn server_dies(&mut self, silent: bool, back_after: u64) {
        if self.server.take().is_none() {
            return;
        }
        self.trace.say(self.now, || "server dies".into());
        self.looks.clear();
        self.server_frozen_until = 0;
        for conn in self.network.all() {
            let told = (!silent).then(|| self.now + self.rng.between(self.options.latency));
            if let Some(at) = self.network.close(conn, End::Server, told) {
                let end = End::Worker;
                self.at(at, Happening::Deliver { conn, end });
            }
        }
        self.poll_answers();
        self.questions.clear();
        self.after(back_after, Happening::ServerStarts);
    }

    /// The machine under the server loses its power.
    pub(crate) fn power_goes(&mut self, back_after: u64) {
        self.trace.say(self.now, || "the power goes".into());
        self.disk.lose_power();
        self.oracle().lose_power();
        self.files.lose_power(&mut self.rng);
        self.server_dies(true, back_after);
        self.boot += 1;
        self.booted_at = self.now;
        let oracle = self.oracle.lock().unwrap_or_else(PoisonError::into_inner);
        self.promised.retain(|id| oracle.jobs.contains_key(id));
    }

    /// Puts on the heap whatever the server has to do by now.
    pub(crate) fn wake(&mut self) {
        let Some(server) = &mut self.server else {
            return;
        };
        let epoch = server.life;
        let mut due = Vec::new();
        if server.dispatch.has_something() {
            let at = self.now + self.rng.between(self.options.wake);
            if server.turn_at.is_none_or(|before| before > at) {
                server.turn_at = Some(at);
                due.push((at, Happening::Turn { epoch }));
            }
        }
        if !server.queries.is_empty() && server.read_at.is_none() {
            let at = self.now + self.rng.between((100, 20 * MS));
            server.read_at = Some(at);
            due.push((at, Happening::Read { epoch }));
        }
        if !server.posts.is_empty() && server.post_at.is_none() {
            let at = self.now + self.rng.between(self.options.wake);
            server.post_at = Some(at);
            due.push((at, Happening::Post { epoch }));
        }
        if server.keeper.has_something() && !server.storing {
            let at = self.now + self.rng.between(self.options.wake);
            if server.output_at.is_none_or(|before| before > at) {
                server.output_at = Some(at);
                due.push((at, Happening::Gathers { epoch }));
            }
        }
        if let Some(writer) = &server.writer
            && !server.committing
            && writer.has_something()
        {
            let at = self.now + self.rng.between(self.options.wake);
            if server.gather_at.is_none_or(|before| before > at) {
                server.gather_at = Some(at);
                due.push((at, Happening::Gather { epoch }));
            }
        }
        for (at, what) in due {
            self.at(at, what);
        }
    }

    fn turn(&mut self, epoch: u32, what: Happening) {
        let (now, check_every) = (self.now, self.options.check_every);
        let parts_check = self.options.parts_check;
        let without = self.machines.iter().filter(|machine| !machine.commands);
        let without: Vec<String> = without.map(|machine| machine.name.clone()).collect();
        let commands = |name: &str| !without.iter().any(|other| other == name);
        let cramped = self.machines.iter().filter(|machine| machine.no_room);
        let cramped: Vec<String> = cramped.map(|machine| machine.name.clone()).collect();
        let Some(server) = self.server(epoch, what) else {
            return;
        };
        if server.stopped || server.turn_at.is_none_or(|at| at > now) {
            return; // an earlier wake-up took its place
        }
        server.turns += 1;
        // A look costs what lives, so it is worth as many turns.
        let looks = server.turns >= server.check_at;
        if looks {
            let counts = server.dispatch.engine().counts();
            let live = counts.scheduled + counts.queued + counts.running + counts.cancelling;
            server.check_at = server.turns + check_every * (1 + live / 30);
        }
        server.dispatch.turn();
        let mut facts: Vec<Fact> = Vec::new();
        let mut count = 0;
        let gives_nothing = server.gives_nothing;
        server.gives_nothing = server.stopping.is_some();
        server.pass_facts(&mut |batch| {
            count += batch.len() as u64;
            let assigns = |fact: &Fact| matches!(fact, Fact::Assigned(_));
            assert!(
                !(gives_nothing && batch.iter().any(assigns)),
                "a stopping server gives work out"
            );
            if looks {
                facts.extend_from_slice(batch);
            }
        });
        if looks {
            if parts_check {
                server.dispatch.engine().check();
            }
            order::check(server.dispatch.engine(), &facts, &commands);
        }
        if !gives_nothing && (looks || server.turns.is_multiple_of(IDLE_TURNS)) {
            let mut idle = std::mem::take(&mut server.idle);
            let engine_now = server.clock.now();
            idle.check(
                server.dispatch.engine(),
                (now, engine_now),
                &commands,
                &cramped,
            );
            server.idle = idle;
        }
        let next = server.dispatch.next_turn();
        let at = now + next.since(server.clock.now()).micros();
        server.turn_at = Some(at.max(now + 1));
        let at = at.max(now + 1);
        self.tally.events += count;
        self.at(at, what);
        self.trace.say(now, || format!("turn: {count} facts"));
        self.poll_questions();
        self.poll_settled();
        self.wake();
    }

    fn gather(&mut self, epoch: u32, what: Happening) {
        let now = self.now;
        let Some(server) = self.server(epoch, what) else {
            return;
        };
        if server.committing || server.gather_at.is_none_or(|at| at > now) {
            return;
        }
        server.gather_at = None;
        let Some(writer) = &mut server.writer else {
            return;
        };
        if writer.gather() {
            server.committing = true;
            let slow = if self.disk_slow { 100 } else { 1 };
            let delay = self.rng.between(self.options.commit) * slow;
            self.after(delay, Happening::Commit { epoch });
            self.poll_answers();
            return;
        }
        self.poll_answers(); // a repeated request needs no commit
        self.rest(epoch);
    }

    fn commit(&mut self, epoch: u32, what: Happening) {
        let (unknown, full) = (self.unknown_next, self.disk_full);
        let dies = self.crash_in_commit;
        let kept = self.rng.chance(500);
        if self.server(epoch, what).is_none() {
            return;
        }
        self.crash_in_commit = false;
        self.unknown_next = false;
        if unknown || dies {
            self.fate.unknown(kept);
        } else if full {
            self.fate.full();
        } else {
            self.fate.fine();
        }
        self.tally.commits += 1;
        if let Some(server) = &mut self.server {
            server.committing = false;
            if let Some(writer) = &mut server.writer {
                writer.commit();
            }
        }
        self.trace.say(self.now, || {
            format!("commit, unknown {unknown}, crash {dies}, kept {kept}, full {full}")
        });
        if dies {
            let back = self.rng.waits(2 * S);
            return self.server_dies(false, back);
        }
        self.poll_answers();
        self.rest(epoch);
    }

    /// After a turn of the writer.
    fn rest(&mut self, epoch: u32) {
        let now = self.now;
        let wake = self.rng.between(self.options.wake);
        let Some(server) = &mut self.server else {
            return;
        };
        if server.doomed.load(Ordering::Relaxed) {
            // Its submitters have a moment to hear of it; then the process ends.
            let back = self.rng.waits(2 * S);
            return self.server_dies(false, back);
        }
        let Some(writer) = &mut server.writer else {
            return;
        };
        let at = match writer.rest() {
            Rest::GoOn => now + wake,
            Rest::Sleep(timeout) => {
                now + u64::try_from(timeout.as_micros()).unwrap_or(60 * S).max(1)
            }
            Rest::Die => return,
            Rest::Close => return self.server_has_stopped(),
        };
        server.gather_at = Some(at);
        self.at(at, Happening::Gather { epoch });
        self.wake();
    }

    fn say(&mut self, said: &mut Vec<Said>) {
        for what in said.drain(..) {
            let (conn, piece) = match what {
                Said::Bytes(conn, bytes) => {
                    self.look_at(conn, &bytes);
                    (conn, Some(Piece::Bytes(bytes)))
                }
                Said::Close(conn) => (conn, None),
            };
            let at = self.now + self.rng.between(self.options.latency);
            let arrives = match piece {
                Some(piece) => self.network.send(conn, End::Worker, piece, at),
                None => self.network.close(conn, End::Server, Some(at)),
            };
            if let Some(at) = arrives {
                let end = End::Worker;
                self.at(at, Happening::Deliver { conn, end });
            }
        }
    }

    /// What leaves the server must be true by now.
    fn look_at(&self, conn: ConnId, bytes: &[u8]) {
        let oracle = self.oracle();
        let worker = self.network.worker_of(conn);
        frames::each(bytes, &mut |said| match said {
            frames::Said::Assigns(fence) => oracle.assign_leaves(fence),
            frames::Said::Acks(through) => {
                let Some(machine) = worker.map(|at| &self.machines[at]) else {
                    return;
                };
                if machine.conn() != Some(conn) {
                    return;
                }
                let through = usize::try_from(through).expect("few");
                for (fence, history) in machine.reports.iter().take(through) {
                    oracle.ack_leaves(*fence, *history);
                }
            }
        });
    }

    fn deliver(&mut self, conn: ConnId, end: End, what: Happening) {
        if end == End::Server && self.server.is_some() && self.now < self.server_frozen_until {
            let until = self.server_frozen_until;
            return self.at(until, what);
        }
        while let Some(piece) = self.network.take(conn, end, self.now) {
            match end {
                End::Worker => {
                    if let Some(at) = self.network.worker_of(conn) {
                        self.machines[at].inbox.push((conn, piece));
                        self.wake_machine(at);
                    }
                }
                End::Server => self.hear(conn, piece),
            }
        }
    }

    fn hear(&mut self, conn: ConnId, piece: Piece) {
        let mut said = Vec::new();
        match (&mut self.server, piece) {
            (Some(server), Piece::Bytes(bytes)) if server.takes(conn) => {
                self.tally.events += server.hear(conn, &bytes, &mut said);
            }
            (Some(server), Piece::Closed) => {
                server.part(conn, &mut said);
                self.network.close(conn, End::Server, None);
            }
            (_, Piece::Bytes(_)) => said.push(Said::Close(conn)),
            (None, Piece::Closed) => {}
        }
        self.say(&mut said);
        self.wake();
    }

    // The workers.

    fn machine_starts(&mut self, at: usize) {
        let instance = self.next_instance;
        self.next_instance += 1;
        if self.machines[at].session.is_some() {
            return;
        }
        self.machines[at].boot(self.now, instance, &self.options);
        self.trace
            .say(self.now, || format!("w{at} starts, instance {instance}"));
        self.wake_machine(at);
    }

    /// The worker's process is gone.
    pub(crate) fn machine_dies(&mut self, at: usize, silent: bool, back_after: Option<u64>) {
        let machine = &mut self.machines[at];
        if machine.session.is_none() {
            return;
        }
        self.trace.say(self.now, || format!("w{at} dies"));
        machine.frozen = false;
        let held: Vec<Fence> = machine.children.keys().copied().collect();
        machine.orphan(&mut self.rng);
        self.oracle().unwatched(&held);
        let oracle = Arc::clone(&self.oracle);
        for conn in self.machines[at].die(&oracle) {
            let told = (!silent).then(|| self.now + self.rng.between(self.options.latency));
            if let Some(at) = self.network.close(conn, End::Worker, told) {
                let end = End::Server;
                self.at(at, Happening::Deliver { conn, end });
            }
        }
        if let Some(delay) = back_after {
            self.after(delay, Happening::MachineStarts { at });
        }
    }

    pub(crate) fn wake_machine(&mut self, at: usize) {
        let due = self.now + self.rng.between(self.options.wake);
        let machine = &mut self.machines[at];
        if machine.turn_at.is_none_or(|before| before > due) {
            machine.turn_at = Some(due);
            self.at(due, Happening::MachineTurn { at });
        }
    }

    fn machine_turn(&mut self, at: usize) {
        let machine = &mut self.machines[at];
        if machine.turn_at.is_some_and(|due| due > self.now) {
            return;
        }
        machine.turn_at = None;
        if machine.frozen || machine.session.is_none() {
            return;
        }
        let before = machine.events;
        let oracle = Arc::clone(&self.oracle);
        let check =
            self.options.parts_check && self.tally.events.is_multiple_of(self.options.check_every);
        let mut around = Around {
            now: self.now,
            rng: &mut self.rng,
            network: &mut self.network,
            oracle: &oracle,
            workload: &self.workload,
            token: &self.token,
            latency: self.options.latency,
            deliveries: &mut self.deliveries,
            endings: &mut self.endings,
            printings: &mut self.printings,
            next_serial: &mut self.next_serial,
            at_peace: self.peace,
            check,
        };
        let over = machine.turn(&mut around);
        self.tally.events += machine.events - before;
        let next = machine.next_turn(self.now);
        for (conn, end, when) in std::mem::take(&mut self.deliveries) {
            self.at(when, Happening::Deliver { conn, end });
        }
        for (serial, fence, when) in std::mem::take(&mut self.endings) {
            self.trace.say(self.now, || {
                format!("w{at}: {fence:?} is to end at {}", when / MS)
            });
            self.at(when, Happening::ChildEnds { at, serial, fence });
        }
        for (serial, fence, when) in std::mem::take(&mut self.printings) {
            self.at(when, Happening::Prints { at, serial, fence });
        }
        if over {
            let back = self.rng.waits(3 * S);
            return self.machine_dies(at, false, Some(back));
        }
        if let Some(next) = next {
            let due = next.max(self.now + 1);
            self.machines[at].turn_at = Some(due);
            self.at(due, Happening::MachineTurn { at });
        }
    }

    fn thaws(&mut self, at: usize) {
        if std::mem::take(&mut self.machines[at].frozen) {
            self.trace.say(self.now, || format!("w{at} goes on"));
            self.wake_machine(at);
        }
    }

    fn heals(&mut self, at: usize) {
        self.machines[at].partitioned = Held::default();
        for conn in self.network.hold(at, Held::default()) {
            for end in [End::Server, End::Worker] {
                self.after(self.options.latency.1, Happening::Deliver { conn, end });
            }
        }
    }

    // The people.

    fn submits(&mut self) {
        let durable = self.rng.chance(self.options.synced);
        let request = self.workload.request(self.wall(), durable, &mut self.rng);
        self.requests.push(request);
        self.unanswered += 1;
        self.submit(self.requests.len() - 1);
    }

    fn submit(&mut self, request: usize) {
        let epoch = self.epoch();
        let serving = self
            .server
            .as_ref()
            .filter(|server| server.writer.is_some() && server.stopping.is_none());
        let Some(server) = serving else {
            let delay = self.rng.waits(S);
            return self.after(delay, Happening::Repeats { request });
        };
        match server.submit.submit(self.requests[request].submission()) {
            Ok(answer) => self.asked.push(Asked {
                epoch,
                request,
                answer,
            }),
            Err(_) => {
                let delay = self.rng.waits(S);
                self.after(delay, Happening::Repeats { request });
            }
        }
        self.wake();
    }

    /// Looks for answers to submissions.
    pub(crate) fn poll_answers(&mut self) {
        let epoch = self.epoch();
        let mut at = 0;
        while at < self.asked.len() {
            let asked = &mut self.asked[at];
            let answer = match asked.answer.try_recv() {
                Ok(answer) => Some(answer),
                Err(oneshot::error::TryRecvError::Empty) if asked.epoch == epoch => {
                    at += 1;
                    continue;
                }
                Err(_) => None,
            };
            let request = self.asked.swap_remove(at).request;
            self.answered(request, answer);
        }
    }

    fn answered(&mut self, request: usize, answer: Option<Result<Accepted, SubmitError>>) {
        let wish = &self.requests[request];
        let has_key = wish.key.is_some();
        // An answer may be lost on its way.
        let lost = self.rng.chance(20);
        let again = match answer {
            Some(Ok(accepted)) if !lost => {
                let plans = wish.plans();
                assert_eq!(
                    u64::from(accepted.count),
                    plans.end - plans.start,
                    "the promise is about all of them"
                );
                self.oracle().accepted(accepted.first, plans);
                let ids = (0..u64::from(accepted.count)).map(|n| accepted.first.plus(n));
                self.promised.extend(ids);
                false
            }
            Some(Ok(_)) | None | Some(Err(SubmitError::Unknown(_))) => has_key,
            Some(Err(
                SubmitError::Refused(_)
                | SubmitError::Busy { .. }
                | SubmitError::QueueFull { .. }
                | SubmitError::Stopping,
            )) => true,
            Some(Err(SubmitError::KeyReused(record))) => {
                panic!("a key was used once and is said to be reused: {record:?}")
            }
        };
        if again {
            let delay = self.rng.waits(S);
            self.after(delay, Happening::Repeats { request });
        } else {
            self.unanswered -= 1;
        }
    }

    /// Somebody wants something of a job: that it stops, or to know when it ends.
    fn asks(&mut self) {
        let epoch = self.epoch();
        let newest = self.promised.len() as u64;
        if newest == 0 || self.server.as_ref().is_none_or(|s| s.writer.is_none()) {
            return;
        }
        // Mostly a young one: the old have ended.
        let back = self.rng.waits(10).min(newest - 1);
        let place = usize::try_from(newest - 1 - back).expect("a place in a list");
        let id = self.promised[place];
        let waits = self.rng.chance(300);
        let force = self.rng.chance(200);
        let question = if waits {
            let (reply, answer) = oneshot::channel();
            self.ask(Ask::Wait { job: id, reply });
            Question::Wait(answer)
        } else {
            let (reply, answer) = oneshot::channel();
            let was_there = {
                let mut oracle = self.oracle();
                oracle.asked_to_stop.insert(id);
                oracle.jobs.get(&id).is_some_and(|job| job.end.is_none())
            };
            self.trace
                .say(self.now, || format!("cancel {id:?}, force {force}"));
            self.ask(Ask::Cancel {
                job: id,
                force,
                note: None,
                reply,
            });
            Question::Cancel { was_there, answer }
        };
        self.questions.push((epoch, id, question));
        self.wake();
    }

    fn ask(&self, ask: Ask) {
        if let Some(server) = &self.server {
            server.tell.ask(ask);
        }
    }

    fn poll_questions(&mut self) {
        if self.questions.is_empty() {
            return;
        }
        let mut ended = Vec::new();
        let oracle = self.oracle.lock().unwrap_or_else(PoisonError::into_inner);
        self.questions
            .retain_mut(|(_, id, question)| match question {
                Question::Cancel { was_there, answer } => match answer.try_recv() {
                    Ok(answer) => {
                        oracle.cancel_answered(*id, answer, *was_there);
                        false
                    }
                    Err(error) => error == oneshot::error::TryRecvError::Empty,
                },
                Question::Wait(answer) => match answer.try_recv() {
                    Ok(Some(end)) => {
                        oracle.end_told(*id, end);
                        ended.push(*id);
                        false
                    }
                    Ok(None) => false,
                    Err(error) => error == oneshot::error::TryRecvError::Empty,
                },
            });
        drop(oracle);
        for id in ended {
            self.looks_at_the_log(id);
        }
    }

    // The end.

    /// Every fault is put right.
    fn make_peace(&mut self) {
        self.trace.say(self.now, || "peace".into());
        self.peace = true;
        self.after(5 * S, Happening::InstantsCome);
        self.disk_full = false;
        self.disk_slow = false;
        self.unknown_next = false;
        self.crash_in_commit = false;
        self.output_slow = false;
        self.files.make_peace();
        self.network.make_peace();
        self.server_frozen_until = 0;
        self.wake();
        if self.server.is_none() {
            self.after(0, Happening::ServerStarts);
        }
        for at in 0..self.machines.len() {
            self.heals(at);
            self.thaws(at);
            self.machines[at].no_room = false;
            let is_extra = at == self.options.workers;
            if is_extra || self.machines[at].is_stuck() {
                self.machine_dies(at, false, (!is_extra).then_some(S));
            }
            if !is_extra && self.machines[at].session.is_none() {
                self.after(S, Happening::MachineStarts { at });
            }
        }
        // At last somebody serves what nobody did, and says so when it connects anew.
        self.machines[0].queues.push(LATE.to_owned());
        if let Some(conn) = self.machines[0].conn() {
            self.cuts(conn, false);
        }
    }

    fn is_over(&self) -> bool {
        self.peace
            && self.unanswered == 0
            && self.questions.is_empty()
            && self.oracle().live_count() == 0
            && self.machines.iter().all(Machine::is_settled)
            && self
                .server
                .as_ref()
                .is_some_and(|server| server.writer.is_some() && server.is_idle())
    }

    fn whats_left(&self) -> String {
        let busy: Vec<&str> = self
            .machines
            .iter()
            .filter(|machine| !machine.is_settled())
            .map(|machine| machine.name.as_str())
            .collect();
        let oracle = self.oracle();
        let live: Vec<String> = oracle
            .live()
            .take(5)
            .map(|(id, job)| format!("{id:?}: {job:?}"))
            .collect();
        format!(
            "{} jobs live, {} requests unanswered, {} questions open, output not stored: {busy:?}\n{}",
            oracle.live_count(),
            self.unanswered,
            self.questions.len(),
            live.join("\n")
        )
    }

    /// Everything has come to rest: the store, the engine and what people were told must agree.
    fn finish(&mut self) {
        self.tally.virtual_us = self.now;
        let Some(server) = &mut self.server else {
            panic!("the server is there at the end");
        };
        server.dispatch.engine().check();
        let counts = server.dispatch.engine().counts();
        assert_eq!(counts, hostler_engine::Counts::default(), "nothing lives");
        let oracle = self.oracle.lock().unwrap_or_else(PoisonError::into_inner);
        self.tally.jobs = oracle.submitted;
        for (id, job) in &oracle.jobs {
            let found = server.reader.job(*id).expect("the disk can be read");
            let Lookup::Found(record) = found else {
                panic!("{id:?} is not in the store");
            };
            oracle.same_end(*id, record.end.as_ref());
            if let Some(end) = &record.end {
                oracle.same_bytes(*id, end);
            }
            assert!(
                job.end.is_some(),
                "{id:?} was accepted and has not ended (P1)"
            );
        }
        for (plan, made) in &oracle.made {
            assert!(
                made.len() <= 1,
                "plan {plan} was asked for once and became {made:?}"
            );
        }
        drop(oracle);
        self.compare_output();
        let oracle = self.oracle();
        for id in &self.promised {
            assert!(oracle.jobs.contains_key(id), "{id:?} was promised (P1)");
        }
    }
}
