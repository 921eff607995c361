//! A worker that has no descriptor left to look for processes with. Alone in its process, since it lowers the limit of
//! all of it.

use hostler_wire::Outcome;
use hostler_wire::frame::{Cancel, Frame, Role, Work};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use fake::{FakeServer, RunningWorker, fence, shell};

#[path = "support/fake.rs"]
#[expect(dead_code, reason = "shared with the other tests")]
mod fake;

#[test]
fn who_cannot_be_looked_for_is_not_taken_for_gone() {
    let server = FakeServer::new();
    let _worker = RunningWorker::start(server.worker());
    let mut control = server.control();
    let work = Work {
        grace_ms: Some(200),
        ..shell("trap '' TERM; echo up; sleep 60; sleep 60")
    };
    control.assign([(1, work)]);
    let mut output = server.accept(Role::Output);
    output.output_start(1);
    let Frame::Chunk(_) = output.next() else {
        panic!("up")
    };
    let limit = getrlimit(Resource::Nofile);
    setrlimit(
        Resource::Nofile,
        Rlimit {
            // Whatever is open stays so.
            current: Some(3),
            ..limit
        },
    )
    .unwrap();
    control.send(&Frame::Cancel(Cancel {
        fence: fence(1),
        force: false,
    }));
    let report = control.report();
    setrlimit(Resource::Nofile, limit).unwrap();
    assert_eq!(report.outcome, Outcome::Signalled { signal: 9 });
    // After the grace, the second that is waited for what cannot be ended.
    assert!(report.run_us >= 1_200_000, "{} µs", report.run_us);
}
