//! The one channel between threads: push a batch, wake once.
//!
//! A mailbox is a lock-free queue with any number of senders and one receiving thread. The receiver may own several
//! mailboxes (and lanes) under one [`Wake`]. It says it is about to sleep, looks again, and sleeps; a sender pushes, and
//! wakes only a receiver that said so. So a busy receiver costs its senders no system call, and no message is left behind
//! by a sleeper.
//!
//! Not here: bounds. Whoever lets something in from outside (HTTP, workers) counts what is in flight and refuses more.

use std::sync::{Arc, OnceLock};
#[cfg(not(loom))]
use std::task::{Context, Poll, Waker};
use std::time::Duration;

#[cfg(loom)]
use loom::{
    sync::atomic::{AtomicBool, Ordering, fence},
    thread::{self, Thread},
};
#[cfg(not(loom))]
use std::{
    sync::atomic::{AtomicBool, Ordering, fence},
    thread::{self, Thread},
};

#[cfg(not(loom))]
type Queue<T> = crossbeam::queue::SegQueue<T>;
#[cfg(loom)]
type Queue<T> = looming::Queue<T>;

/// How a sleeping receiver is woken.
#[derive(Debug)]
enum Bell {
    /// It parks its thread, which is known once it has done so; before, nobody needs to wake it.
    Thread(OnceLock<Thread>),
    /// It polls sockets.
    #[cfg(not(loom))]
    Poll(mio::Waker),
    /// It is a task of a runtime, which is known once it has been polled; before, nobody needs to wake it.
    #[cfg(not(loom))]
    Task(OnceLock<Waker>),
}

/// One receiving thread's sleep, shared by all that may wake it.
#[derive(Debug)]
pub struct Wake {
    sleeping: AtomicBool,
    bell: Bell,
}

impl Wake {
    /// For a thread that sleeps by [`Receiver::park`] or [`Wake::sleep`]: the one that does so first.
    pub fn parking() -> Arc<Self> {
        Arc::new(Self {
            sleeping: AtomicBool::new(false),
            bell: Bell::Thread(OnceLock::new()),
        })
    }

    /// For a thread that sleeps in `mio::Poll::poll`: between [`Wake::about_to_sleep`] and [`Wake::awake`].
    #[cfg(not(loom))]
    pub fn poll(waker: mio::Waker) -> Arc<Self> {
        Arc::new(Self {
            sleeping: AtomicBool::new(false),
            bell: Bell::Poll(waker),
        })
    }

    /// For a task that sleeps in [`Receiver::poll_filled`]: the one that does so first.
    #[cfg(not(loom))]
    pub fn task() -> Arc<Self> {
        Arc::new(Self {
            sleeping: AtomicBool::new(false),
            bell: Bell::Task(OnceLock::new()),
        })
    }

    /// Wakes the receiver if it sleeps or is about to. Call after what it should see has been pushed.
    pub fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.sleeping.load(Ordering::Relaxed) && self.sleeping.swap(false, Ordering::SeqCst) {
            match &self.bell {
                Bell::Thread(sleeper) => {
                    if let Some(thread) = sleeper.get() {
                        thread.unpark();
                    }
                }
                #[cfg(not(loom))]
                Bell::Poll(waker) => {
                    // An eventfd write fails only if the counter is full: then the poll wakes anyway.
                    drop(waker.wake());
                }
                #[cfg(not(loom))]
                Bell::Task(sleeper) => {
                    if let Some(task) = sleeper.get() {
                        task.wake_by_ref();
                    }
                }
            }
        }
    }

    /// Says that the receiver will sleep. It must look at all its mailboxes once more after this, and sleep only if
    /// they are empty.
    pub fn about_to_sleep(&self) {
        // A swap, not a store: it is ordered after the senders' swaps before it. (The model finds the difference.)
        self.sleeping.swap(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// Says that the receiver is awake.
    pub fn awake(&self) {
        self.sleeping.store(false, Ordering::Relaxed);
    }

    /// Parks the calling thread until it is woken or the time is over, unless `idle` finds something to do. May return
    /// early for no reason.
    pub fn sleep(&self, timeout: Option<Duration>, idle: impl FnOnce() -> bool) {
        if let Bell::Thread(sleeper) = &self.bell {
            let sleeper = sleeper.get_or_init(thread::current);
            debug_assert_eq!(
                sleeper.id(),
                thread::current().id(),
                "one thread sleeps here"
            );
        }
        self.about_to_sleep();
        if idle() {
            match timeout {
                #[cfg(not(loom))]
                Some(timeout) => thread::park_timeout(timeout),
                #[cfg(loom)]
                Some(_) => thread::park(),
                None => thread::park(),
            }
        }
        self.awake();
    }
}

/// A new mailbox whose receiver sleeps under `wake`.
pub fn mailbox<T>(wake: &Arc<Wake>) -> (Sender<T>, Receiver<T>) {
    let queue = Arc::new(Queue::new());
    (
        Sender {
            queue: Arc::clone(&queue),
            wake: Arc::clone(wake),
        },
        Receiver {
            queue,
            wake: Arc::clone(wake),
        },
    )
}

/// The end that pushes. Clone it for each sender.
#[derive(Debug)]
pub struct Sender<T> {
    queue: Arc<Queue<T>>,
    wake: Arc<Wake>,
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self {
            queue: Arc::clone(&self.queue),
            wake: Arc::clone(&self.wake),
        }
    }
}

impl<T> Sender<T> {
    /// Pushes one message and wakes the receiver.
    pub fn send(&self, message: T) {
        self.queue.push(message);
        self.wake.wake();
    }

    /// Pushes one message and leaves the waking to [`Sender::wake`], so that several cost one.
    pub fn push(&self, message: T) {
        self.queue.push(message);
    }

    /// Wakes the receiver, if it sleeps.
    pub fn wake(&self) {
        self.wake.wake();
    }

    /// Pushes several and wakes the receiver once.
    pub fn send_all(&self, messages: impl IntoIterator<Item = T>) {
        let mut any = false;
        for message in messages {
            self.queue.push(message);
            any = true;
        }
        if any {
            self.wake.wake();
        }
    }
}

/// The end that takes.
#[derive(Debug)]
pub struct Receiver<T> {
    queue: Arc<Queue<T>>,
    wake: Arc<Wake>,
}

impl<T> Receiver<T> {
    /// Moves up to `max` messages to the end of `into`, oldest first; says how many.
    pub fn drain(&self, into: &mut Vec<T>, max: usize) -> usize {
        let mut taken = 0;
        while taken < max {
            match self.queue.pop() {
                Some(message) => into.push(message),
                None => break,
            }
            taken += 1;
        }
        taken
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Ready once something waits. For a receiver under [`Wake::task`], polled by one task only.
    #[cfg(not(loom))]
    pub fn poll_filled(&self, cx: &Context<'_>) -> Poll<()> {
        if let Bell::Task(sleeper) = &self.wake.bell {
            // The waker of a task goes on being its waker.
            let sleeper = sleeper.get_or_init(|| cx.waker().clone());
            debug_assert!(sleeper.will_wake(cx.waker()), "one task sleeps here");
        }
        if self.queue.is_empty() {
            self.wake.about_to_sleep();
            if self.queue.is_empty() {
                return Poll::Pending;
            }
            self.wake.awake();
        }
        Poll::Ready(())
    }

    /// Sleeps until something comes or the time is over. For a receiver with this mailbox only; one with several uses
    /// [`Wake::sleep`].
    pub fn park(&self, timeout: Option<Duration>) {
        self.wake.sleep(timeout, || self.queue.is_empty());
    }
}

/// Held by a thread whose panic must end the process: the store is the truth, and going on with a part missing is not
/// safe.
#[cfg(not(loom))]
#[derive(Debug)]
pub struct AbortOnPanic;

#[cfg(not(loom))]
impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            std::process::abort();
        }
    }
}

#[cfg(loom)]
mod looming {
    //! Loom cannot look into crossbeam's queue; what is modelled is the rule of sleeping and waking around a queue whose
    //! emptiness is read from one atomic number, as stale as the memory model allows. The entries lie behind a lock that
    //! loom does not see: it would take a thread blocked in a lock for one that is parked.
    use std::collections::VecDeque;
    use std::sync::Mutex;

    use loom::sync::atomic::{AtomicUsize, Ordering};

    #[derive(Debug)]
    pub(super) struct Queue<T> {
        entries: Mutex<VecDeque<T>>,
        len: AtomicUsize,
    }

    impl<T> Queue<T> {
        pub(super) fn new() -> Self {
            Self {
                entries: Mutex::new(VecDeque::new()),
                len: AtomicUsize::new(0),
            }
        }

        pub(super) fn push(&self, entry: T) {
            self.entries.lock().unwrap().push_back(entry);
            self.len.fetch_add(1, Ordering::Release);
        }

        pub(super) fn pop(&self) -> Option<T> {
            if self.is_empty() {
                return None;
            }
            let entry = self.entries.lock().unwrap().pop_front();
            self.len.fetch_sub(1, Ordering::Relaxed);
            entry
        }

        pub(super) fn is_empty(&self) -> bool {
            self.len.load(Ordering::Acquire) == 0
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl std::task::Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_task_is_woken_once_for_what_comes_while_it_sleeps() {
        let count = Arc::new(Count::default());
        let woken = || count.0.load(Ordering::Relaxed);
        let waker = Waker::from(Arc::clone(&count));
        let cx = Context::from_waker(&waker);
        let (sender, receiver) = mailbox(&Wake::task());
        sender.send(1);
        assert!(receiver.poll_filled(&cx).is_ready());
        assert_eq!(woken(), 0, "nobody slept");
        let mut taken = Vec::new();
        receiver.drain(&mut taken, 8);
        assert!(receiver.poll_filled(&cx).is_pending());
        sender.push(2);
        sender.push(3);
        assert_eq!(woken(), 0, "a push alone wakes nobody");
        sender.wake();
        sender.send(4);
        assert_eq!(woken(), 1);
        assert!(receiver.poll_filled(&cx).is_ready());
        receiver.drain(&mut taken, 8);
        assert_eq!(taken, [1, 2, 3, 4]);
    }
}
