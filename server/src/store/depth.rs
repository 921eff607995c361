//! How many jobs of each queue have not ended: what the limit on a queue's depth is held against.
//!
//! The writer alone counts, so that the limit is exact however many submit at once: up when jobs are committed, down
//! when their ends are. Without a limit nothing is counted.

use std::collections::HashMap;
use std::sync::Arc;

use hostler_engine::spec::{Class, ClassId, ClassSpec};

use crate::store::seam::Draft;

/// Jobs that have not ended, as loading the store has shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LiveJobs {
    /// All of them.
    pub jobs: u64,
    /// Of each class that has some.
    pub of_class: HashMap<ClassId, u64>,
}

impl LiveJobs {
    /// Some more.
    pub fn add(&mut self, class: ClassId, count: u64) {
        self.jobs += count;
        *self.of_class.entry(class).or_default() += count;
    }
}

/// Jobs by queue.
pub(super) type ByQueue = HashMap<Arc<str>, u64>;

/// The count, and its limit.
#[derive(Debug)]
pub(super) struct Depths {
    max: Option<u64>,
    live: ByQueue,
    queue_of: HashMap<ClassId, Arc<str>>,
}

impl Depths {
    pub(super) fn new(max: Option<u64>, classes: &[Arc<Class>], live: &LiveJobs) -> Self {
        let mut depths = Self {
            max,
            live: HashMap::new(),
            queue_of: HashMap::new(),
        };
        for class in classes {
            depths.meet(class);
            if let Some(count) = live.of_class.get(&class.id) {
                depths.add(&class.spec.queue, *count);
            }
        }
        depths
    }

    /// There is a class.
    pub(super) fn meet(&mut self, class: &Class) {
        if self.max.is_some() {
            self.queue_of
                .insert(class.id, Arc::clone(&class.spec.queue));
        }
    }

    /// What these jobs add to each queue, if there is room for it beside what the commit has already; else the first queue
    /// that has none.
    pub(super) fn admit(
        &self,
        taken: &ByQueue,
        classes: &[ClassSpec],
        jobs: &[Draft],
    ) -> Result<ByQueue, Arc<str>> {
        let Some(max) = self.max else {
            return Ok(ByQueue::new());
        };
        let mut of_class = vec![0; classes.len()];
        for job in jobs {
            of_class[job.class as usize] += 1;
        }
        let mut wanted = ByQueue::new();
        for (class, count) in classes.iter().zip(of_class) {
            *wanted.entry(Arc::clone(&class.queue)).or_default() += count;
        }
        let count = |of: &ByQueue, queue: &Arc<str>| of.get(queue).copied().unwrap_or_default();
        let full = |(queue, more): (&Arc<str>, &u64)| {
            let there = count(&self.live, queue) + count(taken, queue);
            *more > 0 && there.saturating_add(*more) > max
        };
        let mut all: Vec<_> = wanted.iter().collect();
        all.sort();
        if let Some((queue, _)) = all.into_iter().find(|(queue, more)| full((queue, more))) {
            return Err(Arc::clone(queue));
        }
        Ok(wanted)
    }

    /// They are committed.
    pub(super) fn accepted(&mut self, taken: &ByQueue) {
        for (queue, count) in taken {
            self.add(queue, *count);
        }
    }

    fn add(&mut self, queue: &Arc<str>, count: u64) {
        if self.max.is_some() {
            *self.live.entry(Arc::clone(queue)).or_default() += count;
        }
    }

    /// A job of that class has ended, and that is committed.
    pub(super) fn ended(&mut self, class: ClassId) {
        let Some(queue) = self.queue_of.get(&class) else {
            return;
        };
        // A queue without jobs needs no place: names come and go.
        if let Some(live) = self.live.get_mut(queue) {
            *live = live.saturating_sub(1);
            if *live == 0 {
                self.live.remove(queue);
            }
        }
    }
}
