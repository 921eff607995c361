//! An authority and what it has vouched for, in files: good ones, and those that ought to be refused.

use std::fs;
use std::path::PathBuf;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};

/// `ca.pem`, and `server`, `worker` and `client` with their keys, in a directory.
#[derive(Debug)]
pub struct Certificates {
    dir: PathBuf,
    authority: CertifiedIssuer<'static, KeyPair>,
}

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To be a server.
    Server,
    /// To be one of its clients.
    Client,
}

impl Certificates {
    /// A new authority.
    pub fn new(dir: PathBuf) -> Self {
        fs::create_dir_all(&dir).unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let authority = CertifiedIssuer::self_signed(params, key).unwrap();
        fs::write(dir.join("ca.pem"), authority.pem()).unwrap();
        let all = Self { dir, authority };
        all.make("server", Purpose::Server, &["localhost", "127.0.0.1"]);
        all.make("worker", Purpose::Client, &["worker.example"]);
        all.make("client", Purpose::Client, &["client.example"]);
        all
    }

    /// Makes, or replaces, one for these names.
    pub fn make(&self, file: &str, purpose: Purpose, names: &[&str]) {
        self.make_until(file, purpose, names, 2100);
    }

    /// One that nobody should accept any more.
    pub fn make_expired(&self, file: &str, purpose: Purpose, names: &[&str]) {
        self.make_until(file, purpose, names, 2020);
    }

    fn make_until(&self, file: &str, purpose: Purpose, names: &[&str], year: i32) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        params.extended_key_usages = vec![match purpose {
            Purpose::Server => ExtendedKeyUsagePurpose::ServerAuth,
            Purpose::Client => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        let certificate = params.signed_by(&key, &self.authority).unwrap();
        fs::write(self.path(&format!("{file}.pem")), certificate.pem()).unwrap();
        fs::write(self.path(&format!("{file}.key")), key.serialize_pem()).unwrap();
    }

    /// A file of the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The same as text, for a command line.
    pub fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }
}
