//! The mailbox between the server's threads, under every interleaving: nothing is left behind by a sleeper.
//!
//! It stands here and includes the file by its path, because the server's other dependencies cannot be built for loom.
//! `RUSTFLAGS="--cfg loom" cargo test -p hostler-engine --test loom_mailbox --release`
#![cfg(loom)]
#![expect(dead_code, reason = "the model uses part of the mailbox")]
#![expect(unreachable_pub, reason = "the file is part of another crate")]

#[path = "../../server/src/mailbox.rs"]
mod mailbox;

use mailbox::{Wake, mailbox};

#[test]
fn a_message_is_never_left_behind_by_a_sleeping_receiver() {
    let mut model = loom::model::Builder::new();
    // All interleavings take two minutes; with at most three preemptions, which find each broken rule, it takes seconds.
    model.preemption_bound = Some(3);
    model.check(|| {
        let (sender, receiver) = mailbox(&Wake::parking());
        let senders = [1, 2].map(|number| {
            let sender = sender.clone();
            loom::thread::spawn(move || sender.send(number))
        });
        let mut got = Vec::new();
        while got.len() < 2 {
            if receiver.drain(&mut got, 8) == 0 {
                receiver.park(None);
            }
        }
        got.sort_unstable();
        assert_eq!(got, [1, 2]);
        for sender in senders {
            sender.join().unwrap();
        }
    });
}
