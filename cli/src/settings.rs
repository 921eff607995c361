//! What the user wants, from everywhere it can be said: flag, environment, file, default, in this order.
//!
//! `clap` merges flags and environment; this file adds the configuration file and remembers nothing else. Paths of
//! the system (`XDG_…`, `STATE_DIRECTORY`) are read here and nowhere else. A secret has no flag: command lines are
//! public.

use std::env;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use clap::ColorChoice;
use hostler_tls::ClientFiles;
use serde::Deserialize;

use crate::client::Address;
use crate::exit::{Exit, Failure};
use crate::output::Form;

/// Longest configuration file, and far above any token file: what is longer is another file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Options that every command takes.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Form of the data: table, wide, json, ndjson or id
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        value_name = "FORM",
        env = "HOSTLER_OUTPUT",
        hide_env = true,
        hide_possible_values = true
    )]
    pub(crate) output: Option<Form>,

    /// Where the server is [env: HOSTLER_URL] [default: http://127.0.0.1:7440]
    // The variable is read below: a worker has a `--server` of its own, for which it must not stand in.
    #[arg(long, global = true, value_name = "URL[,URL…]")]
    pub(crate) server: Option<String>,

    /// File with the access token [default: HOSTLER_TOKEN, HOSTLER_TOKEN_FILE, or the data directory's]
    // Both variables are read below: what the command line says goes first.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,

    /// Configuration file
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "HOSTLER_CONFIG",
        hide_env = true
    )]
    pub(crate) config: Option<PathBuf>,

    /// Authority that vouches for the server (PEM), for a connection under TLS [default: the system's]
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "HOSTLER_TLS_CA",
        hide_env = true
    )]
    pub(crate) tls_ca: Option<PathBuf>,

    /// Own certificate and those above it (PEM)
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "HOSTLER_TLS_CERT",
        hide_env = true
    )]
    pub(crate) tls_cert: Option<PathBuf>,

    /// Key of that certificate (PEM)
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "HOSTLER_TLS_KEY",
        hide_env = true
    )]
    pub(crate) tls_key: Option<PathBuf>,

    /// Colours: auto, always or never
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "WHEN",
        default_value = "auto",
        hide_default_value = true,
        hide_possible_values = true
    )]
    pub(crate) color: ColorChoice,

    /// Say more about what is done
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,

    /// Never ask; where a question would be, fail
    #[arg(long, global = true)]
    pub(crate) no_input: bool,
}

/// The configuration file. An unknown key is an error.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct FileSettings {
    pub(crate) client: ClientFile,
    pub(crate) server: ServerFile,
    pub(crate) worker: WorkerFile,
}

/// `[client]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ClientFile {
    pub(crate) server: Option<String>,
    pub(crate) token_file: Option<PathBuf>,
    pub(crate) tls_ca: Option<PathBuf>,
    pub(crate) tls_cert: Option<PathBuf>,
    pub(crate) tls_key: Option<PathBuf>,
    pub(crate) output: Option<String>,
}

/// `[server]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ServerFile {
    pub(crate) listen: Option<String>,
    pub(crate) worker_listen: Option<String>,
    pub(crate) data_dir: Option<PathBuf>,
    pub(crate) worker_grace: Option<String>,
    pub(crate) probe_timeout: Option<String>,
    pub(crate) drain_timeout: Option<String>,
    pub(crate) durability: Option<String>,
    pub(crate) tls_cert: Option<PathBuf>,
    pub(crate) tls_key: Option<PathBuf>,
    pub(crate) tls_client_ca: Option<PathBuf>,
    pub(crate) output_max: Option<String>,
    pub(crate) output_total_max: Option<String>,
    pub(crate) output_keep: Option<String>,
    pub(crate) output_keep_failed: Option<String>,
    pub(crate) http_threads: Option<u8>,
    pub(crate) allowed_hosts: Option<Vec<String>>,
    pub(crate) allow: Option<Vec<String>>,
    pub(crate) queue_jobs_max: Option<u64>,
    pub(crate) token_requests_per_second: Option<u32>,
    pub(crate) token_jobs_per_second: Option<u32>,
    pub(crate) log_level: Option<String>,
    pub(crate) log_format: Option<String>,
}

/// `[worker]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct WorkerFile {
    pub(crate) server: Option<String>,
    pub(crate) token_file: Option<PathBuf>,
    pub(crate) tls_ca: Option<PathBuf>,
    pub(crate) tls_cert: Option<PathBuf>,
    pub(crate) tls_key: Option<PathBuf>,
    pub(crate) name: Option<String>,
    pub(crate) slots: Option<u32>,
    pub(crate) queues: Option<Vec<String>>,
    pub(crate) no_commands: bool,
    pub(crate) allow_handlers: Option<Vec<String>>,
    pub(crate) kill_grace: Option<String>,
    pub(crate) drain_timeout: Option<String>,
    pub(crate) idle_exit: Option<String>,
    pub(crate) inherit_env: Option<Vec<String>>,
    pub(crate) job_umask: Option<String>,
    pub(crate) job_rlimits: Option<Vec<String>>,
    pub(crate) cgroup: Option<String>,
    pub(crate) job_memory_max: Option<String>,
    pub(crate) job_cpus_max: Option<f64>,
    pub(crate) job_pids_max: Option<u32>,
    pub(crate) log_level: Option<String>,
    pub(crate) log_format: Option<String>,
}

/// Everything merged, for the commands that talk to a server.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) form: Form,
    pub(crate) addresses: Vec<Address>,
    pub(crate) token_file: Option<PathBuf>,
    /// Whom to trust, and what to show.
    pub(crate) tls: ClientFiles,
    pub(crate) verbose: u8,
    pub(crate) no_input: bool,
    pub(crate) file: FileSettings,
}

impl Settings {
    /// Merges what was said, and checks it.
    pub(crate) fn merge(global: &Global) -> Result<Self, Failure> {
        let file = read_config(global.config.as_deref())?;
        let form = match (global.output, &file.client.output) {
            (Some(form), _) => form,
            (None, Some(text)) => {
                clap::ValueEnum::from_str(text, false).or(Err(Failure::usage(format!(
                    "client.output = \"{text}\" in the configuration: no such form"
                ))))?
            }
            (None, None) => Form::default(),
        };
        let from_environment = text_from_environment("HOSTLER_URL")?;
        let ours = &file.client;
        let tls = ClientFiles {
            ca: global.tls_ca.clone().or(ours.tls_ca.clone()),
            cert: global.tls_cert.clone().or(ours.tls_cert.clone()),
            key: global.tls_key.clone().or(ours.tls_key.clone()),
        };
        let addresses = global
            .server
            .as_deref()
            .or(from_environment.as_deref())
            .or(file.client.server.as_deref())
            .unwrap_or("127.0.0.1:7440")
            .split(',')
            .map(|text| Address::parse(text.trim(), tls.is_some()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| {
                Failure::usage(error).hint("write --server http://HOST:PORT, or set HOSTLER_URL")
            })?;
        Ok(Self {
            form,
            addresses,
            token_file: global.token_file.clone(),
            tls,
            verbose: global.verbose,
            no_input: global.no_input,
            file,
        })
    }

    /// The access token for HTTP, or the one in our own data directory. That last one is offered to servers on this
    /// machine only: it must not travel to a stranger because of a URL.
    pub(crate) fn token(&self) -> Result<Option<String>, Failure> {
        if let Some((token, _)) = self.token_said(self.file.client.token_file.as_deref())? {
            return Ok(Some(token));
        }
        if !self.addresses.iter().all(Address::is_loopback) {
            return Ok(None);
        }
        let path = data_dir(self.file.server.data_dir.as_deref())?.join("admin.token");
        match read_token(&path) {
            Ok(token) => Ok(Some(token)),
            Err(_) => Ok(None), // the server may want none; if it does, it says so
        }
    }

    /// The token that somebody said and the file it is in, the nearest word first: `--token-file`, `HOSTLER_TOKEN`,
    /// `HOSTLER_TOKEN_FILE`, the configuration.
    pub(crate) fn token_said(
        &self,
        configured: Option<&Path>,
    ) -> Result<Option<(String, Option<PathBuf>)>, Failure> {
        let in_file = |path: &Path| Ok(Some((read_token(path)?, Some(path.to_owned()))));
        if let Some(path) = &self.token_file {
            return in_file(path);
        }
        if let Some(token) = text_from_environment("HOSTLER_TOKEN")? {
            return Ok(Some((token, None)));
        }
        let named = text_from_environment("HOSTLER_TOKEN_FILE")?;
        match named.as_deref().map(Path::new).or(configured) {
            Some(path) => in_file(path),
            None => Ok(None),
        }
    }
}

/// A variable's value without the white space round it; one that is empty counts as not set.
fn text_from_environment(name: &str) -> Result<Option<String>, Failure> {
    let Some(value) = env::var_os(name) else {
        return Ok(None);
    };
    let text = value
        .into_string()
        .or(Err(Failure::usage(format!("{name} is not text"))))?;
    Ok(Some(text.trim().to_owned()).filter(|text| !text.is_empty()))
}

/// The token in a file: one line.
pub(crate) fn read_token(path: &Path) -> Result<String, Failure> {
    let text = read_small(path).map_err(|error| {
        Failure::new(
            Exit::Forbidden,
            format!("cannot read the token in {}: {error}", path.display()),
        )
    })?;
    let token = text.trim();
    if token.is_empty() || token.contains(char::is_whitespace) {
        return Err(Failure::new(
            Exit::Forbidden,
            format!(
                "{} holds no access token: it must be one word",
                path.display()
            ),
        ));
    }
    Ok(token.to_owned())
}

/// Where a server keeps its data if nobody says otherwise.
pub(crate) fn data_dir(said: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(path) = said {
        return Ok(path.to_owned());
    }
    let from = |name: &str| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    from("STATE_DIRECTORY")
        .or_else(|| from("XDG_STATE_HOME").map(|home| home.join("hostler")))
        .or_else(|| from("HOME").map(|home| home.join(".local/state/hostler")))
        .ok_or_else(|| {
            Failure::usage("no place for data: HOME is not set").hint("give --data-dir DIR")
        })
}

fn read_config(said: Option<&Path>) -> Result<FileSettings, Failure> {
    let Some((path, text)) = find_config(said)? else {
        return Ok(FileSettings::default());
    };
    toml::from_str(&text).map_err(|error| {
        Failure::usage(format!(
            "the configuration {} is wrong: {}",
            path.display(),
            error.to_string().trim_end()
        ))
    })
}

/// The first configuration file there is. One that was named must be there.
fn find_config(said: Option<&Path>) -> Result<Option<(PathBuf, String)>, Failure> {
    let unreadable = |path: &Path, error: io::Error| {
        Failure::usage(format!(
            "cannot read the configuration {}: {error}",
            path.display()
        ))
    };
    if let Some(path) = said {
        let text = read_small(path).map_err(|error| unreadable(path, error))?;
        return Ok(Some((path.to_owned(), text)));
    }
    let home = env::var_os("XDG_CONFIG_HOME")
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".config")));
    let places = home
        .map(|home| home.join("hostler/config.toml"))
        .into_iter()
        .chain([PathBuf::from("/etc/hostler/config.toml")]);
    for path in places {
        match read_small(&path) {
            Ok(text) => return Ok(Some((path, text))),
            Err(error) if absent(&error) => {}
            Err(error) => return Err(unreadable(&path, error)),
        }
    }
    Ok(None)
}

fn absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::PermissionDenied
    )
}

fn read_small(path: &Path) -> io::Result<String> {
    if fs::metadata(path)?.len() > FILE_BYTES_MAX {
        return Err(io::Error::other(format!(
            "longer than {FILE_BYTES_MAX} bytes"
        )));
    }
    let mut text = String::new();
    File::open(path)?
        .take(FILE_BYTES_MAX)
        .read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn global_with_config(text: &str) -> (tempfile::TempDir, Global) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        fs::write(&path, text).unwrap();
        let global = Global {
            config: Some(path),
            ..Global::default()
        };
        (dir, global)
    }

    #[test]
    fn a_flag_beats_the_file_and_the_file_beats_the_default() {
        let (_dir, mut global) =
            global_with_config("[client]\nserver = \"http://10.0.0.7:80\"\noutput = \"ndjson\"\n");
        let settings = Settings::merge(&global).unwrap();
        assert_eq!(settings.addresses[0].to_string(), "http://10.0.0.7:80");
        assert_eq!(settings.form, Form::Ndjson);

        global.server = Some("localhost:1, https://[::1]:2".into());
        global.output = Some(Form::Id);
        let settings = Settings::merge(&global).unwrap();
        let shown: Vec<_> = settings.addresses.iter().map(Address::to_string).collect();
        assert_eq!(shown, ["http://localhost:1", "https://[::1]:2"]);
        assert_eq!(settings.form, Form::Id);
    }

    #[test]
    fn an_authority_makes_addresses_without_a_scheme_https() {
        let (_dir, mut global) = global_with_config("[client]\ntls_ca = \"ca.pem\"\n");
        let shown = |global: &Global| {
            let settings = Settings::merge(global).unwrap();
            (settings.tls.ca, settings.addresses[0].to_string())
        };
        let default = "https://127.0.0.1:7440".to_owned();
        assert_eq!(shown(&global), (Some("ca.pem".into()), default.clone()));
        global.tls_ca = Some("other.pem".into());
        assert_eq!(shown(&global), (Some("other.pem".into()), default));
        global.server = Some("http://q1".into());
        assert_eq!(shown(&global).1, "http://q1:7440");
    }

    #[test]
    fn an_unknown_key_in_the_file_is_an_error_that_names_it() {
        let (_dir, global) = global_with_config("[server]\nlissen = \"127.0.0.1:1\"\n");
        let failure = Settings::merge(&global).unwrap_err();
        assert_eq!(failure.exit(), Exit::Usage);
        assert!(failure.to_string().contains("lissen"), "{failure}");
    }

    #[test]
    fn a_configuration_that_was_named_must_exist() {
        let global = Global {
            config: Some("/nowhere/at/all.toml".into()),
            ..Global::default()
        };
        assert_eq!(Settings::merge(&global).unwrap_err().exit(), Exit::Usage);
    }

    #[test]
    fn a_token_file_holds_one_word() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t");
        fs::write(&path, "hostler_admin_x\n").unwrap();
        assert_eq!(read_token(&path).unwrap(), "hostler_admin_x");
        fs::write(&path, "two words\n").unwrap();
        assert_eq!(read_token(&path).unwrap_err().exit(), Exit::Forbidden);
    }
}
