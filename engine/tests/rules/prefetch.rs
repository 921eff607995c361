//! Work given ahead of a free slot, and called back (P5).

use hostler_engine::{Config, Span};

use crate::trial::{NewJob, OK, Trial, config, slots};

/// A trial whose class "default" was measured to run this long.
fn measured(us: u64) -> Trial {
    let mut t = Trial::new();
    t.worker("w1", slots(2))
        .submit("warm")
        .expect("assign warm.1 to w1");
    t.reports("warm", |report| report.ran = Span::from_micros(us));
    t.expect("finished warm succeeded").expect("ack 1 to w1");
    t
}

#[test]
fn nothing_is_given_ahead_until_the_class_was_measured() {
    let mut t = Trial::new();
    t.worker("w1", slots(2))
        .submit("a b c d")
        .expect("assign a.1 b.1 to w1");
    t.starts("a").expect_nothing();
}

#[test]
fn slow_classes_are_never_given_ahead() {
    let mut t = measured(50_000);
    t.submit("a b c").expect("assign a.1 b.1 to w1");
}

#[test]
fn fast_ones_are_given_ahead_to_cover_eight_milliseconds() {
    let mut t = measured(4_000);
    t.submit("a b c d e f g h")
        .expect("assign a.1 b.1 c.1 d.1 e.1 f.1 to w1");
}

#[test]
fn a_worker_is_stocked_while_it_has_as_much_ahead_as_it_has_slots() {
    let mut t = measured(4_000);
    assert!(!t.is_stocked("w1"));
    t.submit("a b c").expect("assign a.1 b.1 c.1 to w1");
    assert!(!t.is_stocked("w1"), "one ahead of two slots");
    t.submit("d").expect("assign d.1 to w1");
    assert!(t.is_stocked("w1"));
    t.starts("a")
        .reports("a", |_| {})
        .expect("finished a succeeded")
        .expect("ack 2 to w1");
    assert!(!t.is_stocked("w1"));
}

#[test]
fn at_least_one_below_fifty_milliseconds_and_at_most_what_is_configured() {
    let mut t = measured(49_000);
    t.submit("a b c d").expect("assign a.1 b.1 c.1 to w1");
    let mut t = Trial::with(Config {
        prefetch_max: 3,
        ..config()
    });
    t.worker("w1", slots(1))
        .submit("warm")
        .expect("assign warm.1 to w1");
    t.reports("warm", |report| report.ran = Span::from_micros(1));
    t.expect("finished warm succeeded").expect("ack 1 to w1");
    t.submit("a b c d e f")
        .expect("assign a.1 b.1 c.1 d.1 to w1");
}

#[test]
fn at_most_once_is_never_given_ahead() {
    let once = |job: &mut NewJob| job.spec.max_losses = 0;
    let mut t = Trial::new();
    t.worker("w1", slots(1))
        .submit_with("warm", once)
        .expect("assign warm.1 to w1");
    t.reports("warm", |report| report.ran = Span::from_micros(10));
    t.expect("finished warm succeeded").expect("ack 1 to w1");
    t.submit_with("a b", once).expect("assign a.1 to w1");
}

#[test]
fn nothing_is_given_ahead_while_another_fitting_worker_has_a_free_slot() {
    let mut t = measured(1_000);
    t.worker("w2", slots(3));
    t.submit("a b c d e")
        .expect("assign a.1 c.1 e.1 to w2")
        .expect("assign b.1 d.1 to w1");
    t.submit("f g")
        .expect("assign f.1 to w1")
        .expect("assign g.1 to w2");
}

#[test]
fn the_least_burdened_worker_is_given_work_ahead() {
    let mut t = measured(100);
    t.worker("w2", slots(1))
        .submit("a b c")
        .expect("assign a.1 c.1 to w1")
        .expect("assign b.1 to w2");
    t.submit("d")
        .expect("assign d.1 to w1")
        .submit("e")
        .expect("assign e.1 to w2");
    t.submit("f").expect("assign f.1 to w1");
    t.submit("g")
        .expect("assign g.1 to w1")
        .submit("h")
        .expect("assign h.1 to w2");
}

#[test]
fn work_given_ahead_is_called_back_when_a_fitting_worker_has_a_free_slot() {
    let mut t = measured(500);
    t.submit("a b c d e f")
        .expect("assign a.1 b.1 c.1 d.1 e.1 f.1 to w1");
    t.worker("w2", slots(2)).expect("recall f.1 e.1 from w1");
    t.starts("e").expect("recall d.1 from w1");
    t.returns("f").expect("assign f.2 to w2");
    t.starts("a").expect_nothing();
    t.returns("d").expect("assign d.2 to w2");
    t.after_ms(3_000).expect_nothing();
}

#[test]
fn nothing_is_called_back_for_a_worker_that_does_not_fit() {
    let mut t = measured(500);
    t.submit("a b c").expect("assign a.1 b.1 c.1 to w1");
    let mut video = slots(4);
    video.queues = vec!["video".into()];
    t.worker("w2", video).expect_nothing();
}

#[test]
fn a_recall_is_not_repeated() {
    let mut t = measured(500);
    t.submit("a b c").expect("assign a.1 b.1 c.1 to w1");
    t.worker("w2", slots(4)).expect("recall c.1 from w1");
    t.after_ms(10_000).expect_nothing();
    t.ends("a", OK)
        .expect("finished a succeeded")
        .expect("ack 2 to w1")
        .after_ms(10_000);
}

#[test]
fn a_stopping_server_calls_everything_unstarted_back_and_gives_nothing_out() {
    let mut t = measured(500);
    t.submit("a b c d")
        .expect("assign a.1 b.1 c.1 d.1 to w1")
        .starts("a");
    t.event(hostler_engine::Event::Stopping)
        .expect("recall b.1 c.1 d.1 from w1");
    t.returns("c").expect_nothing().submit("e").expect_nothing();
    t.ends("a", OK)
        .expect("finished a succeeded")
        .expect("ack 2 to w1");
    t.joins("w2", slots(1)).expect("refuse w2: stopping");
}
