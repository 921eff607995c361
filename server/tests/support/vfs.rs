//! A disk for SQLite that tests can hurt: files in memory, as SQLite's own test VFS has them.
//!
//! What is written is seen at once, as by the operating system's cache; what is synced survives
//! [`FaultyDisk::cut_power`]. Of the rest each 512 bytes are kept, lost or garbled, as the seed has it. The k-th write,
//! sync, open or the like can be made to fail, once or for as long as the fault lasts; and what a failed sync did not
//! put on disk no later sync does either, as Linux has it.
//!
//! Not here: what must hold after all that (`power.rs`).
#![expect(unsafe_code, reason = "SQLite's file layer is a table of C functions")]

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use rusqlite::ffi;

/// What an unsynced write may tear into.
const SECTOR_BYTES: usize = 512;
const SHM_LOCKS: usize = 8;

/// What SQLite asks of a disk, so far as it can be refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Open,
    Write,
    Sync,
    Truncate,
    Map,
}

/// How one of them fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// An I/O error.
    Io,
    /// No space left; syncs go through.
    Full,
    /// The file system takes no writes any more, and does not begin one; syncs go through.
    ReadOnly,
}

/// The k-th operation fails, and those after it if it lasts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    pub(crate) at: u64,
    pub(crate) trouble: Trouble,
    pub(crate) lasts: bool,
}

/// A disk, registered with SQLite under a name of its own.
pub(crate) struct FaultyDisk {
    shared: &'static Shared,
}

struct Shared {
    name: CString,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    files: BTreeMap<String, File>,
    /// Grows with each power cut: what was open before is dead.
    generation: u64,
    ops: Vec<Op>,
    fault: Option<Fault>,
    next_handle: u64,
    /// Shared memory that is nobody's any more. Kept: when the power goes, a thread may be writing into it.
    dead_regions: Vec<Box<[u8]>>,
}

#[derive(Default)]
struct File {
    /// As a reader sees it.
    live: Vec<u8>,
    /// As it is on disk; none until the file was first synced.
    durable: Option<Vec<u8>>,
    /// Since the last sync.
    unsynced: Vec<Change>,
    /// By handle.
    locks: BTreeMap<u64, c_int>,
    regions: Vec<Box<[u8]>>,
    shm: [ShmLock; SHM_LOCKS],
}

enum Change {
    Write { at: usize, bytes: Vec<u8> },
    Length(usize),
}

#[derive(Default)]
struct ShmLock {
    shared: Vec<u64>,
    exclusive: Option<u64>,
}

/// A file SQLite has open.
#[repr(C)]
struct Handle {
    base: ffi::sqlite3_file,
    inner: *mut Inner,
}

struct Inner {
    disk: &'static Shared,
    name: String,
    generation: u64,
    id: u64,
}

static NAMES: AtomicU64 = AtomicU64::new(1);

impl FaultyDisk {
    /// An empty disk. It is never given back: SQLite keeps pointing at it.
    pub(crate) fn new() -> Self {
        let number = NAMES.fetch_add(1, Ordering::Relaxed);
        let shared: &'static Shared = Box::leak(Box::new(Shared {
            name: CString::new(format!("faulty-{number}")).unwrap(),
            state: Mutex::default(),
        }));
        register(shared);
        Self { shared }
    }

    /// What to call it when opening.
    pub(crate) fn name(&self) -> &str {
        self.shared.name.to_str().unwrap()
    }

    /// What has been asked of it so far.
    pub(crate) fn ops(&self) -> Vec<Op> {
        self.state().ops.clone()
    }

    /// Makes an operation fail, counted from now, the next one being 1.
    pub(crate) fn fault(&self, fault: Fault) {
        let mut state = self.state();
        let now = state.ops.len() as u64;
        state.fault = Some(Fault {
            at: fault.at + now,
            ..fault
        });
    }

    /// Nothing fails any more.
    pub(crate) fn mend(&self) {
        self.state().fault = None;
    }

    /// The power goes: what is open is dead, and of what was not synced some is kept, some lost, some garbled.
    pub(crate) fn cut_power(&self, seed: u64) {
        let mut dice = Dice(seed);
        let state = &mut *self.state();
        state.generation += 1;
        state.files.retain(|_, file| {
            state.dead_regions.append(&mut file.regions);
            let unsynced = std::mem::take(&mut file.unsynced);
            // A file nobody synced may be there by its name or not.
            let mut on_disk = match file.durable.take() {
                Some(bytes) => bytes,
                None if dice.roll(2) == 0 => return false,
                None => Vec::new(),
            };
            for change in &unsynced {
                change.tear(&mut on_disk, &mut dice);
            }
            *file = File {
                live: on_disk.clone(),
                durable: Some(on_disk),
                ..File::default()
            };
            true
        });
    }

    /// Writes what is on it into a real directory, without the shared index, which dies with the processes.
    pub(crate) fn copy_to(&self, dir: &Path) {
        for (name, file) in &self.state().files {
            let name = Path::new(name).file_name().unwrap();
            std::fs::write(dir.join(name), &file.live).unwrap();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl State {
    /// Counts an operation; says whether it is to fail, and how.
    fn ask(&mut self, op: Op) -> Option<Trouble> {
        self.ops.push(op);
        let now = self.ops.len() as u64;
        let fault = self.fault?;
        let hit = now == fault.at || (fault.lasts && now >= fault.at);
        // A full disk still syncs, shortens and opens what is there.
        let fits = fault.trouble == Trouble::Io || matches!(op, Op::Write | Op::Map);
        (hit && fits).then_some(fault.trouble)
    }
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Length(length) => bytes.truncate(*length),
            Self::Write { at, bytes: new } => put(bytes, *at, new),
        }
    }

    fn tear(&self, bytes: &mut Vec<u8>, dice: &mut Dice) {
        match self {
            Self::Length(length) if dice.roll(2) == 0 => bytes.truncate(*length),
            Self::Length(_) => {}
            Self::Write { at, bytes: new } => {
                // Whole writes fare alike as often as not.
                let whole = dice.roll(4);
                for (n, sector) in new.chunks(SECTOR_BYTES).enumerate() {
                    let fate = if whole < 2 { whole } else { dice.roll(3) };
                    let at = at + n * SECTOR_BYTES;
                    match fate {
                        0 => {}
                        1 => put(bytes, at, sector),
                        _ => {
                            let garbled: Vec<u8> =
                                sector.iter().map(|byte| byte ^ dice.byte()).collect();
                            put(bytes, at, &garbled);
                        }
                    }
                }
            }
        }
    }
}

fn put(bytes: &mut Vec<u8>, at: usize, new: &[u8]) {
    if bytes.len() < at + new.len() {
        bytes.resize(at + new.len(), 0);
    }
    bytes[at..at + new.len()].copy_from_slice(new);
}

/// A small generator, the same for the same seed.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut n = self.0;
        n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        n ^ (n >> 31)
    }

    fn roll(&mut self, sides: u64) -> u64 {
        self.next() % sides
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }
}

fn register(shared: &'static Shared) {
    // SAFETY: the default VFS is there once SQLite is, and is never unregistered.
    let base = unsafe {
        assert_eq!(ffi::sqlite3_initialize(), ffi::SQLITE_OK);
        *ffi::sqlite3_vfs_find(ptr::null())
    };
    // Clock, sleep and random bytes stay the system's; those functions ignore the VFS they are given.
    let vfs = Box::leak(Box::new(ffi::sqlite3_vfs {
        szOsFile: c_int::try_from(size_of::<Handle>()).unwrap(),
        pNext: ptr::null_mut(),
        zName: shared.name.as_ptr(),
        pAppData: ptr::from_ref(shared).cast_mut().cast(),
        xOpen: Some(open),
        xDelete: Some(delete),
        xAccess: Some(access),
        xFullPathname: Some(full_pathname),
        ..base
    }));
    // SAFETY: both the table and its name live for ever.
    let code = unsafe { ffi::sqlite3_vfs_register(vfs, 0) };
    assert_eq!(code, ffi::SQLITE_OK);
}

static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    iVersion: 2,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    xFetch: None,
    xUnfetch: None,
};

fn disk_of(vfs: *mut ffi::sqlite3_vfs) -> &'static Shared {
    // SAFETY: SQLite passes the table it was given, whose data is a `Shared` that lives for ever.
    unsafe { &*(*vfs).pAppData.cast::<Shared>() }
}

fn text(name: *const c_char) -> String {
    // SAFETY: SQLite passes a name that ends with 0 and lives through the call.
    unsafe { CStr::from_ptr(name) }
        .to_string_lossy()
        .into_owned()
}

fn inner_of<'a>(file: *mut ffi::sqlite3_file) -> &'a Inner {
    // SAFETY: SQLite passes a file that `open` has filled in and `close` has not yet emptied.
    unsafe { &*(*file.cast::<Handle>()).inner }
}

/// Runs `work` on an open file; after a power cut nothing works.
fn on(file: *mut ffi::sqlite3_file, work: impl FnOnce(&mut State, &str, u64) -> c_int) -> c_int {
    let inner = inner_of(file);
    let mut state = inner.disk.state();
    if state.generation != inner.generation {
        return ffi::SQLITE_IOERR;
    }
    work(&mut state, &inner.name, inner.id)
}

unsafe extern "C" fn open(
    vfs: *mut ffi::sqlite3_vfs,
    name: ffi::sqlite3_filename,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    let disk = disk_of(vfs);
    let handle = file.cast::<Handle>();
    // SAFETY: SQLite gives room for a `Handle`. Without methods it does not close what failed to open.
    unsafe { (*handle).base.pMethods = ptr::null() };
    let mut state = disk.state();
    if state.ask(Op::Open).is_some() {
        return ffi::SQLITE_CANTOPEN;
    }
    let name = if name.is_null() {
        format!("temporary-{}", state.next_handle)
    } else {
        text(name)
    };
    if flags & ffi::SQLITE_OPEN_CREATE == 0 && !state.files.contains_key(&name) {
        return ffi::SQLITE_CANTOPEN;
    }
    state.files.entry(name.clone()).or_default();
    state.next_handle += 1;
    let inner = Box::new(Inner {
        disk,
        name,
        generation: state.generation,
        id: state.next_handle,
    });
    // SAFETY: as above; the out parameter may be null.
    unsafe {
        (*handle).inner = Box::into_raw(inner);
        (*handle).base.pMethods = &raw const METHODS;
        if !out_flags.is_null() {
            *out_flags = flags;
        }
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    on(file, |state, name, id| {
        if let Some(file) = state.files.get_mut(name) {
            file.locks.remove(&id);
        }
        ffi::SQLITE_OK
    });
    // SAFETY: made by `open`, and SQLite closes a file once.
    drop(unsafe { Box::from_raw((*file.cast::<Handle>()).inner) });
    ffi::SQLITE_OK
}

unsafe extern "C" fn read(
    file: *mut ffi::sqlite3_file,
    into: *mut c_void,
    amount: c_int,
    at: ffi::sqlite3_int64,
) -> c_int {
    let (amount, at) = (range(amount.into()), range(at));
    // SAFETY: SQLite gives room for `amount` bytes.
    let into = unsafe { std::slice::from_raw_parts_mut(into.cast::<u8>(), amount) };
    on(file, |state, name, _| {
        let live = &state.files[name].live;
        let there = live.get(at..).unwrap_or_default();
        let there = &there[..there.len().min(amount)];
        into.fill(0);
        into[..there.len()].copy_from_slice(there);
        if there.len() == amount {
            ffi::SQLITE_OK
        } else {
            ffi::SQLITE_IOERR_SHORT_READ
        }
    })
}

unsafe extern "C" fn write(
    file: *mut ffi::sqlite3_file,
    from: *const c_void,
    amount: c_int,
    at: ffi::sqlite3_int64,
) -> c_int {
    let (amount, at) = (range(amount.into()), range(at));
    // SAFETY: SQLite gives `amount` bytes.
    let bytes = unsafe { std::slice::from_raw_parts(from.cast::<u8>(), amount) };
    on(file, |state, name, _| {
        let trouble = state.ask(Op::Write);
        // A write that fails has often done half of its work.
        let bytes = match trouble {
            None => bytes,
            Some(Trouble::Io | Trouble::Full) => &bytes[..amount / 2],
            Some(Trouble::ReadOnly) => return ffi::SQLITE_READONLY,
        };
        state.change(
            name,
            Change::Write {
                at,
                bytes: bytes.to_vec(),
            },
        );
        match trouble {
            None => ffi::SQLITE_OK,
            Some(Trouble::Io) => ffi::SQLITE_IOERR_WRITE,
            Some(Trouble::Full) => ffi::SQLITE_FULL,
            Some(Trouble::ReadOnly) => ffi::SQLITE_READONLY,
        }
    })
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, length: ffi::sqlite3_int64) -> c_int {
    let length = range(length);
    on(file, |state, name, _| {
        if state.ask(Op::Truncate).is_some() {
            return ffi::SQLITE_IOERR_TRUNCATE;
        }
        state.change(name, Change::Length(length));
        ffi::SQLITE_OK
    })
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, _flags: c_int) -> c_int {
    on(file, |state, name, _| {
        let trouble = state.ask(Op::Sync);
        let Some(file) = state.files.get_mut(name) else {
            return ffi::SQLITE_IOERR_FSYNC;
        };
        let unsynced = std::mem::take(&mut file.unsynced);
        if trouble.is_some() {
            // The cache counts these pages as clean now: they are on no disk, and no later sync writes them.
            return ffi::SQLITE_IOERR_FSYNC;
        }
        let durable = file.durable.get_or_insert_default();
        unsynced.iter().for_each(|change| change.apply(durable));
        ffi::SQLITE_OK
    })
}

impl State {
    fn change(&mut self, name: &str, change: Change) {
        let file = self.files.entry(name.to_owned()).or_default();
        change.apply(&mut file.live);
        file.unsynced.push(change);
    }
}

unsafe extern "C" fn file_size(
    file: *mut ffi::sqlite3_file,
    size: *mut ffi::sqlite3_int64,
) -> c_int {
    on(file, |state, name, _| {
        let length = state.files[name].live.len();
        // SAFETY: SQLite gives a place for the answer.
        unsafe { *size = i64::try_from(length).unwrap() };
        ffi::SQLITE_OK
    })
}

unsafe extern "C" fn lock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    on(file, |state, name, id| {
        let locks = &mut state.files.get_mut(name).unwrap().locks;
        let others = locks.iter().filter(|(holder, _)| **holder != id);
        let highest = others.map(|(_, level)| *level).max().unwrap_or(0);
        let busy = if level >= ffi::SQLITE_LOCK_EXCLUSIVE {
            highest >= ffi::SQLITE_LOCK_SHARED
        } else if level >= ffi::SQLITE_LOCK_RESERVED {
            highest >= ffi::SQLITE_LOCK_RESERVED
        } else {
            highest >= ffi::SQLITE_LOCK_PENDING
        };
        if busy {
            return ffi::SQLITE_BUSY;
        }
        let mine = locks.entry(id).or_default();
        *mine = level.max(*mine);
        ffi::SQLITE_OK
    })
}

unsafe extern "C" fn unlock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    on(file, |state, name, id| {
        let locks = &mut state.files.get_mut(name).unwrap().locks;
        if level == ffi::SQLITE_LOCK_NONE {
            locks.remove(&id);
        } else {
            locks.insert(id, level);
        }
        ffi::SQLITE_OK
    })
}

unsafe extern "C" fn check_reserved_lock(
    file: *mut ffi::sqlite3_file,
    answer: *mut c_int,
) -> c_int {
    on(file, |state, name, _| {
        let mut levels = state.files[name].locks.values();
        let held = levels.any(|level| *level >= ffi::SQLITE_LOCK_RESERVED);
        // SAFETY: SQLite gives a place for the answer.
        unsafe { *answer = held.into() };
        ffi::SQLITE_OK
    })
}

unsafe extern "C" fn file_control(
    _file: *mut ffi::sqlite3_file,
    _op: c_int,
    _argument: *mut c_void,
) -> c_int {
    ffi::SQLITE_NOTFOUND
}

unsafe extern "C" fn sector_size(_file: *mut ffi::sqlite3_file) -> c_int {
    4_096
}

/// As the system's own files: a write harms nothing beside it.
unsafe extern "C" fn device_characteristics(_file: *mut ffi::sqlite3_file) -> c_int {
    ffi::SQLITE_IOCAP_POWERSAFE_OVERWRITE
}

unsafe extern "C" fn shm_map(
    file: *mut ffi::sqlite3_file,
    region: c_int,
    bytes: c_int,
    extend: c_int,
    out: *mut *mut c_void,
) -> c_int {
    let (region, bytes) = (range(region.into()), range(bytes.into()));
    on(file, |state, name, _| {
        // SAFETY: SQLite gives a place for the answer.
        unsafe { *out = ptr::null_mut() };
        let there = state.files[name].regions.len();
        if region >= there && extend == 0 {
            return ffi::SQLITE_OK;
        }
        if region >= there && state.ask(Op::Map).is_some() {
            return ffi::SQLITE_IOERR_SHMSIZE;
        }
        let regions = &mut state.files.get_mut(name).unwrap().regions;
        while regions.len() <= region {
            regions.push(vec![0; bytes].into());
        }
        // SAFETY: regions are boxed, and what was one is kept for as long as the disk.
        unsafe { *out = regions[region].as_mut_ptr().cast() };
        ffi::SQLITE_OK
    })
}

unsafe extern "C" fn shm_lock(
    file: *mut ffi::sqlite3_file,
    first: c_int,
    count: c_int,
    flags: c_int,
) -> c_int {
    let places = range(first.into())..range((first + count).into());
    on(file, |state, name, id| {
        let locks = &mut state.files.get_mut(name).unwrap().shm[places];
        let exclusive = flags & ffi::SQLITE_SHM_EXCLUSIVE != 0;
        if flags & ffi::SQLITE_SHM_UNLOCK != 0 {
            for lock in locks {
                if exclusive {
                    lock.exclusive = lock.exclusive.filter(|holder| *holder != id);
                } else {
                    lock.shared.retain(|holder| *holder != id);
                }
            }
            return ffi::SQLITE_OK;
        }
        let busy = |lock: &ShmLock| {
            lock.exclusive.is_some_and(|holder| holder != id)
                || (exclusive && lock.shared.iter().any(|holder| *holder != id))
        };
        if locks.iter().any(busy) {
            return ffi::SQLITE_BUSY;
        }
        for lock in locks {
            if exclusive {
                lock.exclusive = Some(id);
            } else {
                lock.shared.push(id);
            }
        }
        ffi::SQLITE_OK
    })
}

unsafe extern "C" fn shm_barrier(_file: *mut ffi::sqlite3_file) {
    std::sync::atomic::fence(Ordering::SeqCst);
}

unsafe extern "C" fn shm_unmap(file: *mut ffi::sqlite3_file, delete: c_int) -> c_int {
    on(file, |state, name, id| {
        let file = state.files.get_mut(name).unwrap();
        for lock in &mut file.shm {
            lock.shared.retain(|holder| *holder != id);
            lock.exclusive = lock.exclusive.filter(|holder| *holder != id);
        }
        if delete != 0 {
            state.dead_regions.append(&mut file.regions);
        }
        ffi::SQLITE_OK
    })
}

unsafe extern "C" fn delete(
    vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    _sync_dir: c_int,
) -> c_int {
    let gone = disk_of(vfs).state().files.remove(&text(name)).is_some();
    if gone {
        ffi::SQLITE_OK
    } else {
        ffi::SQLITE_IOERR_DELETE_NOENT
    }
}

unsafe extern "C" fn access(
    vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    _flags: c_int,
    answer: *mut c_int,
) -> c_int {
    let state = disk_of(vfs).state();
    let file = state.files.get(&text(name));
    // SAFETY: SQLite gives a place for the answer. An empty log is as good as none, as with the system's files.
    unsafe { *answer = file.is_some_and(|file| !file.live.is_empty()).into() };
    ffi::SQLITE_OK
}

unsafe extern "C" fn full_pathname(
    _vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    room: c_int,
    out: *mut c_char,
) -> c_int {
    // SAFETY: SQLite passes a name that ends with 0, and `room` bytes for the answer.
    unsafe {
        let bytes = CStr::from_ptr(name).to_bytes_with_nul();
        if bytes.len() > range(room.into()) {
            return ffi::SQLITE_CANTOPEN;
        }
        ptr::copy_nonoverlapping(bytes.as_ptr().cast(), out, bytes.len());
    }
    ffi::SQLITE_OK
}

/// Sizes and places SQLite speaks of are never negative.
fn range(n: i64) -> usize {
    usize::try_from(n).unwrap()
}
