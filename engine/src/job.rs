//! One live job, its phases, and where all of them are kept.
//!
//! A record is 28 bytes and lies in a page of 256 consecutive ids; pages lie in folders of 1024. So finding a job costs
//! three steps, walking them goes in id order, a batch's jobs are neighbours, and an old job that lives on among
//! millions of finished ones holds one page. What few jobs have (limits, a pending end's askers) is kept beside, not
//! in the record.
//!
//! `Jobs::turn` is the only function that changes a phase, so the counts by state cannot drift.

use std::cell::Cell;

use hostler_wire::{JobId, JobState, Priority, Reason};

use crate::engine::Counts;

/// A job that has not ended, or whose end is not committed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Job {
    phase: Phase,
    /// Its place in the table of classes.
    pub(crate) class: u32,
    /// The tag of the worker it should rather not meet again; 0 for none.
    pub(crate) avoid: u32,
    /// Highest attempt ever assigned; 0 for none.
    pub(crate) attempt: u16,
    pub(crate) failures: u16,
    pub(crate) losses: u16,
    pub(crate) later: u16,
    pub(crate) priority: Priority,
    flags: u8,
}

/// What a job is doing. `u32`s are places in the table of attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// There is no such job.
    Absent,
    /// Waits for a moment.
    Scheduled(Wait),
    /// Waits for a slot.
    Queued,
    /// An attempt is out.
    Running(u32),
    /// An attempt is out and told to end.
    Cancelling(u32),
    /// Its end awaits commit; until then it shows as it was.
    Ending(Before),
}

/// Why a job waits for a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    Delayed,
    BackOff,
    Later,
    /// Its worker vanished, and must be given time to kill the attempt (`stop_on_partition`).
    WorkerLost,
}

/// The state a job had before its pending end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Before {
    Scheduled,
    Queued,
    Running,
    Cancelling,
}

/// Yes-or-no facts of a job.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(crate) enum Flag {
    /// Its body is in memory.
    Resident = 1,
    /// Its body was asked for.
    Fetching = 2,
    /// An attempt has started: it cannot expire.
    EverStarted = 4,
    /// Its batch has a delay, an expiry or a deadline.
    Limited = 8,
}

impl Job {
    const ABSENT: Self = Self {
        phase: Phase::Absent,
        class: 0,
        avoid: 0,
        attempt: 0,
        failures: 0,
        losses: 0,
        later: 0,
        priority: Priority::NORMAL,
        flags: 0,
    };

    /// A job to which nothing has happened yet. It is absent until it is put among the others.
    pub(crate) const fn new(class: u32, priority: Priority) -> Self {
        Self {
            class,
            priority,
            ..Self::ABSENT
        }
    }

    pub(crate) const fn phase(&self) -> Phase {
        self.phase
    }

    pub(crate) const fn has(&self, flag: Flag) -> bool {
        self.flags & flag as u8 != 0
    }

    pub(crate) const fn set(&mut self, flag: Flag) {
        self.flags |= flag as u8;
    }

    pub(crate) const fn unset(&mut self, flag: Flag) {
        self.flags &= !(flag as u8);
    }

    /// The place of its current attempt.
    pub(crate) const fn held(&self) -> Option<u32> {
        match self.phase {
            Phase::Running(held) | Phase::Cancelling(held) => Some(held),
            Phase::Absent | Phase::Scheduled(_) | Phase::Queued | Phase::Ending(_) => None,
        }
    }

    /// Its state as users see it.
    pub(crate) const fn state(&self) -> Option<JobState> {
        Some(match self.phase {
            Phase::Absent => return None,
            Phase::Scheduled(_) | Phase::Ending(Before::Scheduled) => JobState::Scheduled,
            Phase::Queued | Phase::Ending(Before::Queued) => JobState::Queued,
            Phase::Running(_) | Phase::Ending(Before::Running) => JobState::Running,
            Phase::Cancelling(_) | Phase::Ending(Before::Cancelling) => JobState::Cancelling,
        })
    }
}

impl Phase {
    /// What a job in this phase shows while its end awaits commit.
    pub(crate) fn before_end(self) -> Before {
        match self {
            Self::Scheduled(_) => Before::Scheduled,
            Self::Queued => Before::Queued,
            Self::Running(_) => Before::Running,
            Self::Cancelling(_) => Before::Cancelling,
            Self::Absent | Self::Ending(_) => panic!("a job ends once, and only if it is there"),
        }
    }
}

impl Wait {
    /// The wait that was for this reason.
    pub(crate) fn of(reason: Reason) -> Self {
        let all = [Self::Delayed, Self::Later, Self::WorkerLost];
        all.into_iter()
            .find(|wait| wait.reason() == reason)
            .unwrap_or(Self::BackOff)
    }

    pub(crate) const fn reason(self) -> Reason {
        match self {
            Self::Delayed => Reason::Delayed,
            Self::BackOff => Reason::BackOff,
            Self::Later => Reason::Later,
            Self::WorkerLost => Reason::WorkerLost,
        }
    }
}

const PAGE_JOBS: usize = 256;
const FOLDER_PAGES: usize = 1024;
/// Emptied pages kept for the next jobs: 7 KiB each.
const SPARE_PAGES_MAX: usize = 64;

#[derive(Debug)]
struct Page {
    live: u16,
    jobs: [Job; PAGE_JOBS],
}

#[derive(Debug)]
struct Folder {
    number: u64,
    live: u16,
    pages: Vec<Option<Box<Page>>>,
}

/// Every live job by id.
#[derive(Debug, Default)]
pub(crate) struct Jobs {
    /// In order. There are few: one for 262,144 consecutive ids.
    folders: Vec<Folder>,
    /// Where the last one was found: most likely the next one too, for what happens to a job asks for it many times.
    last_found: Cell<usize>,
    spare: Vec<Box<Page>>,
    counts: Counts,
}

/// Where an id lies: folder, page, place.
fn place(id: JobId) -> (u64, usize, usize) {
    let (page, at) = (id.raw() / PAGE_JOBS as u64, id.raw() % PAGE_JOBS as u64);
    let (folder, page) = (page / FOLDER_PAGES as u64, page % FOLDER_PAGES as u64);
    let small = |n: u64| usize::try_from(n).expect("a remainder of a usize");
    (folder, small(page), small(at))
}

impl Jobs {
    pub(crate) fn get(&self, id: JobId) -> Option<&Job> {
        let (folder, page, at) = place(id);
        let folder = self.find(folder).ok()?;
        let job = &self.folders[folder].pages[page].as_ref()?.jobs[at];
        (job.phase != Phase::Absent).then_some(job)
    }

    pub(crate) fn get_mut(&mut self, id: JobId) -> Option<&mut Job> {
        let (folder, page, at) = place(id);
        let folder = self.find(folder).ok()?;
        let job = &mut self.folders[folder].pages[page].as_mut()?.jobs[at];
        (job.phase != Phase::Absent).then_some(job)
    }

    /// The place of the folder with this number, or the one it would have.
    fn find(&self, number: u64) -> Result<usize, usize> {
        let last = self.last_found.get();
        if self.folders.get(last).is_some_and(|it| it.number == number) {
            return Ok(last);
        }
        let found = self.folders.binary_search_by_key(&number, |it| it.number);
        if let Ok(at) = found {
            self.last_found.set(at);
        }
        found
    }

    /// The job, which the caller knows to be live.
    pub(crate) fn live(&mut self, id: JobId) -> &mut Job {
        self.get_mut(id)
            .expect("whoever names this job has just seen it live")
    }

    /// Adds consecutive jobs that are alike.
    ///
    /// # Panics
    /// If one of them is there already: an id is given out once.
    pub(crate) fn add(&mut self, first: JobId, count: u32, job: Job, phase: Phase) {
        let job = Job { phase, ..job };
        let (mut id, mut left) = (first, u64::from(count));
        while left > 0 {
            let (folder, page, at) = place(id);
            let folder = self.find(folder).unwrap_or_else(|place| {
                let new = Folder {
                    number: folder,
                    live: 0,
                    pages: std::iter::repeat_with(|| None).take(FOLDER_PAGES).collect(),
                };
                self.folders.insert(place, new);
                place
            });
            let folder = &mut self.folders[folder];
            let page = folder.pages[page].get_or_insert_with(|| {
                folder.live += 1;
                self.spare.pop().unwrap_or_else(|| {
                    Box::new(Page {
                        live: 0,
                        jobs: [Job::ABSENT; PAGE_JOBS],
                    })
                })
            });
            let room = page.jobs[at..].iter_mut();
            let mut here = 0;
            for slot in room.take(usize::try_from(left).unwrap_or(PAGE_JOBS)) {
                here += 1;
                assert!(slot.phase == Phase::Absent, "a job's id is given out once");
                *slot = job;
                page.live += 1;
            }
            left -= here;
            if left > 0 {
                id = id.plus(here);
            }
        }
        if let Some(state) = job.state() {
            *self.count(state) += u64::from(count);
        }
    }

    /// Changes a job's phase.
    pub(crate) fn turn(&mut self, id: JobId, phase: Phase) {
        let job = self.live(id);
        let from = job.state();
        job.phase = phase;
        let to = job.state();
        if from != to {
            if let Some(state) = from {
                *self.count(state) -= 1;
            }
            if let Some(state) = to {
                *self.count(state) += 1;
            }
        }
    }

    /// Forgets a job whose end is committed.
    pub(crate) fn remove(&mut self, id: JobId) {
        self.turn(id, Phase::Absent);
        let (number, at, _) = place(id);
        let place = self.find(number).expect("it held the job");
        let folder = &mut self.folders[place];
        let slot = &mut folder.pages[at];
        let page = slot.as_mut().expect("it held the job");
        page.live -= 1;
        if page.live > 0 {
            return;
        }
        let page = slot.take().expect("it is there");
        if self.spare.len() < SPARE_PAGES_MAX {
            self.spare.push(page);
        }
        folder.live -= 1;
        if folder.live == 0 {
            self.folders.remove(place);
        }
    }

    pub(crate) const fn counts(&self) -> &Counts {
        &self.counts
    }

    /// The first live job from this id on (or down).
    pub(crate) fn next(&self, from: JobId, descending: bool) -> Option<(JobId, &Job)> {
        let (folder, page, at) = place(from);
        let found = self.find(folder);
        if descending {
            let through = found.map_or_else(|place| place, |at| at + 1);
            self.folders[..through].iter().rev().find_map(|f| {
                let here = f.number == folder;
                let pages = if here { page + 1 } else { f.pages.len() };
                (0..pages).rev().find_map(|p| {
                    let end = if here && p == page { at + 1 } else { PAGE_JOBS };
                    let jobs = &f.pages[p].as_ref()?.jobs[..end];
                    let at = jobs.iter().rposition(|job| job.phase != Phase::Absent)?;
                    Some((id_at(f.number, p, at), &jobs[at]))
                })
            })
        } else {
            let from = found.unwrap_or_else(|place| place);
            self.folders[from..].iter().find_map(|f| {
                let here = f.number == folder;
                (if here { page } else { 0 }..f.pages.len()).find_map(|p| {
                    let begin = if here && p == page { at } else { 0 };
                    let jobs = &f.pages[p].as_ref()?.jobs;
                    let at = jobs[begin..]
                        .iter()
                        .position(|job| job.phase != Phase::Absent)?;
                    Some((id_at(f.number, p, begin + at), &jobs[begin + at]))
                })
            })
        }
    }

    /// All of them in id order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (JobId, &Job)> {
        let mut next = self.next(JobId::MIN, false);
        std::iter::from_fn(move || {
            let found = next?;
            next = after(found.0).and_then(|id| self.next(id, false));
            Some(found)
        })
    }

    fn count(&mut self, state: JobState) -> &mut u64 {
        match state {
            JobState::Scheduled => &mut self.counts.scheduled,
            JobState::Queued => &mut self.counts.queued,
            JobState::Running => &mut self.counts.running,
            JobState::Cancelling => &mut self.counts.cancelling,
            JobState::Blocked
            | JobState::Succeeded
            | JobState::Failed
            | JobState::Cancelled
            | JobState::Expired
            | JobState::Skipped => unreachable!("no phase shows as {state}"),
        }
    }
}

/// The id after this one, unless it is the last.
pub(crate) fn after(id: JobId) -> Option<JobId> {
    JobId::new(id.raw() + 1)
}

/// The id before this one, unless it is the first.
pub(crate) fn before(id: JobId) -> Option<JobId> {
    JobId::new(id.raw() - 1)
}

fn id_at(folder: u64, page: usize, at: usize) -> JobId {
    let page = folder * FOLDER_PAGES as u64 + page as u64;
    let raw = page * PAGE_JOBS as u64 + at as u64;
    JobId::new(raw).expect("a job lies there, so it is an id")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(raw: u64) -> JobId {
        JobId::new(raw).unwrap()
    }

    fn with(ids: &[u64]) -> Jobs {
        let mut jobs = Jobs::default();
        for &raw in ids {
            jobs.add(id(raw), 1, Job::new(0, Priority::NORMAL), Phase::Queued);
        }
        jobs
    }

    #[test]
    fn a_record_stays_within_32_bytes() {
        assert!(size_of::<Job>() <= 32, "{}", size_of::<Job>());
    }

    #[test]
    fn jobs_are_walked_in_id_order_both_ways_over_gaps() {
        let ids = [1, 255, 256, 700, 262_143, 262_144, 9_000_000_000];
        let jobs = with(&ids);
        let up: Vec<_> = jobs.iter().map(|(id, _)| id.raw()).collect();
        assert_eq!(up, ids);
        let mut down = Vec::new();
        let mut from = Some(JobId::MAX);
        while let Some((id, _)) = from.and_then(|from| jobs.next(from, true)) {
            down.push(id.raw());
            from = before(id);
        }
        down.reverse();
        assert_eq!(down, ids);
        assert_eq!(jobs.next(id(257), false).unwrap().0, id(700));
        assert_eq!(jobs.next(id(699), true).unwrap().0, id(256));
    }

    #[test]
    fn emptied_pages_are_given_back() {
        let mut jobs = Jobs::default();
        jobs.add(
            id(200),
            100_000,
            Job::new(0, Priority::NORMAL),
            Phase::Queued,
        );
        assert_eq!(jobs.counts().queued, 100_000);
        for raw in 200..100_200 {
            jobs.remove(id(raw));
        }
        assert_eq!(jobs.counts(), &Counts::default());
        assert!(jobs.folders.is_empty() && jobs.spare.len() == SPARE_PAGES_MAX);
        jobs.add(id(200), 1, Job::new(0, Priority::NORMAL), Phase::Queued);
        assert_eq!(jobs.iter().count(), 1, "a page used again begins empty");
    }

    #[test]
    #[should_panic(expected = "given out once")]
    fn an_id_twice_is_a_bug() {
        with(&[5, 5]);
    }
}
