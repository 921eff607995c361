//! The lanes' rule under every interleaving. Run with
//! `RUSTFLAGS="--cfg loom" cargo test -p hostler-engine --test loom --release`.
#![cfg(loom)]

use hostler_engine::lanes::Lanes;
use hostler_wire::Priority;
use loom::sync::Arc;
use loom::thread;

const LOW: Priority = Priority::new(-1);
const HIGH: Priority = Priority::new(1);

/// Two producers push while the consumer looks a few times; once all are done, what is left must be found.
/// (The consumer has a thread of its own: loom does not interrupt the first one's looks.)
fn nothing_is_lost(entries: [&'static [(Priority, u32)]; 2], looks: usize) {
    let mut model = loom::model::Builder::new();
    // Every interleaving with up to three preemptions: a lost entry needs one, and the whole space takes minutes.
    model.preemption_bound = Some(3);
    model.check(move || {
        let lanes = Arc::new(Lanes::new());
        let producers = entries.map(|entries| {
            let lanes = lanes.clone();
            thread::spawn(move || {
                for &(priority, entry) in entries {
                    lanes.push(priority, entry);
                }
            })
        });
        let consumer = {
            let lanes = lanes.clone();
            thread::spawn(move || (0..looks).filter_map(|_| lanes.pop()).collect::<Vec<u32>>())
        };
        for producer in producers {
            producer.join().unwrap();
        }
        let mut seen = consumer.join().unwrap();
        seen.extend(std::iter::from_fn(|| lanes.pop()));
        assert_eq!(
            seen.len(),
            entries.iter().map(|e| e.len()).sum::<usize>(),
            "nothing is lost"
        );
        for entries in entries {
            for priority in [LOW, HIGH] {
                let of = |e: &&(Priority, u32)| e.0 == priority;
                let pushed: Vec<_> = entries.iter().filter(of).map(|e| e.1).collect();
                let popped: Vec<_> = seen
                    .iter()
                    .copied()
                    .filter(|e| pushed.contains(e))
                    .collect();
                assert_eq!(pushed, popped, "a producer's order is kept");
            }
        }
    });
}

#[test]
fn two_producers_of_one_lane() {
    nothing_is_lost([&[(LOW, 1)], &[(LOW, 2)]], 2);
}

#[test]
fn two_producers_of_two_lanes() {
    nothing_is_lost([&[(LOW, 1)], &[(HIGH, 2)]], 2);
}

#[test]
fn one_producer_stays_in_order() {
    nothing_is_lost([&[(LOW, 1), (LOW, 2)], &[]], 2);
}
