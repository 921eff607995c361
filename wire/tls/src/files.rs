//! Certificates and keys from PEM files, made into configurations. All of it is read and checked before any of it counts:
//! a chain that is there, a key that belongs to it, authorities that can be read.
//!
//! Not here: who may do what (a certificate alone opens nothing).

use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::{Port, certificate_names};

/// What a server shows, and whom it wants to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerFiles {
    /// Its certificate, and those between it and its authority.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The authorities whose certificates clients must show; none: clients show none.
    pub client_ca: Option<PathBuf>,
}

/// Whom a client trusts, and what it shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientFiles {
    /// The authorities that may vouch for a server; none: the system's.
    pub ca: Option<PathBuf>,
    /// Its certificate.
    pub cert: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
}

/// A server's configurations, one a port, from the same files.
#[derive(Clone, Debug)]
pub struct ServerConfigs {
    /// For HTTP.
    pub http: Arc<ServerConfig>,
    /// For workers.
    pub worker: Arc<ServerConfig>,
    /// The names in the certificate.
    pub names: Vec<String>,
    /// Why no client would accept the certificate today, if that is so.
    pub outdated: Option<String>,
    /// Others than its owner may read the key.
    pub key_is_open: bool,
}

/// A server's configurations, exchanged while it serves. Connections that stand keep what they began with.
#[derive(Debug)]
pub struct Live {
    files: ServerFiles,
    now: RwLock<ServerConfigs>,
    reloads: AtomicU64,
    failed_reloads: AtomicU64,
    failed_handshakes: AtomicU64,
}

/// Why files are no use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilesError {
    /// Which.
    pub path: PathBuf,
    /// Why.
    pub why: String,
}

impl ServerFiles {
    /// Reads and checks them.
    pub fn load(&self) -> Result<ServerConfigs, FilesError> {
        let chain = certificates(&self.cert)?;
        let key = private_key(&self.key)?;
        let roots = self.client_ca.as_deref().map(authorities).transpose()?;
        let outdated = outdated(&chain[0]).map_err(|why| wrong(&self.cert, why))?;
        let config = |port: Port| {
            let builder = ServerConfig::builder_with_provider(provider())
                .with_protocol_versions(port.versions())
                .map_err(|error| wrong(&self.cert, error))?;
            let builder = match &roots {
                None => builder.with_no_client_auth(),
                Some(roots) => {
                    let path = self.client_ca.as_deref().unwrap_or(Path::new(""));
                    let roots = Arc::clone(roots);
                    builder.with_client_cert_verifier(
                        WebPkiClientVerifier::builder_with_provider(roots, provider())
                            .build()
                            .map_err(|error| wrong(path, error))?,
                    )
                }
            };
            let mut config = builder
                .with_single_cert(chain.clone(), key.clone_key())
                .map_err(|error| wrong(&self.key, own(&error)))?;
            config.alpn_protocols = vec![port.alpn().to_vec()];
            Ok(Arc::new(config))
        };
        Ok(ServerConfigs {
            http: config(Port::Http)?,
            worker: config(Port::Worker)?,
            names: certificate_names(chain.first()),
            outdated,
            key_is_open: is_open(&self.key),
        })
    }
}

impl ClientFiles {
    /// Whether anything is said about TLS.
    pub fn is_some(&self) -> bool {
        *self != Self::default()
    }

    /// Reads and checks them, for talking to that port.
    pub fn load(&self, port: Port) -> Result<Arc<ClientConfig>, FilesError> {
        let roots = match &self.ca {
            Some(path) => authorities(path)?,
            None => system_authorities()?,
        };
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(port.versions())
            .map_err(|error| wrong(Path::new(""), error))?
            .with_root_certificates(roots);
        let mut config = match (&self.cert, &self.key) {
            (None, None) => builder.with_no_client_auth(),
            (Some(cert), Some(key)) => builder
                .with_client_auth_cert(certificates(cert)?, private_key(key)?)
                .map_err(|error| wrong(key, own(&error)))?,
            (Some(only), None) => return Err(wrong(only, "a certificate needs its key")),
            (None, Some(only)) => return Err(wrong(only, "a key needs its certificate")),
        };
        config.alpn_protocols = vec![port.alpn().to_vec()];
        Ok(Arc::new(config))
    }
}

impl Live {
    /// What was loaded from `files`, and may be loaded again.
    pub fn new(files: ServerFiles, configs: ServerConfigs) -> Self {
        Self {
            files,
            now: RwLock::new(configs),
            reloads: AtomicU64::new(0),
            failed_reloads: AtomicU64::new(0),
            failed_handshakes: AtomicU64::new(0),
        }
    }

    /// The one for new connections of that port.
    pub fn config(&self, port: Port) -> Arc<ServerConfig> {
        let now = self.now.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(match port {
            Port::Http => &now.http,
            Port::Worker => &now.worker,
        })
    }

    /// Reads the files again. What is wrong or out of date changes nothing.
    pub fn reload(&self) -> Result<(), FilesError> {
        let loaded = self
            .files
            .load()
            .and_then(|configs| match &configs.outdated {
                None => Ok(configs),
                Some(why) => Err(wrong(&self.files.cert, why)),
            });
        let count = match &loaded {
            Ok(_) => &self.reloads,
            Err(_) => &self.failed_reloads,
        };
        count.fetch_add(1, Ordering::Relaxed);
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = loaded?;
        Ok(())
    }

    /// How often they were read again and taken.
    pub fn reloads(&self) -> u64 {
        self.reloads.load(Ordering::Relaxed)
    }

    /// How often they were no use.
    pub fn failed_reloads(&self) -> u64 {
        self.failed_reloads.load(Ordering::Relaxed)
    }

    /// A connection did not come to speak TLS, as a port that does not count them itself says.
    pub fn handshake_failed(&self) {
        self.failed_handshakes.fetch_add(1, Ordering::Relaxed);
    }

    /// How many.
    pub fn failed_handshakes(&self) -> u64 {
        self.failed_handshakes.load(Ordering::Relaxed)
    }
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, FilesError> {
    let chain: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| unreadable(path, &error))?;
    if chain.is_empty() {
        return Err(wrong(path, "it holds no certificate in PEM form"));
    }
    Ok(chain)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, FilesError> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| {
        if matches!(error, pem::Error::NoItemsFound) {
            return wrong(path, "it holds no private key in PEM form");
        }
        unreadable(path, &error)
    })
}

fn authorities(path: &Path) -> Result<Arc<RootCertStore>, FilesError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| wrong(path, error))?;
    }
    Ok(Arc::new(roots))
}

fn system_authorities() -> Result<Arc<RootCertStore>, FilesError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        let why = "this system has no list of trusted authorities; give --tls-ca FILE";
        return Err(wrong(Path::new("/etc/ssl/certs"), why));
    }
    Ok(Arc::new(roots))
}

/// Why nobody would accept this certificate today, whoever signed it; an error if it is none.
fn outdated(certificate: &CertificateDer<'_>) -> Result<Option<String>, String> {
    let parsed = webpki::EndEntityCert::try_from(certificate)
        .map_err(|error| format!("it holds no certificate that can be used: {error}"))?;
    // No authority is given, so that none is found; a date that is wrong is noticed before that.
    let found = parsed.verify_for_usage(
        &[],
        &[],
        &[],
        UnixTime::now(),
        webpki::KeyUsage::server_auth(),
        None,
        None,
    );
    Ok(match found {
        Err(webpki::Error::CertExpired { time, not_after }) => {
            Some(crate::words::expired("the certificate", time, not_after))
        }
        Err(webpki::Error::CertNotValidYet { time, not_before }) => Some(
            crate::words::not_valid_yet("the certificate", time, not_before),
        ),
        Ok(_) | Err(_) => None,
    })
}

/// What rustls says of one's own certificate and key.
fn own(error: &rustls::Error) -> String {
    if matches!(error, rustls::Error::InconsistentKeys(_)) {
        return "the key is not the certificate's".into();
    }
    error.to_string()
}

fn is_open(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|about| about.permissions().mode() & 0o077 != 0)
}

fn unreadable(path: &Path, error: &pem::Error) -> FilesError {
    if let pem::Error::Io(error) = error {
        return wrong(path, error);
    }
    wrong(path, format!("it is no PEM file: {error}"))
}

fn wrong(path: &Path, why: impl fmt::Display) -> FilesError {
    FilesError {
        path: path.to_owned(),
        why: why.to_string(),
    }
}

impl fmt::Display for FilesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.why)
    }
}

impl std::error::Error for FilesError {}
