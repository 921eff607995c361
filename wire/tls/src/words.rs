//! What went wrong with TLS, as a person wants to hear it, and what to do about it.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "of the library's many errors these are the ones with a way out; the others speak for themselves"
)]

use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError, Error};

/// An error in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Words {
    /// What is wrong.
    pub what: String,
    /// The way out.
    pub hint: Option<&'static str>,
    /// Trying again is pointless: a person has to change something.
    pub is_final: bool,
}

/// The error of TLS within another's, where that is what went wrong.
pub fn explain_any(error: &(dyn std::error::Error + 'static)) -> Option<Words> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<Error>() {
            return Some(explain(error));
        }
        // An I/O error names as its source what lies beneath the one it holds.
        let held = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref);
        next = match held {
            Some(held) => Some(held),
            None => error.source(),
        };
    }
    None
}

const NOT_TLS: &str = "what answers there does not speak TLS";

/// What an error of TLS means to the client.
pub fn explain(error: &Error) -> Words {
    let (what, hint) = match error {
        Error::InvalidCertificate(error) => certificate(error),
        Error::AlertReceived(alert) => alert_received(*alert),
        Error::InvalidMessage(_) => (
            NOT_TLS.to_owned(),
            Some(
                "leave TLS out (http://, no --tls-ca), or give the server --tls-cert and --tls-key",
            ),
        ),
        Error::NoApplicationProtocol => (
            "the other side speaks another protocol".to_owned(),
            Some(OTHER_PORT),
        ),
        other => {
            return Words {
                what: format!("TLS failed: {other}"),
                hint: None,
                is_final: false,
            };
        }
    };
    Words {
        what,
        hint,
        is_final: true,
    }
}

const OTHER_PORT: &str =
    "HTTP and workers have a port each: 7440 and 7441, unless the server was told otherwise";
const OWN_CERTIFICATE: &str =
    "give --tls-cert and --tls-key: a certificate from the server's --tls-client-ca";

fn certificate(error: &CertificateError) -> (String, Option<&'static str>) {
    match error {
        CertificateError::UnknownIssuer => (
            "the server's certificate is from an authority that is not trusted here".into(),
            Some("give --tls-ca FILE: the certificate of the authority that signed it"),
        ),
        CertificateError::BadSignature => (
            "the server's certificate is from an authority that is not trusted here, but for its name"
                .into(),
            Some("give the --tls-ca that the server's certificate was made with"),
        ),
        CertificateError::ExpiredContext { time, not_after } => (
            expired("the server's certificate", *time, *not_after),
            Some(
                "give the server a new one (and this machine the right time); it takes it on SIGHUP",
            ),
        ),
        CertificateError::NotValidYetContext { time, not_before } => (
            not_valid_yet("the server's certificate", *time, *not_before),
            Some("is this machine's clock right?"),
        ),
        CertificateError::NotValidForNameContext {
            expected,
            presented,
        } => {
            let names: Vec<_> = presented.iter().map(|name| bare(name)).collect();
            let names = match names.as_slice() {
                [] => "no name at all".to_owned(),
                names => names.join(", "),
            };
            let wanted = expected.to_str();
            (
                format!("the server's certificate is for {names}, not for {wanted}"),
                Some(
                    "use one of its names, or make one with this name: hostler tls init --host NAME",
                ),
            )
        }
        other => (format!("the server's certificate is no use: {other}"), None),
    }
}

fn alert_received(alert: AlertDescription) -> (String, Option<&'static str>) {
    match alert {
        AlertDescription::CertificateRequired => (
            "the server wants to see a certificate".into(),
            Some(OWN_CERTIFICATE),
        ),
        AlertDescription::UnknownCA | AlertDescription::DecryptError => (
            "the server does not know the authority of our certificate".into(),
            Some(OWN_CERTIFICATE),
        ),
        AlertDescription::CertificateExpired => (
            "our certificate has expired, says the server".into(),
            Some(OWN_CERTIFICATE),
        ),
        AlertDescription::BadCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::CertificateRevoked
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::AccessDenied => (
            "the server does not accept our certificate".into(),
            Some(OWN_CERTIFICATE),
        ),
        AlertDescription::NoApplicationProtocol => (
            "the server speaks another protocol on this port".into(),
            Some(OTHER_PORT),
        ),
        other => (
            format!("the server ended TLS with the alert {other:?}"),
            None,
        ),
    }
}

pub(crate) fn expired(whose: &str, now: UnixTime, not_after: UnixTime) -> String {
    let ago = now.as_secs().saturating_sub(not_after.as_secs());
    format!("{whose} expired {} ago", span(ago))
}

pub(crate) fn not_valid_yet(whose: &str, now: UnixTime, not_before: UnixTime) -> String {
    let ahead = not_before.as_secs().saturating_sub(now.as_secs());
    format!("{whose} is not valid for another {}", span(ahead))
}

fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// `DnsName("a.example")` and `IpAddress(10.0.0.1)` without what is round them.
fn bare(name: &str) -> &str {
    let inner = name
        .split_once('(')
        .and_then(|(_, rest)| rest.strip_suffix(')'));
    inner.unwrap_or(name).trim_matches('"')
}
