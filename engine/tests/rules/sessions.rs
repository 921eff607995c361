//! Workers that come, fall silent, go and come back (semantics 2, 19, 20, 22).

use hostler_engine::{Event, Span};
use hostler_wire::JobState;

use crate::trial::{BEAT_MS, GRACE_MS, NewWorker, OK, Trial, slots};

fn holding(t: &Trial, held: &[(&str, u16, bool)]) -> NewWorker {
    let held = held
        .iter()
        .map(|(job, n, started)| (t.fence_of(job, *n), *started))
        .collect();
    NewWorker { held, ..slots(4) }
}

fn with_two_out() -> Trial {
    let mut t = Trial::new();
    t.worker("w1", slots(4))
        .submit("a b")
        .expect("assign a.1 b.1 to w1");
    t.starts("a");
    t
}

#[test]
fn a_worker_that_comes_back_in_time_keeps_what_it_lists() {
    let mut t = with_two_out();
    t.leaves("w1").after_ms(GRACE_MS - 1);
    let back = holding(&t, &[("a", 1, true), ("b", 1, false)]);
    t.worker("w1", back).after_ms(2 * GRACE_MS).expect_nothing();
    t.ends("a", OK)
        .expect("finished a succeeded")
        .expect("ack 1 to w1");
    t.ends("b", OK)
        .expect("finished b succeeded")
        .expect("ack 2 to w1");
}

#[test]
fn what_it_does_not_list_never_reached_it_and_goes_elsewhere_uncharged() {
    let mut t = with_two_out();
    t.leaves("w1");
    let back = holding(&t, &[("a", 1, true)]);
    t.worker("w1", back).expect("assign b.2 to w1");
    t.expect_fact("again b.1 returned, a return, at once");
}

#[test]
fn a_login_that_was_overtaken_by_a_newer_connections_takes_nothing_back() {
    let mut t = Trial::new();
    let overtaken = t.opens();
    t.worker("w1", slots(1))
        .submit("a")
        .expect("assign a.1 to w1");
    t.starts("a");
    // It was sent before a.1 was given out, and does not list it.
    t.joins_in(overtaken, "w1", slots(1))
        .expect("refuse w1: deaf")
        .expect_nothing();
    t.ends("a", OK)
        .expect("finished a succeeded")
        .expect("ack 1 to w1");
}

#[test]
fn what_it_lists_and_we_do_not_know_is_void() {
    let mut t = with_two_out();
    t.ends("b", OK)
        .expect("finished b succeeded")
        .expect("ack 1 to w1")
        .leaves("w1");
    let back = holding(&t, &[("a", 1, true), ("b", 1, true), ("a", 7, false)]);
    t.joins("w1", back).expect("resume w1 acked 1 void b.1 a.7");
}

#[test]
fn an_attempt_it_lists_as_started_has_started() {
    let mut t = with_two_out();
    t.leaves("w1");
    let back = holding(&t, &[("a", 1, true), ("b", 1, true)]);
    t.worker("w1", back).expect_fact("started b.1");
    t.leaves("w1")
        .after_ms(GRACE_MS)
        .expect_fact("again b.1 worker_lost, a loss, at once");
}

#[test]
fn a_new_connection_replaces_one_that_was_not_seen_to_end() {
    let mut t = with_two_out();
    let back = holding(&t, &[("a", 1, true), ("b", 1, false)]);
    t.joins("w1", back)
        .expect("refuse w1: deaf")
        .expect("resume w1 acked 0");
    t.ends("a", OK)
        .expect("finished a succeeded")
        .expect("ack 1 to w1");
}

#[test]
fn a_name_in_use_is_refused_while_its_holder_is_connected() {
    let mut t = with_two_out();
    t.joins(
        "w1",
        NewWorker {
            instance: 2,
            ..slots(1)
        },
    )
    .expect("refuse w1: name in use");
    t.ends("a", OK)
        .expect("finished a succeeded")
        .expect("ack 1 to w1");
}

#[test]
fn a_new_instance_ends_the_leases_of_an_old_one_that_is_gone() {
    let mut t = with_two_out();
    t.leaves("w1").worker(
        "w1",
        NewWorker {
            instance: 2,
            ..slots(4)
        },
    );
    t.expect("assign a.2 b.2 to w1");
    t.expect_fact("again a.1 worker_lost, a loss, at once");
    t.expect_fact("again b.1 worker_lost, a return, at once");
}

#[test]
fn a_lost_workers_work_goes_on_in_its_old_place_on_another_worker() {
    let mut t = with_two_out();
    t.leaves("w1")
        .submit("c")
        .after_ms(GRACE_MS - 1)
        .expect_state("a", JobState::Running);
    t.after_ms(1).expect_state("a", JobState::Queued);
    t.worker("w2", slots(1)).expect("assign a.2 to w2");
}

#[test]
fn the_grace_counts_from_when_it_was_last_heard() {
    let mut t = with_two_out();
    t.silent.insert("w1".into());
    t.after_ms(10_000)
        .leaves("w1")
        .after_ms(GRACE_MS - 10_000 - 1);
    t.expect_state("a", JobState::Running)
        .after_ms(1)
        .expect_state("a", JobState::Queued);
}

#[test]
fn a_connection_that_only_looks_alive_is_lost_and_closed() {
    let mut t = with_two_out();
    t.silent.insert("w1".into());
    t.after_ms(GRACE_MS - 1)
        .expect_state("a", JobState::Running)
        .expect_nothing();
    t.after_ms(1)
        .expect("refuse w1: deaf")
        .expect_state("a", JobState::Queued);
    let session = t.session("w1");
    t.event(Event::Left { session }).expect_nothing();
}

#[test]
fn a_worker_silent_for_three_beats_gets_no_new_work_until_it_speaks() {
    let mut t = with_two_out();
    t.silent.insert("w1".into());
    t.after_ms(3 * BEAT_MS)
        .submit("c")
        .expect("assign c.1 to w1");
    t.after_ms(1).submit("d").expect_nothing();
    t.beats("w1").expect("assign d.1 to w1");
}

#[test]
fn a_silent_workers_free_slot_does_not_keep_others_from_being_given_work_ahead() {
    let mut t = Trial::new();
    t.worker("w1", slots(1))
        .submit("warm")
        .expect("assign warm.1 to w1");
    t.reports("warm", |report| report.ran = Span::from_micros(100));
    t.expect("finished warm succeeded").expect("ack 1 to w1");
    t.worker("w2", slots(9)).silent.insert("w2".into());
    t.after_ms(3 * BEAT_MS + 1)
        .submit("a b")
        .expect("assign a.1 b.1 to w1");
}

#[test]
fn a_deaf_worker_is_told_to_connect_anew_and_its_work_is_not_lost() {
    let mut t = with_two_out();
    t.deaf.insert("w1".into());
    t.after_ms(4 * BEAT_MS - 1)
        .expect_nothing()
        .after_ms(1)
        .expect("refuse w1: deaf");
    let back = holding(&t, &[("a", 1, true)]);
    t.deaf.clear();
    t.worker("w1", back)
        .expect("assign b.2 to w1")
        .after_ms(10 * BEAT_MS)
        .expect_nothing();
}

#[test]
fn any_frame_shows_that_a_worker_is_there() {
    let mut t = with_two_out();
    t.silent.insert("w1".into());
    t.after_ms(GRACE_MS - 1_000)
        .starts("b")
        .after_ms(GRACE_MS - 1_000);
    t.expect_state("a", JobState::Running);
}

#[test]
fn words_from_a_session_that_is_over_change_nothing() {
    let mut t = with_two_out();
    let (session, fence) = (t.session("w1"), t.fence("b"));
    t.leaves("w1");
    let fences = vec![fence];
    t.event(Event::Started {
        session,
        fences: fences.clone(),
    });
    t.event(Event::Returned {
        session,
        fences,
        draining: true,
    });
    t.event(Event::Heard {
        session,
        assign_seq: 1,
    });
    assert_eq!(t.view("b").started, None);
}

#[test]
fn a_job_that_stops_on_partition_waits_until_its_worker_must_have_killed_it() {
    let mut t = Trial::new();
    t.submit_with("a", |job| {
        job.spec.stop_on_partition = true;
        job.spec.grace = Some(Span::from_secs(7));
    });
    t.worker("w1", slots(1))
        .expect("assign a.1 to w1")
        .starts("a")
        .leaves("w1");
    t.worker("w2", slots(1)).after_ms(GRACE_MS);
    t.expect_fact("again a.1 worker_lost, a loss, after a wait")
        .expect_state("a", JobState::Scheduled);
    t.after_ms(7_000 + 2 * BEAT_MS - 1)
        .expect_nothing()
        .after_ms(1)
        .expect("assign a.2 to w2");
}

#[test]
fn a_worker_that_may_have_heard_us_all_the_while_has_another_grace_to_end_such_a_job() {
    let mut t = Trial::new();
    t.submit_with("a", |job| {
        job.spec.stop_on_partition = true;
        job.spec.grace = Some(Span::from_secs(7));
    });
    t.worker("w1", slots(1))
        .expect("assign a.1 to w1")
        .starts("a");
    // Nothing of it comes through any more; whether our beats do, nobody knows.
    t.silent.insert("w1".into());
    t.worker("w2", slots(1)).after_ms(GRACE_MS);
    t.expect_fact("again a.1 worker_lost, a loss, after a wait")
        .expect("refuse w1: deaf");
    t.after_ms(GRACE_MS + 7_000 + 2 * BEAT_MS - 1)
        .expect_nothing()
        .after_ms(1)
        .expect("assign a.2 to w2");
}

#[test]
fn a_worker_that_leaves_with_nothing_is_forgotten_after_its_grace() {
    let mut t = Trial::new();
    t.worker("w1", slots(1)).leaves("w1");
    assert_eq!(t.engine.workers().count(), 1);
    t.after_ms(GRACE_MS);
    assert_eq!(t.engine.workers().count(), 0);
}

#[test]
fn what_is_void_is_said_only_once_that_is_durable() {
    let mut t = Trial::new();
    t.submit("a")
        .worker("w1", slots(1))
        .expect("assign a.1 to w1");
    t.starts("a");
    let held = vec![(t.fence_of("a", 1), true)];
    t.slow_disk = true;
    t.leaves("w1").after_ms(GRACE_MS);
    let back = NewWorker { held, ..slots(1) };
    t.joins("w1", back).expect_nothing();
    t.commit().expect("resume w1 acked 0 void a.1");
    t.slow_disk = false;
    t.commit().expect("assign a.2 to w1");
}

#[test]
fn a_server_that_stood_still_does_not_take_it_for_the_workers_silence() {
    let mut t = Trial::new();
    t.submit("a")
        .worker("w1", slots(1))
        .expect("assign a.1 to w1");
    t.starts("a");
    t.now = t.now + Span::from_millis(10 * GRACE_MS);
    t.event(Event::Awoken).event(Event::Tick).expect_nothing();
    t.ends("a", OK)
        .expect("finished a succeeded")
        .expect("ack 1 to w1");
}
