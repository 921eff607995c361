//! Under TLS everything is as it is without; and whoever does not belong there is told so, in words that help.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use hostler_tests::{
    Certificates, Cluster, Finished, PATIENCE, Process, Purpose, Scratch, WorkerProc, elapsed,
    eventually, free_port, never, now, wait_for,
};
use hostler_tls::{ClientFiles, Port, ServerFiles, ServerName};
use rustix::process::Signal;
use rustls::{ClientConnection, ServerConnection, StreamOwned};
use serde_json::Value;

/// A cluster whose ports speak TLS, and what its clients need.
struct Secure {
    cluster: Cluster,
    certificates: Certificates,
}

impl Secure {
    #[track_caller]
    fn start() -> Self {
        Self::with(&[], |_| {})
    }

    /// With these flags of the server's, whose paths are files of the certificates' directory.
    #[track_caller]
    fn with(flags: &[(&str, &str)], before: impl FnOnce(&Certificates)) -> Self {
        let scratch = Scratch::new();
        let certificates = Certificates::new(scratch.join("tls"));
        before(&certificates);
        let all = [("--tls-cert", "server.pem"), ("--tls-key", "server.key")];
        let all: Vec<String> = all
            .iter()
            .chain(flags)
            .flat_map(|(flag, file)| [(*flag).to_owned(), certificates.text(file)])
            .collect();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        let cluster = Cluster::in_environment(scratch, &all, Vec::new());
        Self {
            cluster,
            certificates,
        }
    }

    fn url(&self) -> String {
        format!("https://localhost:{}", self.cluster.http_addr().port())
    }

    fn spawn(&self, args: &[&str], more: &[(&str, String)]) -> Process {
        let token = fs::read_to_string(self.cluster.data().join("admin.token")).unwrap();
        let (url, ca) = (self.url(), self.certificates.text("ca.pem"));
        let mut env = vec![
            ("HOSTLER_URL", url.as_str()),
            ("HOSTLER_TOKEN", token.trim()),
            ("HOSTLER_TLS_CA", ca.as_str()),
        ];
        for (name, value) in more {
            env.retain(|(other, _)| other != name);
            env.push((name, value));
        }
        Process::hostler(self.cluster.scratch(), args, &env)
    }

    #[track_caller]
    fn hostler(&self, args: &[&str]) -> Finished {
        self.spawn(args, &[]).wait(PATIENCE)
    }

    /// A worker that trusts our authority, with more flags whose paths are files.
    fn spawn_worker(&self, name: &str, flags: &[(&str, &str)]) -> WorkerProc {
        let port = self.cluster.worker_addr().port();
        self.spawn_worker_at(&format!("localhost:{port}"), name, flags)
    }

    fn spawn_worker_at(&self, at: &str, name: &str, flags: &[(&str, &str)]) -> WorkerProc {
        let all: Vec<String> = [("--tls-ca", "ca.pem")]
            .iter()
            .chain(flags)
            .flat_map(|(flag, file)| [(*flag).to_owned(), self.certificates.text(file)])
            .collect();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        self.cluster.spawn_worker(at, name, 2, &all)
    }

    #[track_caller]
    fn await_worker(&self, name: &str) {
        eventually(PATIENCE, format!("worker {name} is connected"), || {
            let workers = self
                .hostler(&["workers", "-o", "json"])
                .expect_code(0)
                .json();
            let list = workers["workers"]
                .as_array()
                .or(workers.as_array())
                .cloned();
            list.unwrap_or_default()
                .iter()
                .any(|it| it["name"] == name && it["connected"] == true)
        });
    }

    #[track_caller]
    fn job(&self, id: &str) -> Value {
        let job = self
            .hostler(&["status", id, "-o", "json"])
            .expect_code(0)
            .json();
        job.as_array().map_or(job.clone(), |jobs| jobs[0].clone())
    }

    #[track_caller]
    fn submit(&self, script: &str) -> String {
        let done = self.hostler(&["submit", "-o", "id", "--", "sh", "-c", script]);
        done.expect_code(0).stdout.trim().to_owned()
    }
}

/// A script that goes on until `file` is there.
fn until(file: &str) -> String {
    format!("echo begun; while [ ! -e {file} ]; do sleep 0.05; done; echo ended")
}

#[test]
fn a_jobs_whole_life_goes_over_tls_with_output_and_follow() {
    let it = Secure::start();
    let worker = it.spawn_worker("w-1", &[]);
    it.await_worker("w-1");
    let script = "echo out; echo err >&2; seq 1 100000; exit 3";
    let run = it
        .hostler(&["run", "--", "sh", "-c", script])
        .expect_code(3);
    assert!(
        run.stdout.starts_with("out\n1\n2\n"),
        "{}",
        &run.stdout[..20]
    );
    assert!(run.stdout.ends_with("\n100000\n"));
    assert!(run.stderr.contains("err\n"), "{}", run.stderr);
    let go = it.cluster.scratch().join("go").display().to_string();
    let id = it.submit(&until(&go));
    let mut follow = it.spawn(&["logs", "-f", &id], &[]);
    eventually(PATIENCE, "what is printed is shown at once", || {
        follow.stdout().contains("begun")
    });
    let live = it.job(&id)["live"].clone();
    assert_eq!(live["seen"], "yes", "{live}");
    fs::write(&go, "").unwrap();
    let followed = follow.wait(PATIENCE).expect_code(0);
    assert_eq!(followed.stdout, "begun\nended\n");
    let cancelled = it.submit("sleep 60");
    eventually(PATIENCE, "it runs", || {
        it.job(&cancelled)["state"] == "running"
    });
    it.hostler(&["cancel", &cancelled]).expect_code(0);
    it.hostler(&["wait", &cancelled]).expect_code(1);
    worker.drain();
}

#[test]
fn plain_peers_of_tls_ports_are_told_what_to_do() {
    let it = Secure::start();
    let mut http = TcpStream::connect(it.cluster.http_addr()).unwrap();
    http.set_read_timeout(Some(PATIENCE)).unwrap();
    http.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    http.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(
        answer.contains("this is a TLS port: use https://"),
        "{answer}"
    );

    let plain = format!("http://{}", it.cluster.http_addr());
    let cli = it
        .spawn(&["list"], &[("HOSTLER_URL", plain)])
        .wait(PATIENCE);
    assert_ne!(cli.code, 0);
    assert!(cli.stderr.contains("use https://"), "{}", cli.stderr);

    let servers = it.cluster.worker_addr().to_string();
    let worker = it.cluster.spawn_worker(&servers, "plain", 1, &[]);
    let end = { worker }.wait(PATIENCE);
    assert_ne!(end.code, 0);
    assert!(
        end.stderr
            .contains("this port speaks TLS: give the worker --tls-ca"),
        "{}",
        end.stderr
    );

    // A worker that was given the other port's number.
    let port = it.cluster.http_addr().port();
    let end = it
        .spawn_worker_at(&format!("localhost:{port}"), "lost", &[])
        .wait(PATIENCE);
    assert!(
        end.stderr.contains("another protocol on this port"),
        "{}",
        end.stderr
    );
    it.hostler(&["health"]).expect_code(0);
}

#[test]
fn tls_peers_of_plain_ports_are_told_what_to_do() {
    let mut cluster = Cluster::start();
    let certificates = Certificates::new(cluster.scratch().join("tls"));
    let ca = certificates.text("ca.pem");
    let url = format!("https://{}", cluster.http_addr());
    let env = [
        ("HOSTLER_URL", url.as_str()),
        ("HOSTLER_TLS_CA", ca.as_str()),
    ];
    let cli = Process::hostler(cluster.scratch(), &["list"], &env).wait(PATIENCE);
    let cli = cli.expect_code(5);
    assert!(cli.stderr.contains("does not speak TLS"), "{}", cli.stderr);

    let servers = cluster.worker_addr().to_string();
    let mut worker = cluster.spawn_worker(&servers, "tls", 1, &["--tls-ca", &ca]);
    let end = worker.wait(PATIENCE).expect_code(5);
    assert!(end.stderr.contains("does not speak TLS"), "{}", end.stderr);
    assert!(end.stderr.contains("hint:"), "{}", end.stderr);
    let _worker = cluster.worker("plain", 1);
    cluster.prove_healthy();
}

#[test]
fn clients_and_workers_must_show_a_certificate_where_one_is_wanted_and_a_token_all_the_same() {
    let it = Secure::with(&[("--tls-client-ca", "ca.pem")], |_| {});
    let without = it.hostler(&["list"]).expect_code(5);
    assert!(
        without.stderr.contains("wants to see a certificate"),
        "{}",
        without.stderr
    );
    assert!(without.stderr.contains("--tls-cert"), "{}", without.stderr);
    let end = it.spawn_worker("w-0", &[]).wait(PATIENCE).expect_code(5);
    assert!(
        end.stderr.contains("wants to see a certificate"),
        "{}",
        end.stderr
    );

    let own = |name: &str| {
        let text = |ending: &str| it.certificates.text(&format!("{name}.{ending}"));
        [
            ("HOSTLER_TLS_CERT", text("pem")),
            ("HOSTLER_TLS_KEY", text("key")),
        ]
    };
    it.spawn(&["list"], &own("client"))
        .wait(PATIENCE)
        .expect_code(0);
    let mut no_token = own("client").to_vec();
    no_token.push(("HOSTLER_TOKEN", "hostler_admin_Ab3dE6gH_nonsense".into()));
    it.spawn(&["list"], &no_token).wait(PATIENCE).expect_code(4);

    let flags = [("--tls-cert", "worker.pem"), ("--tls-key", "worker.key")];
    let worker = it.spawn_worker("w-1", &flags);
    eventually(
        PATIENCE,
        "the worker is welcomed, and its certificate's name is in the trace",
        || {
            let trace = it.cluster_trace();
            worker.process.stderr().contains("connected") && trace.contains("worker.example")
        },
    );
    it.certificates
        .make_expired("client", Purpose::Client, &["client.example"]);
    let expired = it
        .spawn(&["list"], &own("client"))
        .wait(PATIENCE)
        .expect_code(5);
    assert!(
        expired.stderr.contains("our certificate has expired"),
        "{}",
        expired.stderr
    );

    // Our own certificate alone opens nothing: this worker's token is the administrator's.
    let admin = it.cluster.data().join("admin.token").display().to_string();
    let servers = format!("localhost:{}", it.cluster.worker_addr().port());
    let text = |name: &str| it.certificates.text(name);
    let (ca, cert, key) = (text("ca.pem"), text("worker.pem"), text("worker.key"));
    let args = [
        "worker",
        "--server",
        &servers,
        "--token-file",
        &admin,
        "--tls-ca",
        &ca,
        "--tls-cert",
        &cert,
        "--tls-key",
        &key,
    ];
    let end = Process::hostler(it.cluster.scratch(), &args, &[]).wait(PATIENCE);
    assert_eq!(end.code, 4, "{}", end.stderr);
}

impl Secure {
    fn cluster_trace(&self) -> String {
        let names = fs::read_dir(self.cluster.scratch().path()).unwrap();
        let first = names
            .filter_map(|entry| fs::read_to_string(entry.unwrap().path()).ok())
            .find(|text| text.contains("hostler") && text.contains(" server — HTTP https://"));
        first.unwrap_or_default()
    }
}

#[test]
fn a_server_of_another_authority_or_name_is_told_nothing() {
    let it = Secure::start();
    let other = Certificates::new(it.cluster.scratch().join("other"));
    let env = [("HOSTLER_TLS_CA", other.text("ca.pem"))];
    let cli = it.spawn(&["list"], &env).wait(PATIENCE).expect_code(5);
    assert!(
        cli.stderr.contains("authority that is not trusted here"),
        "{}",
        cli.stderr
    );
    assert!(cli.stderr.contains("--tls-ca"), "{}", cli.stderr);
    let servers = format!("localhost:{}", it.cluster.worker_addr().port());
    let ca = other.text("ca.pem");
    let mut worker = it
        .cluster
        .spawn_worker(&servers, "w-1", 1, &["--tls-ca", &ca]);
    let end = worker.wait(PATIENCE).expect_code(5);
    assert!(
        end.stderr.contains("authority that is not trusted here"),
        "{}",
        end.stderr
    );

    let it = Secure::with(&[], |all| {
        all.make("server", Purpose::Server, &["q1.example"])
    });
    let cli = it.hostler(&["list"]).expect_code(5);
    let said = "the server's certificate is for q1.example, not for localhost";
    assert!(cli.stderr.contains(said), "{}", cli.stderr);
    let end = it.spawn_worker("w-1", &[]).wait(PATIENCE).expect_code(5);
    assert!(end.stderr.contains(said), "{}", end.stderr);
}

#[test]
fn http_answers_to_the_names_of_its_certificate_and_no_others() {
    let it = Secure::with(&[], |all| {
        all.make("server", Purpose::Server, &["q1.example"]);
    });
    let files = ClientFiles {
        ca: Some(it.certificates.path("ca.pem")),
        ..ClientFiles::default()
    };
    let config = files.load(Port::Http).unwrap();
    let status = |host: &str| {
        let name = ServerName::try_from("q1.example").unwrap();
        let stream = TcpStream::connect(it.cluster.http_addr()).unwrap();
        let client = ClientConnection::new(Arc::clone(&config), name).unwrap();
        let mut stream = StreamOwned::new(client, stream);
        let request = format!("GET /healthz HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap(); // an error, were its end a cut
        answer[9..12].to_owned()
    };
    assert_eq!(status("q1.example"), "200");
    assert_eq!(status("localhost"), "200");
    assert_eq!(status("evil.example"), "403");
}

#[test]
fn an_expired_certificate_is_named_by_the_server_itself_and_by_its_clients() {
    let it = Secure::with(&[], |all| {
        all.make_expired("server", Purpose::Server, &["localhost"]);
    });
    assert!(
        it.cluster_trace().contains("the certificate expired"),
        "{}",
        it.cluster_trace()
    );
    let cli = it.hostler(&["list"]).expect_code(5);
    assert!(
        cli.stderr.contains("the server's certificate expired"),
        "{}",
        cli.stderr
    );
    let end = it.spawn_worker("w-1", &[]).wait(PATIENCE).expect_code(5);
    assert!(
        end.stderr.contains("the server's certificate expired"),
        "{}",
        end.stderr
    );
}

#[test]
fn slow_handshakes_are_closed_at_their_deadline_on_both_ports() {
    let it = Secure::start();
    let begun = now();
    let slow: Vec<TcpStream> = [it.cluster.http_addr(), it.cluster.worker_addr()]
        .into_iter()
        .map(|address| {
            let mut stream = TcpStream::connect(address).unwrap();
            // The head of a record, and the half of a ClientHello.
            stream
                .write_all(&[22, 3, 1, 1, 0, 1, 0, 0, 252, 3, 3])
                .unwrap();
            stream
                .set_read_timeout(Some(Duration::from_secs(20)))
                .unwrap();
            stream
        })
        .collect();
    for mut stream in slow {
        let mut rest = Vec::new();
        // An alert may come first; what counts is the end.
        let end = stream.read_to_end(&mut rest);
        let timed_out = end.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
        assert!(!timed_out, "still open after {:?}", elapsed(begun));
    }
    assert!(
        elapsed(begun) >= Duration::from_secs(9),
        "{:?}",
        elapsed(begun)
    );
    it.hostler(&["health"]).expect_code(0);
}

/// Passes TCP connections on to `to`, and cuts them all when told.
struct Pass {
    address: SocketAddr,
    open: Arc<Mutex<Vec<TcpStream>>>,
    stop: Arc<AtomicBool>,
}

impl Pass {
    fn to(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (open, stop) = (
            Arc::new(Mutex::new(Vec::new())),
            Arc::new(AtomicBool::new(false)),
        );
        let (kept, stopped) = (Arc::clone(&open), Arc::clone(&stop));
        thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let (Ok(near), Ok(far)) = (stream, TcpStream::connect(to)) else {
                    continue;
                };
                for (from, to) in [(&near, &far), (&far, &near)] {
                    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    thread::spawn(move || {
                        io::copy(&mut from, &mut to).ok();
                        to.shutdown(Shutdown::Write).ok();
                    });
                }
                kept.lock().unwrap().extend([near, far]);
            }
        });
        Self {
            address,
            open,
            stop,
        }
    }

    /// Ends every connection without a word of TLS.
    fn cut(&self) -> usize {
        let open: Vec<_> = self.open.lock().unwrap().drain(..).collect();
        for stream in &open {
            stream.shutdown(Shutdown::Both).ok();
        }
        open.len() / 2
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        TcpStream::connect(self.address).ok();
    }
}

#[test]
fn a_cut_connection_is_a_lost_one_and_its_job_goes_on() {
    let it = Secure::start();
    let pass = Pass::to(it.cluster.worker_addr());
    let at = format!("localhost:{}", pass.address.port());
    let _worker = it.spawn_worker_at(&at, "w-1", &[]);
    it.await_worker("w-1");
    let go = it.cluster.scratch().join("go").display().to_string();
    let id = it.submit(&until(&go));
    eventually(PATIENCE, "it runs", || it.job(&id)["state"] == "running");
    for _ in 0..3 {
        assert!(pass.cut() > 0);
        eventually(PATIENCE, "the worker is back", || {
            !pass.open.lock().unwrap().is_empty()
        });
        it.await_worker("w-1");
    }
    fs::write(&go, "").unwrap();
    it.hostler(&["wait", &id]).expect_code(0);
    let job = it.job(&id);
    assert_eq!(job["attempt"], 1, "{job}");
    assert_eq!(
        it.hostler(&["logs", &id]).expect_code(0).stdout,
        "begun\nended\n"
    );
}

#[test]
fn a_killed_server_finds_its_workers_jobs_again_over_tls() {
    let mut it = Secure::start();
    let _worker = it.spawn_worker("w-1", &[]);
    it.await_worker("w-1");
    let go = it.cluster.scratch().join("go").display().to_string();
    let id = it.submit(&until(&go));
    eventually(PATIENCE, "it runs", || it.job(&id)["state"] == "running");
    it.cluster.restart_server();
    it.await_worker("w-1");
    assert_eq!(it.job(&id)["state"], "running");
    fs::write(&go, "").unwrap();
    it.hostler(&["wait", &id]).expect_code(0);
    let job = it.job(&id);
    assert_eq!(
        (&job["attempt"], &job["state"]),
        (&1.into(), &"succeeded".into())
    );
    assert_eq!(
        it.hostler(&["logs", &id]).expect_code(0).stdout,
        "begun\nended\n"
    );
}

#[test]
fn certificates_are_read_again_on_hup_while_jobs_run_and_readers_follow() {
    let mut it = Secure::start();
    let _worker = it.spawn_worker("w-1", &[]);
    it.await_worker("w-1");
    let go = it.cluster.scratch().join("go").display().to_string();
    let id = it.submit(&until(&go));
    let mut follow = it.spawn(&["logs", "-f", &id], &[]);
    eventually(PATIENCE, "it is followed", || {
        follow.stdout().contains("begun")
    });

    fs::write(it.certificates.path("server.pem"), "half a certif").unwrap();
    it.cluster.server().signal(Signal::HUP);
    eventually(PATIENCE, "the old certificates stay", || {
        it.cluster
            .server()
            .stderr()
            .contains("the old certificates stay in use")
    });
    it.hostler(&["list"]).expect_code(0);

    it.certificates
        .make("server", Purpose::Server, &["q2.example"]);
    it.cluster.server().signal(Signal::HUP);
    eventually(PATIENCE, "the new ones are read", || {
        it.cluster
            .server()
            .stderr()
            .contains("the certificates were read again")
    });
    let list = it.hostler(&["list"]).expect_code(5);
    assert!(list.stderr.contains("q2.example"), "{}", list.stderr);
    assert!(follow.runs(), "connections that stand stay");

    it.certificates
        .make("server", Purpose::Server, &["localhost"]);
    it.cluster.server().signal(Signal::HUP);
    eventually(PATIENCE, "new connections work again", || {
        it.hostler(&["list"]).code == 0
    });
    fs::write(&go, "").unwrap();
    assert_eq!(
        follow.wait(PATIENCE).expect_code(0).stdout,
        "begun\nended\n"
    );
    let job = it.job(&id);
    assert_eq!(job["attempt"], 1, "{job}");
}

#[test]
fn whoever_ends_tls_between_worker_and_server_cannot_pass_the_handshake_on() {
    let it = Secure::start();
    // The thief has a certificate that the worker accepts, and reaches the server.
    let thief = ServerFiles {
        cert: it.certificates.path("server.pem"),
        key: it.certificates.path("server.key"),
        client_ca: None,
    };
    let client = ClientFiles {
        ca: Some(it.certificates.path("ca.pem")),
        ..ClientFiles::default()
    };
    let (thief, client) = (
        thief.load().unwrap().worker,
        client.load(Port::Worker).unwrap(),
    );
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = format!("localhost:{}", listener.local_addr().unwrap().port());
    let mut worker = it.spawn_worker_at(&at, "w-1", &[]);
    let (stream, _) = listener.accept().unwrap();
    let mut near = StreamOwned::new(ServerConnection::new(thief).unwrap(), stream);
    let far = TcpStream::connect(it.cluster.worker_addr()).unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let mut far = StreamOwned::new(ClientConnection::new(client, name).unwrap(), far);
    let pass = |from: &mut dyn Read, to: &mut dyn Write| -> io::Result<usize> {
        let mut head = [0; 4];
        from.read_exact(&mut head)?;
        let mut body = vec![0; u32::from_le_bytes(head).try_into().unwrap()];
        from.read_exact(&mut body)?;
        to.write_all(&head)?;
        to.write_all(&body)?;
        to.flush()?;
        Ok(body.len())
    };
    pass(&mut near, &mut far).unwrap(); // hello
    pass(&mut far, &mut near).unwrap(); // challenge, proven by the right server in another session
    pass(&mut near, &mut far).unwrap_err(); // no login
    let end = worker.wait(PATIENCE).expect_code(4);
    assert!(
        end.stderr.contains("somebody ends TLS on the way"),
        "{}",
        end.stderr
    );
    never(Duration::from_millis(300), "a worker joined", || {
        let workers = it.hostler(&["workers", "-o", "json"]).expect_code(0).stdout;
        workers.contains("w-1")
    });
}

#[test]
fn addresses_others_can_reach_are_not_served_in_plain_unless_that_is_wanted() {
    let scratch = Scratch::new();
    let (http, workers) = (free_port(), free_port());
    let data = scratch.join("data").display().to_string();
    let (http, workers) = (format!("127.0.0.1:{http}"), format!("0.0.0.0:{workers}"));
    let args = [
        "server",
        "--listen",
        &http,
        "--worker-listen",
        &workers,
        "--data-dir",
        &data,
    ];
    let end = Process::hostler(&scratch, &args, &[])
        .wait(PATIENCE)
        .expect_code(1);
    assert!(end.stderr.contains("worker port 0.0.0.0"), "{}", end.stderr);
    assert!(end.stderr.contains("--allow-plaintext"), "{}", end.stderr);
    let mut server = Process::hostler(&scratch, &[&args[..], &["--allow-plaintext"]].concat(), &[]);
    wait_for(PATIENCE, "it starts, with a warning", || {
        assert!(server.runs(), "{}", server.stderr());
        let said = server.stderr();
        (said.contains("without TLS") && said.contains("ready")).then_some(())
    });
    server.terminate(PATIENCE).expect_code(0);
}

#[test]
fn what_tls_init_prints_can_be_pasted() {
    let scratch = Scratch::new();
    let dir = scratch.join("made").display().to_string();
    let made = Process::hostler(&scratch, &["tls", "init", "--dir", &dir], &[]).wait(PATIENCE);
    let lines = made.expect_code(0).stdout;
    let words = |start: &str| -> Vec<String> {
        let line = lines
            .lines()
            .map(str::trim)
            .find(|line| line.starts_with(start));
        let words = line.unwrap().split_whitespace().skip(1);
        words.map(str::to_owned).collect()
    };
    let server = words("hostler server");
    let tls = server
        .iter()
        .skip_while(|word| *word != "--tls-cert")
        .take(4);
    let flags: Vec<&str> = tls.map(String::as_str).collect();
    let client_ca = words("the server");
    let flags = [&flags[..], &[&client_ca[1], &client_ca[2]]].concat();
    let cluster = Cluster::in_environment(scratch, &flags, Vec::new());
    let port = cluster.worker_addr().port();
    let own = words("workers");
    let ca = words("hostler worker");
    let ca = ca
        .iter()
        .skip_while(|word| *word != "--tls-ca")
        .nth(1)
        .unwrap();
    let all = ["--tls-ca", ca, &own[0], &own[1], &own[2], &own[3]];
    let worker = cluster.spawn_worker(&format!("localhost:{port}"), "w-1", 1, &all);
    let url = format!("https://localhost:{}", cluster.http_addr().port());
    let token = fs::read_to_string(cluster.data().join("admin.token")).unwrap();
    let user = words("users");
    let env = [
        ("HOSTLER_URL", url.as_str()),
        ("HOSTLER_TOKEN", token.trim()),
        ("HOSTLER_TLS_CA", ca),
        ("HOSTLER_TLS_CERT", &user[1]),
        ("HOSTLER_TLS_KEY", &user[3]),
    ];
    let run = Process::hostler(cluster.scratch(), &["run", "--", "echo", "hello"], &env);
    let run = { run }.wait(PATIENCE).expect_code(0);
    assert_eq!(run.stdout, "hello\n");
    let again = Process::hostler(cluster.scratch(), &["tls", "init", "--dir", &dir], &[]);
    let again = { again }.wait(PATIENCE).expect_code(6);
    assert!(
        again.stderr.contains("nothing is overwritten"),
        "{}",
        again.stderr
    );
    worker.drain();
}
