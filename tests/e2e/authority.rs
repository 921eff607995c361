//! Who may do what, asked of the real binary: access tokens from their making to their end, scopes and types of job, rates,
//! the record of who did what, and workers that hold a right token and lie.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use bytes::BytesMut;
use hostler_tests::{
    Client, Cluster, Finished, PATIENCE, Process, WorkerProc, eventually, wait_for,
};
use hostler_wire::decoder::Decoder;
use hostler_wire::frame::{Frame, Held, Login, Report, Reports, Resumed, Role, Started};
use hostler_wire::handshake::ClientHandshake;
use hostler_wire::limits::FRAME_BYTES_MAX;
use hostler_wire::token::Token;
use hostler_wire::{Attempt, Epoch, Fence, JobId, Outcome};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::submit::until_exists_line;

/// `hostler token create`; the id and the secret.
#[track_caller]
fn make(cluster: &Cluster, args: &[&str]) -> (String, String) {
    let args = [&["token", "create", "-o", "json"], args].concat();
    let made: Value = serde_json::from_str(&cluster.hostler(&args).expect_code(0).stdout).unwrap();
    let text = |name: &str| made[name].as_str().unwrap().to_owned();
    (text("id"), text("secret"))
}

/// A command of the command line with that token.
#[track_caller]
fn with(cluster: &Cluster, secret: &str, args: &[&str]) -> Finished {
    let url = format!("http://{}", cluster.http_addr());
    let env = [("HOSTLER_URL", url.as_str()), ("HOSTLER_TOKEN", secret)];
    Process::hostler(cluster.scratch(), args, &env).wait(PATIENCE)
}

fn client(cluster: &Cluster, secret: &str) -> Client {
    Client::new(cluster.http_addr(), Some(secret.to_owned()))
}

/// A worker with that token.
fn spawn_worker(cluster: &Cluster, name: &str, secret: &str, flags: &[&str]) -> WorkerProc {
    let file = cluster.scratch().join(format!("{name}.token"));
    fs::write(&file, secret).unwrap();
    let server = cluster.worker_addr().to_string();
    let fixed = [
        "worker",
        "--server",
        &server,
        "--name",
        name,
        "--slots",
        "1",
        "--token-file",
        file.to_str().unwrap(),
    ];
    WorkerProc {
        process: Process::hostler(cluster.scratch(), &[&fixed[..], flags].concat(), &[]),
        name: name.to_owned(),
    }
}

/// The record of who did what, oldest first.
fn audit(cluster: &Cluster) -> Vec<Value> {
    let told = cluster.hostler(&["audit", "-o", "ndjson", "--limit", "1000"]);
    let mut rows: Vec<Value> = told
        .expect_code(0)
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    rows.reverse();
    rows
}

/// Who did what to what and what came of it, of one row.
fn gist(row: &Value) -> Value {
    json!([
        row["token"],
        row["action"],
        row["object"],
        row["status"],
        row["code"]
    ])
}

/// Waits for a row: what was refused is written within a second.
#[track_caller]
fn await_row(cluster: &Cluster, wanted: &Value) -> Value {
    wait_for(PATIENCE, format!("audit tells {wanted}"), || {
        audit(cluster)
            .into_iter()
            .rev()
            .find(|row| gist(row) == *wanted)
    })
}

fn admin_id(cluster: &Cluster) -> String {
    let token = fs::read_to_string(cluster.data().join("admin.token")).unwrap();
    Token::parse(token.trim()).unwrap().id
}

#[test]
fn each_role_does_its_own_on_the_command_line_and_the_rest_is_code_4() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 1);
    let id = cluster.submit(&json!({"handler": "noop"}));
    cluster.await_end(id);
    let id = id.to_string();
    let commands: [(&str, &[&str]); 6] = [
        ("read", &["list"]),
        ("read", &["status", &id]),
        ("submit", &["submit", "--", "true"]),
        ("submit", &["retry", &id]),
        ("admin", &["token", "list"]),
        ("admin", &["audit"]),
    ];
    for (role, rights) in [
        ("worker", &[][..]),
        ("read", &["read"][..]),
        ("submit", &["read", "submit"][..]),
        ("admin", &["read", "submit", "admin"][..]),
    ] {
        let (_, secret) = make(&cluster, &["--role", role]);
        for (needs, args) in &commands {
            let end = with(&cluster, &secret, args);
            let expected = if rights.contains(needs) { 0 } else { 4 };
            assert_eq!(end.code, expected, "{role} {args:?}: {}", end.stderr);
            assert!(!end.stderr.contains(&secret), "{}", end.stderr);
        }
    }
}

#[test]
fn a_scoped_token_sees_and_fills_its_queues_only() {
    let cluster = Cluster::start();
    let theirs = cluster.submit(&json!({"command": ["true"], "queue": "theirs"}));
    let args = ["--role", "submit", "--queue", "ours", "--name", "ci"];
    let (_, secret) = make(&cluster, &args);
    let made = with(
        &cluster,
        &secret,
        &["submit", "-q", "ours", "-o", "id", "--", "true"],
    );
    let ours = made.expect_code(0).stdout.trim().to_owned();
    let refused = with(&cluster, &secret, &["submit", "-q", "theirs", "--", "true"]);
    assert_eq!(refused.code, 4, "{}", refused.stderr);
    let listed = with(&cluster, &secret, &["list", "-o", "id"]).expect_code(0);
    assert_eq!(listed.stdout.trim(), ours);
    // Another queue's job looks like one that never was.
    for command in ["status", "cancel", "retry"] {
        let end = with(&cluster, &secret, &[command, &theirs.to_string()]);
        assert_eq!(end.code, 3, "{command}: {}", end.stderr);
    }
    assert_eq!(cluster.job(theirs)["state"], "queued");
    assert_eq!(cluster.database().number("SELECT count(*) FROM job"), 2);
}

#[test]
fn a_revoked_token_is_good_for_nothing_at_once_on_both_ports_and_after_a_kill() {
    let mut cluster = Cluster::start();
    let (reader, reads) = make(&cluster, &["--role", "read"]);
    let (worker, works) = make(&cluster, &["--role", "worker"]);
    let mut process = spawn_worker(&cluster, "w-1", &works, &[]);
    cluster.await_worker("w-1");
    client(&cluster, &reads).get("/jobs").expect(200);
    let listed = cluster.hostler(&["token", "list"]).expect_code(0).stdout;
    for told in [
        &*reader,
        &worker,
        "active",
        "admin.token",
        "worker.token",
        "read",
    ] {
        assert!(listed.contains(told), "no {told} in {listed}");
    }
    assert!(!listed.contains(&reads) && !listed.contains(&works));

    cluster
        .hostler(&["token", "revoke", &reader, &worker])
        .expect_code(0);
    let refused = client(&cluster, &reads).get("/jobs");
    assert_eq!(refused.problem(401)["code"], "token_expired");
    assert_eq!(with(&cluster, &reads, &["list"]).code, 4);
    eventually(Duration::from_secs(5), "the worker's session ends", || {
        process.process.runs();
        cluster
            .worker_view("w-1")
            .is_none_or(|view| view["connected"] == false)
    });
    // And so it stays, whatever becomes of the server.
    cluster.restart_server();
    client(&cluster, &reads).get("/jobs").problem(401);
    let listed = cluster.hostler(&["token", "list", "-o", "json"]);
    let listed: Value = serde_json::from_str(&listed.expect_code(0).stdout).unwrap();
    let revoked = listed["tokens"].as_array().unwrap().iter();
    assert_eq!(revoked.filter(|it| it["state"] == "revoked").count(), 2);
    cluster.database().check();
}

/// Waits until that worker's session is of that token.
#[track_caller]
fn await_login(cluster: &Cluster, worker: &str, token: &str) {
    eventually(PATIENCE, format!("{worker} logs in by {token}"), || {
        let rows = audit(cluster);
        let mut logins = rows.iter().filter(|row| row["action"] == "worker_login");
        logins.any(|row| row["token"] == token && row["object"] == worker)
    });
    cluster.await_worker(worker);
}

#[test]
fn a_worker_takes_the_token_its_file_holds_now_at_its_next_login_and_keeps_its_job() {
    let cluster = Cluster::start();
    let (old, works) = make(&cluster, &["--role", "worker"]);
    let mut worker = spawn_worker(&cluster, "w-1", &works, &[]);
    await_login(&cluster, "w-1", &old);
    let gate = cluster.scratch().join("gate");
    let wait = until_exists_line(&gate);
    let id = cluster.submit(&json!({"command": ["sh", "-c", wait]}));
    cluster.await_state(id, "running");

    let (new, works) = make(&cluster, &["--role", "worker"]);
    fs::write(cluster.scratch().join("w-1.token"), works).unwrap();
    cluster.hostler(&["token", "revoke", &old]).expect_code(0);
    await_login(&cluster, "w-1", &new);
    assert!(worker.process.runs());
    fs::write(&gate, "").unwrap();
    let job = cluster.await_end(id);
    assert_eq!(
        (&job["state"], &job["attempt"]),
        (&json!("succeeded"), &json!(1))
    );
    cluster.database().check();
}

#[test]
fn the_tokens_of_files_are_exchanged_on_hup_and_the_old_ones_open_nothing() {
    let mut cluster = Cluster::start();
    let file = |name: &str| cluster.data().join(name);
    let (admin, works) = (file("admin.token"), file("worker.token"));
    let old_admin = fs::read_to_string(&admin).unwrap().trim().to_owned();
    let old_worker = Token::parse(fs::read_to_string(&works).unwrap().trim()).unwrap();
    let _worker = cluster.worker("w-1", 1);
    fs::remove_file(&admin).unwrap();
    fs::remove_file(&works).unwrap();
    cluster.server().signal(Signal::HUP);
    eventually(PATIENCE, "there are others", || works.exists());
    client(&cluster, &old_admin).get("/jobs").problem(401);
    let secret = fs::read_to_string(&admin).unwrap().trim().to_owned();
    assert_ne!(secret, old_admin);
    client(&cluster, &secret).get("/jobs").expect(200);
    // The worker reads the same file as the server wrote, and finds the new one there.
    let new_worker = Token::parse(fs::read_to_string(&works).unwrap().trim()).unwrap();
    assert_ne!(new_worker.id, old_worker.id);
    await_login(&cluster, "w-1", &new_worker.id);
}

#[test]
fn a_token_ends_by_itself_when_its_time_is_over() {
    let cluster = Cluster::start();
    let (id, secret) = make(&cluster, &["--role", "read", "--expires", "2s"]);
    client(&cluster, &secret).get("/jobs").expect(200);
    eventually(PATIENCE, "the token expires", || {
        client(&cluster, &secret).get("/jobs").status == 401
    });
    let refused = client(&cluster, &secret).get("/jobs");
    assert_eq!(refused.problem(401)["code"], "token_expired");
    let listed = cluster.hostler(&["token", "list"]).expect_code(0).stdout;
    let line = listed.lines().find(|line| line.contains(&id)).unwrap();
    assert!(line.contains("expired"), "{line}");
}

#[test]
fn a_secret_goes_to_a_file_of_its_owner_and_an_existing_file_is_left_alone() {
    let cluster = Cluster::start();
    let file = cluster.scratch().join("ci.token");
    let path = file.to_str().unwrap();
    let args = ["token", "create", "--role", "read", "--to", path];
    let end = cluster.hostler(&args).expect_code(0);
    let secret = fs::read_to_string(&file).unwrap();
    client(&cluster, secret.trim()).get("/jobs").expect(200);
    assert!(!end.stdout.contains(secret.trim()) && !end.stderr.contains(secret.trim()));
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let again = cluster.hostler(&args);
    assert_eq!(again.code, 2, "{}", again.stderr);
    assert_eq!(fs::read_to_string(&file).unwrap(), secret);
    let listed = cluster.hostler(&["token", "list", "-o", "id"]);
    assert_eq!(listed.expect_code(0).stdout.lines().count(), 3);
}

#[test]
fn above_its_rate_a_token_is_told_when_to_come_again_and_others_are_not() {
    let cluster = Cluster::start();
    let (_, secret) = make(&cluster, &["--role", "read", "--requests-per-second", "1"]);
    let mut asked = client(&cluster, &secret);
    let refused = (0..50)
        .map(|_| asked.get("/queues"))
        .find(|answer| answer.status != 200)
        .expect("50 requests in a second are too many");
    assert_eq!(refused.problem(429)["code"], "rate_limited");
    let seconds: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=2).contains(&seconds), "{seconds}");
    let args = ["--role", "submit", "--jobs-per-second", "2"];
    let (_, secret) = make(&cluster, &args);
    let batch = Value::from(vec![json!({"command": ["true"]}); 20]);
    let mut submits = client(&cluster, &secret);
    submits.post("/jobs", &batch).expect(201);
    let refused = submits.post("/jobs", &json!({"command": ["true"]}));
    assert_eq!(refused.problem(429)["code"], "rate_limited");
    assert!(refused.header("retry-after").is_some());
    let counted = metric(&cluster, "hostler_http_rate_limited_total");
    assert!(counted >= 2.0, "{counted}");
    assert_eq!(cluster.database().number("SELECT count(*) FROM job"), 20);
    cluster.submit(&json!({"command": ["true"]}));
}

/// A figure of `/metrics` without labels.
fn metric(cluster: &Cluster, name: &str) -> f64 {
    let text = cluster.client().get("/metrics").expect(200).text();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let value = line.and_then(|rest| rest.trim_start_matches("{}").trim().parse().ok());
    value.unwrap_or_else(|| panic!("no {name} in {text}"))
}

#[test]
fn the_record_tells_who_did_what_from_where_and_what_came_of_it_and_outlives_a_kill() {
    let mut cluster = Cluster::start();
    let admin = admin_id(&cluster);
    let (reader, reads) = make(&cluster, &["--role", "read"]);
    let (submitter, submits) = make(&cluster, &["--role", "submit"]);
    let job = |args: &[&str]| {
        let end = with(&cluster, &submits, args).expect_code(0);
        end.stdout.trim().to_owned()
    };
    let first = job(&["submit", "-o", "id", "--", "true"]);
    with(&cluster, &submits, &["cancel", &first]).expect_code(0);
    let second = job(&["retry", "-o", "id", &first]);
    let refused = with(&cluster, &reads, &["submit", "--", "true"]);
    assert_eq!(refused.code, 4);
    client(&cluster, "nonsense").get("/jobs").problem(401);
    cluster
        .hostler(&["token", "revoke", &reader])
        .expect_code(0);
    client(&cluster, &reads).get("/jobs").problem(401);

    let mut rows = Vec::new();
    for wanted in [
        json!([admin, "token_create", reader, 201, null]),
        json!([admin, "token_create", submitter, 201, null]),
        json!([submitter, "submit", null, 201, null]),
        json!([submitter, "cancel", first, 200, null]),
        json!([submitter, "retry", first, 201, null]),
        json!([reader, "submit", null, 403, "role_missing"]),
        json!(["", "access", null, 401, "token_invalid"]),
        json!([admin, "token_revoke", reader, 200, null]),
        json!(["", "access", null, 401, "token_expired"]),
    ] {
        let row = await_row(&cluster, &wanted);
        assert_eq!(row["from"], "127.0.0.1", "{row}");
        assert!(row["at"].is_string() && row["requests"] == 1, "{row}");
        rows.push(row);
    }
    assert_eq!(rows[2]["first_id"].to_string(), first);
    assert_eq!(rows[4]["first_id"].to_string(), second);
    // One with a filter, and as a person sees it.
    let filtered = cluster.hostler(&["audit", "--action", "cancel", "--token", &submitter]);
    let filtered = filtered.expect_code(0).stdout;
    assert_eq!(filtered.lines().count(), 2, "{filtered}");
    assert!(
        filtered.contains(&submitter) && filtered.contains("200"),
        "{filtered}"
    );

    // What was durable when it was answered, and what has been told since, is there after a kill.
    cluster.restart_server();
    let after = audit(&cluster);
    for row in &rows {
        assert!(after.contains(row), "{row} is gone");
    }
    let everything = format!("{after:?}{}", cluster.server().stderr());
    for secret in [&reads, &submits] {
        assert!(!everything.contains(secret.as_str()), "a secret is told");
    }
    cluster.database().check();
}

#[test]
fn a_submission_that_was_answered_is_in_the_record_though_the_server_is_killed_at_once() {
    let mut cluster = Cluster::start();
    let (id, secret) = make(&cluster, &["--role", "submit"]);
    let answer = client(&cluster, &secret).post("/jobs", &json!({"command": ["true"]}));
    cluster.kill_server();
    let job = answer.expect(201).json()["id"].clone();
    cluster.start_server();
    let rows = audit(&cluster);
    let told = rows
        .iter()
        .any(|row| row["action"] == "submit" && row["token"] == id && row["first_id"] == job);
    assert!(told, "{rows:?}");
}

#[test]
fn types_of_job_are_the_servers_and_the_tokens_to_allow() {
    let flags = [
        "--no-commands",
        "--allow-handler",
        "no*",
        "--allow-handler",
        "sleep",
    ];
    let cluster = Cluster::with(&flags);
    let (_, any) = make(&cluster, &["--role", "submit"]);
    let narrow = ["--role", "submit", "--allow", "handler:noop,command"];
    let (_, narrow) = make(&cluster, &narrow);
    for (secret, job, status) in [
        (&any, json!({"handler": "noop"}), 201),
        (&any, json!({"handler": "sleep", "payload": {}}), 201),
        (&any, json!({"handler": "fail"}), 403),
        (&any, json!({"command": ["true"]}), 403),
        (&narrow, json!({"handler": "noop"}), 201),
        (&narrow, json!({"handler": "sleep"}), 403),
        // The token would, the server does not.
        (&narrow, json!({"command": ["true"]}), 403),
    ] {
        let answer = client(&cluster, secret).post("/jobs", &job);
        assert_eq!(answer.status, status, "{job}: {}", answer.text());
        if status == 403 {
            assert_eq!(answer.problem(403)["code"], "job_type_not_allowed");
        }
    }
    assert_eq!(cluster.database().number("SELECT count(*) FROM job"), 3);
}

#[test]
fn a_worker_without_commands_gets_none_and_a_narrow_token_wants_no_more() {
    let mut cluster = Cluster::start();
    let command = cluster.submit(&json!({"command": ["true"]}));
    let (_, secret) = make(&cluster, &["--role", "worker", "--allow", "handler:noop"]);
    // It wants more than its token allows: refused, and told how to want less.
    let mut greedy = spawn_worker(&cluster, "greedy", &secret, &[]);
    eventually(PATIENCE, "the worker is told why", || {
        greedy.process.runs();
        greedy.process.stderr().contains("--no-commands")
    });
    assert!(cluster.worker_view("greedy").is_none());
    greedy.process.kill();
    let flags = ["--no-commands", "--allow-handler", "noop"];
    let _modest = spawn_worker(&cluster, "modest", &secret, &flags);
    cluster.await_worker("modest");
    let handler = cluster.submit(&json!({"handler": "noop"}));
    assert_eq!(cluster.await_end(handler)["state"], "succeeded");
    assert_eq!(cluster.job(command)["state"], "queued");
    let _whole = cluster.worker("whole", 1);
    assert_eq!(cluster.await_end(command)["worker"], "whole");
}

/// A worker by hand: it has a right token, and says what it likes.
struct Stranger {
    stream: TcpStream,
    decoder: Decoder,
}

impl Stranger {
    /// Logs in; what it may go on with.
    fn join(cluster: &Cluster, login: Login) -> (Self, Resumed) {
        let text = fs::read_to_string(cluster.data().join("worker.token")).unwrap();
        let token = Token::parse(text.trim()).unwrap();
        let stream = TcpStream::connect(cluster.worker_addr()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut decoder = Decoder::new();
        decoder.accept_up_to(FRAME_BYTES_MAX);
        let mut it = Self { stream, decoder };
        let (handshake, hello) = ClientHandshake::new(&token, Role::Control, [5; 32]);
        it.say(&Frame::Hello(hello));
        let challenge = it.hear(|frame| {
            if let Frame::Challenge(challenge) = frame {
                Some(challenge)
            } else {
                None
            }
        });
        let mut login = login;
        handshake.login(&challenge, &mut login).unwrap();
        it.say(&Frame::Login(Box::new(login)));
        let resumed = it.hear(|frame| {
            if let Frame::Resumed(resumed) = frame {
                Some(resumed)
            } else {
                None
            }
        });
        (it, resumed)
    }

    fn say(&mut self, frame: &Frame) {
        let mut out = BytesMut::new();
        frame.encode(&mut out);
        self.stream.write_all(&out).unwrap();
    }

    /// The first frame that is wanted.
    #[track_caller]
    fn hear<T>(&mut self, wanted: impl Fn(Frame) -> Option<T>) -> T {
        let mut buffer = [0; 4096];
        loop {
            while let Some(frame) = self.decoder.next_frame().unwrap() {
                if let Some(found) = wanted(frame) {
                    return found;
                }
            }
            let read = self.stream.read(&mut buffer).unwrap();
            assert!(read > 0, "the server has closed the connection");
            self.decoder.buffer().extend_from_slice(&buffer[..read]);
        }
    }

    /// Reports that this attempt failed or succeeded, and waits until the server has dealt with it.
    fn report(&mut self, number: u64, fence: Fence, outcome: Outcome) {
        self.say(&Frame::Reports(Reports {
            first: number,
            reports: vec![Report {
                fence,
                outcome,
                cancelled: false,
                started: true,
                run_us: 1,
                detail: None,
            }],
        }));
        self.hear(|frame| {
            if let Frame::Ack(ack) = frame {
                (ack.through >= number).then_some(())
            } else {
                None
            }
        });
    }
}

fn login(name: &str, queue: &str) -> Login {
    Login {
        proof: [0; 32],
        name: name.to_owned(),
        instance: 1,
        session: None,
        slots: 1,
        commands: true,
        handlers: Vec::new(),
        queues: vec![queue.to_owned()],
        labels: Vec::new(),
        allocation: String::new(),
        held: Vec::new(),
        last_report: 0,
        epochs: Vec::new(),
    }
}

fn fence(job: u64, epoch: u32) -> Fence {
    Fence {
        job: JobId::new(job).unwrap(),
        epoch: Epoch::new(epoch),
        attempt: Attempt::FIRST,
    }
}

#[test]
fn a_report_sent_again_or_of_anothers_attempt_is_acknowledged_and_changes_nothing() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 1);
    let gate = cluster.scratch().join("gate");
    let effects = cluster.effects();
    let running = cluster.submit(&effects.job(&until_exists_line(&gate)));
    let waiting = cluster.submit(&json!({"command": ["true"]}));
    cluster.await_state(running, "running");
    let mine = cluster.submit(&json!({"command": ["true"], "queue": "mine"}));
    let (mut stranger, _) = Stranger::join(&cluster, login("stranger", "mine"));
    let given = stranger.hear(|frame| {
        if let Frame::Assign(assign) = frame {
            assign.jobs.first().map(|job| job.fence)
        } else {
            None
        }
    });
    assert_eq!(given, fence(mine, 1));
    // What it runs itself ends once, however often and in whatever way it says so.
    stranger.say(&Frame::Started(Started {
        fences: vec![given],
    }));
    stranger.report(1, given, Outcome::Succeeded);
    let end = cluster.await_end(mine);
    stranger.report(1, given, Outcome::Succeeded);
    stranger.report(2, given, Outcome::Exited { code: 9 });
    assert_eq!(cluster.job(mine), end);
    // What others run or nobody runs yet is none of its matters.
    for (number, job) in [(3, running), (4, waiting)] {
        stranger.report(number, fence(job, 1), Outcome::Succeeded);
    }
    assert_eq!(cluster.job(running)["state"], "running");
    assert_eq!(cluster.job(waiting)["state"], "queued");
    fs::write(&gate, "").unwrap();
    for job in [running, waiting] {
        let end = cluster.await_end(job);
        assert_eq!(
            (&end["worker"], &end["attempt"]),
            (&json!("w-1"), &json!(1))
        );
    }
    assert_eq!(effects.of(running).len(), 1);
    cluster.database().check();
}

#[test]
fn attempts_of_another_servers_starts_are_void_and_reports_of_them_change_nothing() {
    let mut cluster = Cluster::start();
    let _worker = cluster.worker("w-1", 1);
    let gate = cluster.scratch().join("gate");
    let running = cluster.submit(&cluster.effects().job(&until_exists_line(&gate)));
    let waiting = cluster.submit(&json!({"command": ["true"]}));
    cluster.await_state(running, "running");
    // Start 1 of another server, and a start that no server has come to.
    let claimed = [
        fence(running, 1),
        fence(waiting, 1),
        fence(running, 999),
        fence(77_777, 999),
    ];
    let held = claimed.map(|fence| Held {
        fence,
        started: true,
    });
    let mut login = login("stranger", "mine");
    login.held = held.to_vec();
    login.last_report = 4;
    login.epochs = vec![(Epoch::new(1), [9; 16]), (Epoch::new(999), [9; 16])];
    let (mut stranger, resumed) = Stranger::join(&cluster, login);
    for fence in claimed {
        assert!(resumed.void.contains(&fence), "{fence:?}: {resumed:?}");
    }
    for (number, fence) in (1..).zip(claimed) {
        stranger.report(number, fence, Outcome::Succeeded);
    }
    assert_eq!(cluster.job(running)["state"], "running");
    assert_eq!(cluster.job(waiting)["state"], "queued");
    cluster.client().get("/jobs/77777").expect(404);
    fs::write(&gate, "").unwrap();
    for job in [running, waiting] {
        let end = cluster.await_end(job);
        assert_eq!(
            (&end["worker"], &end["attempt"]),
            (&json!("w-1"), &json!(1))
        );
    }
    cluster.database().check();
}

#[test]
fn wrong_tokens_are_refused_counted_and_told_without_a_secret() {
    let mut cluster = Cluster::start();
    let text = fs::read_to_string(cluster.data().join("worker.token")).unwrap();
    let real = Token::parse(text.trim()).unwrap();
    let wrong = Token {
        secret: [9; 32],
        ..real
    };
    let mut worker = spawn_worker(&cluster, "liar", &wrong.to_string(), &[]);
    eventually(PATIENCE, "it is refused", || {
        worker.process.runs();
        metric(&cluster, "hostler_http_unauthorised_total") == 0.0
            && worker.process.stderr().contains("token")
    });
    for _ in 0..3 {
        client(&cluster, &wrong.to_string())
            .get("/jobs")
            .problem(401);
    }
    assert_eq!(metric(&cluster, "hostler_http_unauthorised_total"), 3.0);
    assert!(cluster.worker_view("liar").is_none());
    let told = format!("{:?}{}", audit(&cluster), cluster.server().stderr());
    for secret in [wrong.to_string(), text.trim().to_owned()] {
        assert!(!told.contains(&secret) && !worker.process.stderr().contains(&secret));
    }
}
