//! Everything that goes wrong, and what it takes to be put right.

use hostler_wire::Fence;

use crate::network::{ConnId, End, Held};
use crate::options::{MS, S};
use crate::outlet::Outlet;
use crate::world::{Happening, World};

/// After so long the system says that nobody answers any more (`worker::link`).
const KEEPALIVE: u64 = 60 * S;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// The server dies, at any moment, and starts again.
    ServerCrash,
    /// It dies while a commit is under way, which then is there, or not.
    CrashInCommit,
    /// The machine loses its power: what was not synced is gone.
    PowerLoss,
    /// All of the server stands still for a while.
    ServerFreeze,
    /// Commits are refused for a while.
    DiskFull,
    /// Commits take a hundred times as long for a while.
    DiskSlow,
    /// A commit's outcome is unknown.
    CommitUnknown,
    /// A worker dies and starts again; its children die or live on.
    WorkerCrash,
    /// A worker stands still for a while: a zombie if that is long.
    WorkerFreeze,
    /// A worker is told to stop; once in peace, or twice. It starts again.
    WorkerDrain,
    /// A worker finds no room for processes for a while.
    NoRoom,
    /// A connection breaks, in mid-frame.
    Cut,
    /// A connection breaks and one end is not told.
    HalfOpen,
    /// A worker's network holds everything back for a while.
    Partition,
    /// The same in one direction only.
    OneWay,
    /// A bit is turned over on its way.
    Flip,
    /// The wall clock is moved, by up to a day.
    WallJump,
    /// A second worker comes with a name that is in use.
    NameInUse,
    /// The disk of output takes nothing for a while.
    OutputFull,
    /// A sync of output fails.
    OutputSyncFails,
    /// The server dies in the midst of a write or a sync of output.
    CrashInOutput,
    /// Syncs of output take a hundred times as long for a while.
    OutputSlow,
    /// An output connection breaks, in mid-frame.
    CutPipe,
    /// The server is told to stop, in order, and starts again.
    ServerStop,
    /// An older copy of everything the server keeps takes the place of what is there.
    BackupRestored,
}

impl Fault {
    pub(crate) const ALL: [Self; 25] = [
        Self::ServerCrash,
        Self::CrashInCommit,
        Self::PowerLoss,
        Self::ServerFreeze,
        Self::DiskFull,
        Self::DiskSlow,
        Self::CommitUnknown,
        Self::WorkerCrash,
        Self::WorkerFreeze,
        Self::WorkerDrain,
        Self::NoRoom,
        Self::Cut,
        Self::HalfOpen,
        Self::Partition,
        Self::OneWay,
        Self::Flip,
        Self::WallJump,
        Self::NameInUse,
        Self::OutputFull,
        Self::OutputSyncFails,
        Self::CrashInOutput,
        Self::OutputSlow,
        Self::CutPipe,
        Self::ServerStop,
        Self::BackupRestored,
    ];

    /// Its place in tables.
    pub(crate) fn at(self) -> usize {
        self as usize
    }
}

impl World {
    /// Something goes wrong, and will again.
    pub(crate) fn breaks(&mut self, fault: Fault) {
        if self.peace {
            return;
        }
        let every = self.options.faults[fault.at()];
        let delay = self.rng.waits(every).max(1);
        self.after(delay, Happening::Breaks(fault));
        if self.injures(fault) {
            self.tally.faults[fault.at()] += 1;
            self.trace.say(self.now, || format!("fault: {fault:?}"));
        }
    }

    /// False if there is nothing to injure.
    fn injures(&mut self, fault: Fault) -> bool {
        let at = usize::try_from(self.rng.below(self.options.workers as u64)).expect("few");
        let a_while = self
            .rng
            .waits(self.rng.clone().pick(&[100 * MS, 2 * S, 10 * S, 40 * S]));
        match fault {
            Fault::ServerCrash => {
                let (silent, was_there) = (self.rng.chance(200), self.server.is_some());
                self.server_dies(silent, a_while);
                was_there
            }
            Fault::PowerLoss => {
                let was_there = self.server.is_some();
                if was_there {
                    self.power_goes(a_while);
                }
                was_there
            }
            Fault::CrashInCommit => {
                self.crash_in_commit = true;
                true
            }
            Fault::ServerFreeze => {
                self.server_frozen_until = self.now + a_while;
                self.after(a_while, Happening::ServerThaws);
                self.server.is_some()
            }
            Fault::DiskFull | Fault::DiskSlow => {
                if fault == Fault::DiskFull {
                    self.disk_full = true;
                } else {
                    self.disk_slow = true;
                }
                self.after(a_while, Happening::DiskIsFine);
                true
            }
            Fault::CommitUnknown => {
                self.unknown_next = true;
                true
            }
            Fault::WorkerCrash => {
                let (silent, was_there) = (self.rng.chance(300), self.is_up(at));
                self.machine_dies(at, silent, Some(a_while));
                was_there
            }
            Fault::WorkerFreeze => {
                let was_there = self.is_up(at);
                self.machines[at].frozen = was_there;
                self.machines[at].was_frozen |= was_there;
                let held: Vec<Fence> = self.machines[at].children.keys().copied().collect();
                self.oracle().unwatched(&held);
                self.after(a_while, Happening::Thaws { at });
                was_there
            }
            Fault::WorkerDrain => {
                self.machines[at].drains += if self.rng.chance(300) { 2 } else { 1 };
                self.wake_machine(at);
                self.is_up(at)
            }
            Fault::NoRoom => {
                self.machines[at].no_room = true;
                self.after(a_while, Happening::HasRoom { at });
                true
            }
            Fault::Cut | Fault::HalfOpen => {
                let conn = self.machines[at].conn();
                conn.is_some_and(|conn| self.cuts(conn, fault == Fault::HalfOpen))
            }
            Fault::CutPipe => {
                let outlet = self.machines[at].outlet.as_ref();
                let half_open = self.rng.chance(200);
                let conn = outlet.and_then(Outlet::conn);
                conn.is_some_and(|conn| self.cuts(conn, half_open))
            }
            Fault::ServerStop => {
                let was_there = self.server.as_ref().is_some_and(|s| s.writer.is_some());
                if was_there {
                    self.server_stops();
                }
                was_there
            }
            Fault::BackupRestored => {
                if self.backup.is_none() || self.rng.chance(300) {
                    self.take_backup();
                    return false;
                }
                self.restore_backup(a_while);
                true
            }
            Fault::OutputFull => {
                self.files.set_full(true);
                self.after(a_while, Happening::DiskIsFine);
                self.options.prints > 0
            }
            Fault::OutputSlow => {
                self.output_slow = true;
                self.after(a_while, Happening::DiskIsFine);
                self.options.prints > 0
            }
            Fault::OutputSyncFails => {
                self.files.fail_next_sync();
                self.options.prints > 0
            }
            Fault::CrashInOutput => {
                let operations = self.rng.below(12);
                self.files.die_in(operations);
                self.options.prints > 0
            }
            Fault::Partition => {
                self.hold(at, Held::BOTH, a_while);
                true
            }
            Fault::OneWay => {
                let to_server = self.rng.chance(600);
                let to_worker = !to_server;
                self.hold(
                    at,
                    Held {
                        to_server,
                        to_worker,
                    },
                    a_while,
                );
                true
            }
            Fault::Flip => {
                let word = self.rng.next();
                self.network.flip_next(at, word);
                self.is_up(at)
            }
            Fault::WallJump => {
                let day = 86_400_000_i64;
                let by = i64::try_from(self.rng.below(2 * day.unsigned_abs())).expect("two days");
                // It never wanders further than that from where it began.
                self.wall_offset_ms = by - day;
                true
            }
            Fault::NameInUse => {
                let extra = self.options.workers;
                if self.is_up(extra) {
                    self.machine_dies(extra, false, None);
                } else {
                    self.after(0, Happening::MachineStarts { at: extra });
                }
                true
            }
        }
    }

    fn is_up(&self, at: usize) -> bool {
        self.machines[at].session.is_some()
    }

    fn hold(&mut self, at: usize, held: Held, a_while: u64) {
        self.machines[at].partitioned = held;
        self.network.hold(at, held);
        self.after(a_while, Happening::Heals { at });
    }

    /// A connection breaks.
    pub(crate) fn cuts(&mut self, conn: ConnId, half_open: bool) -> bool {
        let is_pipe = self.machines.iter().any(|machine| {
            let outlet = machine.outlet.as_ref();
            outlet.and_then(Outlet::conn) == Some(conn)
        });
        let unaware = self.rng.pick(&[End::Server, End::Worker]);
        let mut told = [End::Server, End::Worker].map(|end| {
            let at = self.now + self.rng.between(self.options.latency);
            (end, Some(at))
        });
        if half_open {
            for (end, at) in &mut told {
                if *end == unaware {
                    // A worker that waits for acknowledgements of output has nothing else to notice it by.
                    let notices = is_pipe && *end == End::Worker;
                    *at = notices.then_some(self.now + KEEPALIVE);
                }
            }
        }
        self.network.cut(conn, told, &mut self.rng);
        let last = self.now + self.options.latency.1;
        for (end, told_at) in told {
            for at in [Some(last), told_at].into_iter().flatten() {
                self.at(at, Happening::Deliver { conn, end });
            }
        }
        true
    }
}
