//! A worker without a file descriptor to spare. Alone in its process, since it lowers the limit of all of it.

use hostler_wire::Outcome;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use fake::{FakeServer, RunningWorker, command, fence};

#[path = "support/fake.rs"]
#[expect(dead_code, reason = "shared with the other test")]
mod fake;

#[test]
fn want_of_descriptors_gives_the_job_back_and_starts_go_on_when_there_is_room() {
    let server = FakeServer::new();
    let _worker = RunningWorker::start(server.worker());
    let mut control = server.control();
    let limit = getrlimit(Resource::Nofile);
    let open = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: Some(open + 1),
            ..limit
        },
    )
    .unwrap();
    control.assign([(1, command(&["true"])), (2, command(&["true"]))]);
    let report = control.report();
    setrlimit(Resource::Nofile, limit).unwrap();
    assert_eq!(
        (report.fence, report.outcome),
        (fence(1), Outcome::Returned)
    );
    assert!(!report.started);
    assert!(
        report
            .detail
            .unwrap()
            .message
            .contains("Too many open files")
    );
    let report = control.report();
    assert_eq!(
        (report.fence, report.outcome),
        (fence(2), Outcome::Succeeded)
    );
}
