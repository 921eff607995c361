//! `tls init`: an authority of one's own, and certificates for a server, its workers and its users, for a start without
//! anyone's help.
//!
//! Each certificate is made for what it is to be used for, and for nothing else: a worker's cannot pose as a server.
//! Keys are readable by their owner only. The authority's key stays where it was made; whoever has it can make
//! certificates of their own.
//!
//! Not here: certificates of a company's or a public authority (`hostler server` takes them as they are).

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::Subcommand;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::clock;
use crate::exit::{Exit, Failure};
use crate::output;
use crate::settings;

/// Certificates for TLS
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Init(Init),
}

/// Make an authority, and certificates for the server, workers and users
#[derive(Debug, clap::Args)]
#[command(after_help = "\
What it makes, and who needs it:
  ca.pem, ca.key           the authority; its key stays here
  server.pem, server.key   the server; its names: --host, localhost, 127.0.0.1, ::1
  worker.pem, worker.key   workers, if the server has --tls-client-ca
  client.pem, client.key   users, likewise

Nothing is overwritten. With an authority that is there already the other files are made from it: move server.pem
and server.key away to have new ones made.

Example:
  hostler tls init --host q1.example --host 10.0.0.7")]
struct Init {
    /// Where to [default: tls in the data directory]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// Name or address the server is reached by; repeat for several
    #[arg(long = "host", value_name = "NAME")]
    hosts: Vec<String>,

    /// Name that workers' certificates carry
    #[arg(long, value_name = "NAME", default_value = "worker")]
    worker_name: String,

    /// How long the certificates are valid; the authority ten times as long
    #[arg(long, value_name = "DAYS", default_value_t = 365, value_parser = clap::value_parser!(u64).range(1..=3_650))]
    days: u64,
}

/// Runs it.
pub(crate) fn run(args: Args) -> Result<Exit, Failure> {
    let Command::Init(init) = args.command;
    let dir = match &init.dir {
        Some(dir) => dir.clone(),
        None => settings::data_dir(None)?.join("tls"),
    };
    make(&dir, &init)?;
    // From the root, so that the lines hold wherever they are pasted.
    show(&fs::canonicalize(&dir).unwrap_or(dir), &init)?;
    Ok(Exit::Done)
}

/// What a certificate is to be used for.
struct Purpose {
    file: &'static str,
    usage: ExtendedKeyUsagePurpose,
    names: Vec<String>,
}

fn make(dir: &Path, init: &Init) -> Result<(), Failure> {
    let mut names: Vec<_> = init.hosts.clone();
    names.extend(["localhost", "127.0.0.1", "::1"].map(str::to_owned));
    let purposes = [
        Purpose {
            file: "server",
            usage: ExtendedKeyUsagePurpose::ServerAuth,
            names,
        },
        Purpose {
            file: "worker",
            usage: ExtendedKeyUsagePurpose::ClientAuth,
            names: vec![init.worker_name.clone()],
        },
        Purpose {
            file: "client",
            usage: ExtendedKeyUsagePurpose::ClientAuth,
            names: vec!["client".into()],
        },
    ];
    let there = |file: &str| {
        dir.join(format!("{file}.pem")).exists() || dir.join(format!("{file}.key")).exists()
    };
    let wanted: Vec<_> = purposes
        .into_iter()
        .filter(|purpose| !there(purpose.file))
        .collect();
    if wanted.is_empty() && there("ca") {
        return Err(Failure::new(
            Exit::Conflict,
            format!(
                "{} holds all of it already, and nothing is overwritten",
                dir.display()
            ),
        )
        .hint("give another --dir, or move away what is to be made anew"));
    }
    if !there("ca") && wanted.len() < 3 {
        return Err(Failure::new(
            Exit::Conflict,
            format!(
                "{} holds certificates, but not the authority they are from",
                dir.display()
            ),
        )
        .hint("give another --dir, or put ca.pem and ca.key beside them"));
    }
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|error| unwritable(dir, &error))?;
    let authority = authority(dir, init.days)?;
    for purpose in wanted {
        let key = KeyPair::generate().map_err(no_certificate)?;
        let mut params = CertificateParams::new(purpose.names).map_err(no_certificate)?;
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, format!("Hostler {}", purpose.file));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![purpose.usage];
        params.use_authority_key_identifier_extension = true;
        valid_for(&mut params, init.days);
        let certificate = params.signed_by(&key, &authority).map_err(no_certificate)?;
        keep(dir, purpose.file, &certificate.pem(), &key.serialize_pem())?;
    }
    Ok(())
}

/// The authority in the directory, or a new one. Only one that was made here goes on being used.
fn authority(dir: &Path, days: u64) -> Result<Authority, Failure> {
    let (pem, key) = (dir.join("ca.pem"), dir.join("ca.key"));
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, "Hostler authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid_for(&mut params, days.saturating_mul(10));
    if !pem.exists() && !key.exists() {
        let key = KeyPair::generate().map_err(no_certificate)?;
        let authority = CertifiedIssuer::self_signed(params, key).map_err(no_certificate)?;
        let key = authority.key().serialize_pem();
        keep(dir, "ca", &authority.pem(), &key)?;
        return Ok(authority);
    }
    let unusable = |path: &Path, why: String| {
        Failure::new(Exit::Conflict, format!("{}: {why}", path.display())).hint(
            "give another --dir; certificates of another authority are made with its own tools",
        )
    };
    let text = fs::read_to_string(&key).map_err(|error| unusable(&key, error.to_string()))?;
    let pair = KeyPair::from_pem(&text).map_err(|error| unusable(&key, error.to_string()))?;
    let there =
        CertificateDer::from_pem_file(&pem).map_err(|error| unusable(&pem, error.to_string()))?;
    let authority = CertifiedIssuer::self_signed(params, pair).map_err(no_certificate)?;
    if anchor(&there) != anchor(authority.der()) {
        return Err(unusable(
            &pem,
            "it was not made by `hostler tls init`".into(),
        ));
    }
    Ok(authority)
}

type Authority = CertifiedIssuer<'static, KeyPair>;

/// What makes two certificates of an authority the same to those who trust it: its name and its key.
fn anchor(certificate: &CertificateDer<'_>) -> Option<(Vec<u8>, Vec<u8>)> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone().into_owned()).ok()?;
    let root = roots.roots.first()?;
    let (name, key) = (&root.subject, &root.subject_public_key_info);
    Some((name.to_vec(), key.to_vec()))
}

fn valid_for(params: &mut CertificateParams, days: u64) {
    const DAY: Duration = Duration::from_secs(86_400);
    let seconds = u64::try_from(clock::now().as_second()).unwrap_or_default();
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    // Clocks that are a little behind find it valid too.
    params.not_before = (now - DAY).into();
    params.not_after = (now + DAY * u32::try_from(days).unwrap_or(u32::MAX)).into();
}

/// Writes a certificate and its key. Neither may be there.
fn keep(dir: &Path, name: &str, certificate: &str, key: &str) -> Result<(), Failure> {
    for (ending, text, mode) in [("key", key, 0o600), ("pem", certificate, 0o644)] {
        let path = dir.join(format!("{name}.{ending}"));
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&path)
            .and_then(|mut file| {
                file.write_all(text.as_bytes())
                    .and_then(|()| file.sync_all())
            });
        written.map_err(|error| unwritable(&path, &error))?;
    }
    Ok(())
}

fn unwritable(path: &Path, error: &io::Error) -> Failure {
    Failure::new(
        Exit::Unsuccessful,
        format!("cannot write {}: {error}", path.display()),
    )
}

#[expect(clippy::needless_pass_by_value, reason = "it is what map_err gives")]
fn no_certificate(error: rcgen::Error) -> Failure {
    Failure::usage(format!("no certificate can be made: {error}"))
        .hint("--host takes names and addresses, without a scheme or port")
}

/// The lines to paste.
fn show(dir: &Path, init: &Init) -> Result<(), Failure> {
    let file = |name: &str| dir.join(name).display().to_string();
    let host = init.hosts.first().map_or("localhost", String::as_str);
    let bracketed = if host.contains(':') {
        format!("[{host}]")
    } else {
        host.to_owned()
    };
    let (ca, cert, key) = (file("ca.pem"), file("server.pem"), file("server.key"));
    output::line(format_args!(
        "\
Server:
  hostler server --tls-cert {cert} --tls-key {key} --listen 0.0.0.0:7440 --worker-listen 0.0.0.0:7441
Workers (copy {ca} and the server's worker.token to them):
  hostler worker --server {bracketed}:7441 --tls-ca {ca} --token-file worker.token
Users (copy {ca} to them):
  export HOSTLER_URL=https://{bracketed}:7440 HOSTLER_TLS_CA={ca}

To ask workers and users for certificates too (beside their tokens):
  the server    --tls-client-ca {ca}
  workers       --tls-cert {} --tls-key {}
  users         --tls-cert {} --tls-key {}
Keep {} to yourself: whoever has it can make certificates.",
        file("worker.pem"),
        file("worker.key"),
        file("client.pem"),
        file("client.key"),
        file("ca.key"),
    ))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use hostler_tls::{ClientFiles, Port, ServerFiles};

    use super::*;

    fn init(hosts: &[&str]) -> Init {
        Init {
            dir: None,
            hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
            worker_name: "worker".into(),
            days: 30,
        }
    }

    #[test]
    fn what_it_makes_can_be_used_and_keys_are_their_owners() {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path(), &init(&["q1.example", "10.0.0.7"])).unwrap();
        let file = |name: &str| dir.path().join(name);
        let server = ServerFiles {
            cert: file("server.pem"),
            key: file("server.key"),
            client_ca: Some(file("ca.pem")),
        };
        let loaded = server.load().unwrap();
        assert!(loaded.outdated.is_none() && !loaded.key_is_open);
        for user in ["worker", "client"] {
            let client = ClientFiles {
                ca: Some(file("ca.pem")),
                cert: Some(file(&format!("{user}.pem"))),
                key: Some(file(&format!("{user}.key"))),
            };
            client.load(Port::Worker).unwrap();
        }
        for key in ["ca.key", "server.key", "worker.key", "client.key"] {
            let mode = fs::metadata(file(key)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{key}");
        }
    }

    #[test]
    fn nothing_is_overwritten_and_the_authority_goes_on_being_used() {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path(), &init(&[])).unwrap();
        let read = |name: &str| fs::read(dir.path().join(name)).unwrap();
        let (ca, worker) = (read("ca.pem"), read("worker.key"));
        assert_eq!(
            make(dir.path(), &init(&[])).unwrap_err().exit(),
            Exit::Conflict
        );
        fs::remove_file(dir.path().join("server.pem")).unwrap();
        assert_eq!(
            make(dir.path(), &init(&[])).unwrap_err().exit(),
            Exit::Conflict
        );
        fs::remove_file(dir.path().join("server.key")).unwrap();
        make(dir.path(), &init(&["new.example"])).unwrap();
        assert!(dir.path().join("server.pem").exists());
        assert_eq!((read("ca.pem"), read("worker.key")), (ca, worker));
    }

    #[test]
    fn another_authority_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let other = rcgen::generate_simple_self_signed(["other".to_owned()]).unwrap();
        fs::write(dir.path().join("ca.pem"), other.cert.pem()).unwrap();
        fs::write(dir.path().join("ca.key"), other.signing_key.serialize_pem()).unwrap();
        let failure = make(dir.path(), &init(&[])).unwrap_err();
        assert!(failure.to_string().contains("not made by"), "{failure}");
    }

    #[test]
    fn a_host_that_is_none_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let failure = make(dir.path(), &init(&["gr\u{fc}ezi"])).unwrap_err();
        assert_eq!(failure.exit(), Exit::Usage);
    }
}
