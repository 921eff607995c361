//! `verify` on data directories that are as they should be, and on ones that somebody has doctored.
#![expect(clippy::unwrap_used, reason = "this is a test, helpers and all")]

#[path = "support/desk.rs"]
#[expect(dead_code, reason = "the tests of power cuts need the rest of it")]
mod desk;

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use desk::{Desk, copy_dir, id, keyed};
use hostler_engine::fact::Charge;
use hostler_server::auth::{Role, TokenRecord};
use hostler_server::clock::Clock;
use hostler_server::config::Durability;
use hostler_server::output::{self, Options};
use hostler_server::store::seam::Store;
use hostler_server::store::sqlite::{FILE, SqliteStore};
use hostler_server::{Report, VerifyError, verify};
use hostler_wire::frame::{Chunk, Frame, OutputEnd, Stream};
use hostler_wire::token::Token;
use hostler_wire::{Attempt, Epoch, Fence, JobState};
use rusqlite::Connection;

fn open(dir: &Path) -> Desk {
    Desk::open(SqliteStore::open(dir).unwrap(), Durability::Fsync).unwrap()
}

/// A directory with a job of every kind, below the mark and above it, from three starts of the server.
///
/// Below: 1 succeeded, 2 failed at its second try, 3 cancelled while it waited, 4 runs its second attempt, 5 has
/// failed and waits, 6 is told to stop, 7 waits, 8 to 10 came under a key. Above: 11 waits, 12 succeeded, 13 runs.
fn furnished() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut desk = open(dir.path());
    assert_eq!(desk.accept(7), 1);
    let accepted = desk.submit(keyed(3, "key")).unwrap();
    assert_eq!(accepted.first, id(8));
    let given = desk.assign(1, &[1, 2, 4, 5, 6]);
    assert!(desk.tell(given));
    let facts = vec![
        desk.started(1, 6),
        desk.ended(1, 1, JobState::Succeeded),
        desk.again(1, 2, Charge::Failure),
        desk.again(1, 4, Charge::Loss),
        desk.again(1, 5, Charge::Failure),
        desk.ended(1, 3, JobState::Cancelled),
        desk.cancelling(6),
    ];
    assert!(desk.tell(facts));
    let given = desk.assign(2, &[2, 4]);
    assert!(desk.tell(given));
    let end = desk.ended(2, 2, JobState::Failed);
    assert!(desk.tell(vec![end]));
    for role in [Role::Submit, Role::Worker] {
        desk.make_token(&token(role));
    }
    desk.stop();
    move_mark(dir.path());
    let mut desk = open(dir.path());
    let first = desk.accept(3);
    assert_eq!(first, 11);
    let given = desk.assign(3, &[12, 13]);
    assert!(desk.tell(given));
    let end = desk.ended(3, 12, JobState::Succeeded);
    assert!(desk.tell(vec![end]));
    desk.stop();
    write_output(&dir.path().join(output::DIR));
    dir
}

/// A token of that role, which is its id too.
fn token(role: Role) -> TokenRecord {
    let token = Token {
        role: role.name().to_owned(),
        id: format!("{:0<8}", role.name()),
        secret: [7; 32],
    };
    TokenRecord::new(&token, role)
}

/// Moves the mark as far as it goes, in a start of its own.
fn move_mark(dir: &Path) {
    let mut store = SqliteStore::open(dir).unwrap();
    store.move_mark_eagerly();
    store.load(&mut |_| {}).unwrap();
    let stamp = Clock::resume(store.opening().stamp).stamp();
    while store.maintain(&stamp).unwrap() {}
    Box::new(store).close().unwrap();
}

/// Output of two jobs in sealed segments and one in the last.
fn write_output(dir: &Path) {
    let options = Options {
        dir: dir.to_path_buf(),
        files: std::sync::Arc::new(output::SystemFiles),
        output_bytes_max: 1 << 20,
        segment_bytes: 64 << 10,
        keep: Duration::from_secs(1_000),
        keep_failed: Duration::from_secs(1_000),
        total_bytes_max: 1 << 30,
        linger: Duration::from_secs(1),
    };
    let (told, answers) = std::sync::mpsc::channel();
    let tell = Box::new(move |batch: &mut Vec<output::Answer>| {
        batch.drain(..).for_each(|answer| drop(told.send(answer)));
    });
    let ends: output::AskEnds = Box::new(|_| Box::new(|| Some(None)));
    let ways = output::Ways {
        answers: tell,
        ends,
        commits: std::sync::Arc::default(),
    };
    let (handle, thread) = output::spawn(options, Clock::resume(None), ways).unwrap();
    for job in [1, 2, 12] {
        let fence = Fence {
            job: id(job),
            epoch: Epoch::new(1),
            attempt: Attempt::FIRST,
        };
        for part in 0..2_u64 {
            let chunk = Chunk {
                fence,
                stream: Stream::Stdout,
                offset: part * 40_000,
                at_ms: 5,
                data: Bytes::from(vec![7; 40_000]),
            };
            handle.frames(1, vec![Frame::Chunk(chunk)], 40_000);
            // One commit each.
            while !matches!(answers.recv().unwrap(), output::Answer::Acks { .. }) {}
        }
        let end = Frame::OutputEnd(OutputEnd {
            fence,
            stdout_bytes: 80_000,
            stderr_bytes: 0,
            dropped_bytes: 0,
        });
        handle.frames(1, vec![end], 100);
        while !matches!(answers.recv().unwrap(), output::Answer::Acks { .. }) {}
    }
    handle.stop();
    thread.join().unwrap();
}

fn sound(report: &Report) {
    assert!(report.is_sound(), "{:#?}", report.findings);
}

#[test]
fn a_directory_that_went_through_everything_is_sound() {
    let dir = furnished();
    let report = verify(dir.path()).unwrap();
    sound(&report);
    let expected = [
        ("jobs", 13),
        ("ends", 4),
        ("attempts", 3),
        ("unfinished", 9),
        ("carried", 7),
        ("epochs", 3),
        ("keys", 1),
        ("workers", 3),
        ("tokens", 2),
        // Three commits with jobs, and the two tokens.
        ("audit", 5),
    ];
    for (what, count) in expected {
        assert_eq!(report.counts[what], count, "{what}: {:?}", report.counts);
    }
    assert!(report.counts["segments"] >= 3, "{:?}", report.counts);
    assert_eq!(report.server, None);
    assert_eq!(report.skipped, []);
    // Nothing was changed by the look: the next server starts, and again it is sound.
    open(dir.path()).stop();
    sound(&verify(dir.path()).unwrap());
}

#[test]
fn beside_a_running_server_it_says_whose_it_is_and_leaves_out_what_is_written_to() {
    let dir = furnished();
    let desk = open(dir.path());
    desk.accept(5);
    let report = verify(dir.path()).unwrap();
    sound(&report);
    let pid = format!("pid {}", std::process::id());
    assert!(report.server.as_ref().unwrap().contains(&pid), "{report:?}");
    assert_eq!(report.counts["jobs"], 18);
    let last = report.skipped.iter().any(|s| s.what.ends_with(".seg"));
    assert!(last, "{:?}", report.skipped);
    desk.accept(1);
    desk.stop();
    sound(&verify(dir.path()).unwrap());
}

#[test]
fn after_a_kill_the_log_is_read_too() {
    let dir = furnished();
    let desk = open(dir.path());
    desk.accept(100);
    let copy = tempfile::tempdir().unwrap();
    copy_dir(dir.path(), copy.path());
    desk.stop();
    let report = verify(copy.path()).unwrap();
    sound(&report);
    assert_eq!(report.counts["jobs"], 113);
    assert_eq!(report.server, None);
}

#[test]
fn what_is_no_data_directory_is_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let none = dir.path().join("none");
    assert_eq!(verify(&none).unwrap_err(), VerifyError::NoDirectory(none));
    assert_eq!(
        verify(dir.path()).unwrap_err(),
        VerifyError::NoDatabase(dir.path().to_owned())
    );
}

/// What is done to the database, which check notices, and of which job it speaks.
const DOCTORED: &[(&str, &str, Option<u64>)] = &[
    // Ends and ids.
    (
        "INSERT INTO ends (id, state, reason, attempt, epoch, finished_ms) VALUES (14, 10, 0, 0, 0, 5)",
        "ids",
        Some(14),
    ),
    (
        "UPDATE meta SET ids_through = 99; INSERT INTO ends (id, state, reason, attempt, epoch, finished_ms) VALUES (40, 10, 0, 0, 0, 5)",
        "ends",
        Some(40),
    ),
    (
        "INSERT INTO done (id, attempt, epoch, worker, finished_ms) VALUES (2, 2, 2, 2, 5)",
        "ends",
        Some(2),
    ),
    ("DELETE FROM jobs WHERE id = 12", "ends", Some(12)),
    ("DELETE FROM jobs WHERE id = 13", "shares", Some(13)),
    ("DELETE FROM jobs WHERE id = 5", "attempts", Some(5)),
    ("UPDATE meta SET ids_through = 13", "ids", Some(13)),
    (
        "UPDATE jobs SET retry_of = 12 WHERE id = 11",
        "ids",
        Some(11),
    ),
    (
        "UPDATE jobs SET body = NULL WHERE id = 11",
        "bodies",
        Some(11),
    ),
    (
        "INSERT INTO marks VALUES (20, 5, 2, NULL)",
        "marks",
        Some(20),
    ),
    // Codes.
    ("UPDATE ends SET state = 99 WHERE id = 2", "codes", Some(2)),
    ("UPDATE ends SET state = 3 WHERE id = 2", "codes", Some(2)),
    (
        "UPDATE ends SET reason = 250 WHERE id = 2",
        "codes",
        Some(2),
    ),
    (
        "UPDATE ends SET output_place = 5 WHERE id = 2",
        "codes",
        Some(2),
    ),
    (
        "UPDATE attempts SET charge = 9 WHERE job = 4",
        "codes",
        Some(4),
    ),
    (
        "UPDATE attempts SET reason = 250 WHERE job = 4",
        "codes",
        Some(4),
    ),
    (
        "UPDATE attempts SET due_us = 1, due_ms = 1 WHERE job = 5",
        "codes",
        Some(5),
    ),
    ("UPDATE marks SET reason = 250", "codes", Some(6)),
    (
        "UPDATE jobs SET priority = 500 WHERE id = 7",
        "codes",
        Some(7),
    ),
    (
        "UPDATE jobs SET engine = x'00' WHERE id = 7",
        "codes",
        Some(7),
    ),
    // Attempts.
    (
        "INSERT INTO attempts (job, number, epoch, worker, reason, charge, finished_ms) SELECT job, number, 2, worker, reason, charge, finished_ms FROM attempts WHERE job = 5",
        "attempts",
        Some(5),
    ),
    (
        "UPDATE ends SET attempt = 1 WHERE id = 2",
        "attempts",
        Some(2),
    ),
    (
        "UPDATE done SET attempt = 7 WHERE id = 1",
        "attempts",
        Some(1),
    ),
    (
        "UPDATE attempts SET number = 9 WHERE job = 5",
        "attempts",
        Some(5),
    ),
    (
        "INSERT INTO assigned SELECT (SELECT max(seq) + 1 FROM assigned), epoch, worker, at_us, attempts FROM assigned WHERE epoch = 3",
        "attempts",
        Some(12),
    ),
    // Shares.
    (
        "INSERT INTO assigned SELECT (SELECT max(seq) + 5 FROM assigned), epoch, worker, at_us, x'0e0101' FROM assigned WHERE epoch = 3",
        "shares",
        None,
    ),
    (
        "INSERT INTO started SELECT seq, epoch, worker, at_us, attempts, 0 FROM assigned WHERE epoch = 3",
        "shares",
        None,
    ),
    (
        "UPDATE assigned SET attempts = x'ff' WHERE epoch = 3",
        "shares",
        None,
    ),
    (
        "UPDATE started SET attempts = x'060104'",
        "attempts",
        Some(6),
    ),
    // Epochs.
    (
        "UPDATE assigned SET epoch = 77 WHERE epoch = 3",
        "epochs",
        None,
    ),
    (
        "UPDATE assigned SET epoch = 2 WHERE seq = 1",
        "epochs",
        None,
    ),
    (
        "UPDATE attempts SET epoch = 77 WHERE job = 5",
        "epochs",
        Some(5),
    ),
    ("UPDATE done SET epoch = 77 WHERE id = 1", "epochs", Some(1)),
    (
        "UPDATE attempts SET epoch = 2 WHERE job = 2",
        "epochs",
        Some(2),
    ),
    ("DELETE FROM epochs WHERE epoch = 1", "epochs", None),
    ("UPDATE epochs SET nonce = x'00'", "epochs", None),
    ("UPDATE meta SET epoch = 9", "epochs", None),
    // What rows refer to.
    ("DELETE FROM workers WHERE id = 3", "workers", None),
    (
        "UPDATE ends SET worker = NULL WHERE id = 2",
        "workers",
        Some(2),
    ),
    (
        "UPDATE done SET worker = 99 WHERE id = 1",
        "workers",
        Some(1),
    ),
    ("DELETE FROM classes", "classes", Some(1)),
    ("UPDATE classes SET spec = '{}'", "classes", None),
    ("UPDATE classes SET queue = 'other'", "classes", None),
    // The mark.
    ("DELETE FROM carried WHERE job = 7", "carried", Some(7)),
    (
        "UPDATE carried SET failures = 3 WHERE job = 5",
        "carried",
        Some(5),
    ),
    (
        "UPDATE carried SET run_attempt = NULL WHERE job = 4",
        "carried",
        Some(4),
    ),
    (
        "UPDATE carried SET run_worker = 9 WHERE job = 4",
        "carried",
        Some(4),
    ),
    (
        "UPDATE carried SET cancelling = NULL WHERE job = 6",
        "carried",
        Some(6),
    ),
    (
        "UPDATE carried SET ever_started = 0 WHERE job = 5",
        "carried",
        Some(5),
    ),
    (
        "UPDATE carried SET due_us = 5 WHERE job = 7",
        "carried",
        Some(7),
    ),
    (
        "INSERT INTO carried SELECT 1, attempt, ended, failures, losses, later, ever_started, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL FROM carried WHERE job = 7",
        "carried",
        Some(1),
    ),
    ("UPDATE meta SET mark_id = 11", "carried", Some(11)),
    ("UPDATE meta SET mark_id = 11", "mark", None),
    ("UPDATE meta SET mark_id = 500", "mark", None),
    ("UPDATE meta SET purged_id = 12", "mark", None),
    // Keys and counters.
    ("UPDATE keys SET first = 90", "keys", None),
    ("UPDATE keys SET hash = x'00'", "keys", None),
    ("DELETE FROM jobs WHERE id = 9", "keys", None),
    (
        "UPDATE metrics SET submitted = submitted + 9, live = live + 9",
        "counters",
        None,
    ),
    (
        "INSERT INTO metrics SELECT at_ms + 1, epoch, submitted, succeeded, failed, cancelled, expired, skipped, attempts, commits + 1, refused, live + 3 FROM metrics WHERE epoch = 3",
        "counters",
        None,
    ),
    (
        "INSERT INTO metrics SELECT at_ms + 1, epoch, submitted - 1, succeeded, failed, cancelled, expired, skipped, attempts, commits + 1, refused, live - 1 FROM metrics WHERE epoch = 3",
        "counters",
        None,
    ),
    (
        "UPDATE metrics SET epoch = 9 WHERE epoch = 3",
        "counters",
        None,
    ),
    // Access tokens, and who did what.
    ("UPDATE tokens SET role = 'root'", "tokens", None),
    (
        "UPDATE tokens SET role = 'read' WHERE role = 'worker'",
        "tokens",
        None,
    ),
    (
        "UPDATE tokens SET digest = x'00' WHERE role = 'submit'",
        "tokens",
        None,
    ),
    ("UPDATE tokens SET server_key = NULL", "tokens", None),
    ("UPDATE tokens SET queues = 'all'", "tokens", None),
    (
        "UPDATE tokens SET allow = '[\"everything\"]'",
        "tokens",
        None,
    ),
    (
        "UPDATE tokens SET id = 'a b' WHERE role = 'submit'",
        "tokens",
        None,
    ),
    ("UPDATE tokens SET expires_ms = created_ms", "tokens", None),
    ("UPDATE tokens SET revoked_ms = -1", "tokens", None),
    ("UPDATE audit SET requests = 0", "audit", None),
    ("UPDATE audit SET token = 'abc'", "audit", None),
    ("UPDATE audit SET peer = 'nowhere'", "audit", None),
    ("UPDATE audit SET action = ''", "audit", None),
    ("UPDATE audit SET status = 7", "audit", None),
    ("UPDATE audit SET status = 403, code = NULL", "audit", None),
    (
        "UPDATE audit SET count = NULL WHERE first IS NOT NULL",
        "audit",
        None,
    ),
    (
        "UPDATE audit SET count = 5000 WHERE first IS NOT NULL",
        "audit",
        None,
    ),
    // The file as a whole.
    ("DELETE FROM meta", "meta", None),
    ("UPDATE meta SET boot = NULL", "meta", None),
    ("UPDATE meta SET cluster = x'00'", "meta", None),
    ("DELETE FROM reason_names WHERE code = 0", "names", None),
    ("DROP INDEX ends_rare", "schema", None),
    ("DROP VIEW job", "schema", None),
    ("DROP TABLE metrics", "schema", None),
    ("PRAGMA user_version = 9", "schema", None),
    ("PRAGMA application_id = 9", "schema", None),
];

#[test]
fn each_way_of_doctoring_a_database_is_found_and_named() {
    let whole = furnished();
    let mut missed = Vec::new();
    for (sql, check, job) in DOCTORED {
        let dir = tempfile::tempdir().unwrap();
        copy_dir(whole.path(), dir.path());
        let db = Connection::open(dir.path().join(FILE)).unwrap();
        db.execute_batch(sql)
            .unwrap_or_else(|error| panic!("{sql}: {error}"));
        let changed =
            db.total_changes() > 0 || sql.starts_with("DROP") || sql.starts_with("PRAGMA");
        assert!(changed, "{sql}: changed nothing");
        drop(db);
        let report = verify(dir.path()).unwrap();
        let found = report
            .findings
            .iter()
            .any(|finding| finding.check == *check && (job.is_none() || finding.job == *job));
        if !found {
            missed.push(format!(
                "{sql}\n  wanted {check} {job:?}, found {:?}",
                report.findings
            ));
        }
    }
    assert!(missed.is_empty(), "not found:\n{}", missed.join("\n"));
}

fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 0x10;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn damaged_pages_and_a_shortened_file_are_found() {
    let whole = furnished();
    let page = 16_384;
    let pages = std::fs::metadata(whole.path().join(FILE)).unwrap().len() / page;
    type Harm<'a> = &'a dyn Fn(&Path);
    let cases: [(&str, Harm<'_>); 3] = [
        ("shortened", &|path| {
            let file = std::fs::File::options().write(true).open(path).unwrap();
            file.set_len((pages - 3) * page).unwrap();
        }),
        ("scribbled on", &|path| {
            let mut bytes = std::fs::read(path).unwrap();
            let at = usize::try_from(2 * page).unwrap();
            bytes[at..at + 64].fill(0xa5);
            std::fs::write(path, bytes).unwrap();
        }),
        ("not SQLite's", &|path| {
            std::fs::write(path, [7; 40_000]).unwrap()
        }),
    ];
    for (what, harm) in cases {
        let dir = tempfile::tempdir().unwrap();
        copy_dir(whole.path(), dir.path());
        harm(&dir.path().join(FILE));
        let report = verify(dir.path()).unwrap();
        let named = |check: &str| report.findings.iter().any(|f| f.check == check);
        assert!(
            named("integrity") || named("unreadable"),
            "{what}: {report:#?}"
        );
    }
}

#[test]
fn damaged_output_is_found_in_segments_and_indexes() {
    let whole = furnished();
    let files = |ending: &str| -> Vec<PathBuf> {
        let all = std::fs::read_dir(whole.path().join(output::DIR)).unwrap();
        let mut all: Vec<PathBuf> = all
            .map(|file| PathBuf::from(file.unwrap().file_name()))
            .filter(|name| name.extension().is_some_and(|e| e == ending))
            .collect();
        all.sort();
        all
    };
    let (segment, index) = (&files("seg")[0], &files("idx")[0]);
    let length = std::fs::metadata(whole.path().join(output::DIR).join(segment))
        .unwrap()
        .len();
    type Harm = Box<dyn Fn(&Path)>;
    let at = |at: usize| -> Harm { Box::new(move |path: &Path| flip(path, at)) };
    let cases: Vec<(&str, &PathBuf, Harm, &str)> = vec![
        ("the segment's header", segment, at(3), "output"),
        ("a record's header", segment, at(60), "output"),
        ("a record's data", segment, at(1_000), "output"),
        ("the index's header", index, at(9), "output_index"),
        ("an entry of the index", index, at(90), "output_index"),
        (
            "a shortened segment",
            segment,
            Box::new(move |path| {
                let file = std::fs::File::options().write(true).open(path).unwrap();
                file.set_len(length - 5).unwrap();
            }),
            "output",
        ),
        (
            "an index of another segment",
            index,
            Box::new(|path| {
                std::fs::copy(path.with_file_name("00000002.idx"), path).unwrap();
            }),
            "output_index",
        ),
    ];
    for (what, name, harm, check) in cases {
        let dir = tempfile::tempdir().unwrap();
        copy_dir(whole.path(), dir.path());
        harm(&dir.path().join(output::DIR).join(name));
        let report = verify(dir.path()).unwrap();
        let found = report.findings.iter().any(|f| f.check == check);
        assert!(found, "{what}: {:#?}", report.findings);
    }
}
