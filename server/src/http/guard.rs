//! What every request must pass before anything looks at its path, whatever its method.
//!
//! A web page must not be able to submit, cancel or read anything through its visitor's browser: not by DNS rebinding
//! (the `Host` must be a name of ours), not from another site (`Origin`, `Sec-Fetch-Site`), not by a form (a body must
//! say it is JSON). This holds on loopback and without access tokens too.

use std::net::IpAddr;

use hyper::Method;
use hyper::header::{self, HeaderMap};
use hyper::http::request;
use hyper::http::uri::Authority;

use crate::config::Config;
use crate::http::problem::{Code, Refusal};

/// Longest path and query.
const URI_BYTES_MAX: usize = 8 << 10;

/// The media types of bodies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Media {
    /// One document.
    Json,
    /// A document a line.
    Ndjson,
}

/// Refuses what no endpoint should ever see.
pub(super) fn check(
    config: &Config,
    head: &request::Parts,
    has_body: bool,
) -> Result<(), Box<Refusal>> {
    let host = host(head)?;
    if !is_ours(config, &host) {
        return Err(Refusal::new(
            Code::HostNotAllowed,
            format!(
                "this server does not go by the name {}; use its address, or add the name to allowed_hosts",
                host.host()
            ),
        ));
    }
    same_site(&head.headers, &host)?;
    // A form says what it sends even if it sends nothing.
    let says_type = !reads(&head.method) && head.headers.contains_key(header::CONTENT_TYPE);
    if has_body || says_type {
        media(&head.headers)?;
    }
    if head
        .uri
        .path_and_query()
        .map_or(0, |path| path.as_str().len())
        > URI_BYTES_MAX
    {
        return Err(Refusal::new(
            Code::UriTooLong,
            format!("path and query together may have {URI_BYTES_MAX} bytes"),
        ));
    }
    Ok(())
}

/// Whether a method changes nothing.
pub(super) fn reads(method: &Method) -> bool {
    method == Method::GET || method == Method::HEAD
}

/// The type a body says it has.
pub(super) fn media(headers: &HeaderMap) -> Result<Media, Box<Refusal>> {
    let wrong = |detail: &str| {
        let detail =
            format!("{detail}; send application/json, or application/x-ndjson with a job a line");
        Refusal::new(Code::MediaType, detail)
    };
    let mut all = headers.get_all(header::CONTENT_TYPE).iter();
    let (Some(value), None) = (all.next(), all.next()) else {
        return Err(wrong("a body needs one Content-Type"));
    };
    let text = value.to_str().unwrap_or_default();
    let mut parts = text.split(';').map(str::trim);
    let named = parts.next().unwrap_or_default();
    let media = if named.eq_ignore_ascii_case("application/json") {
        Media::Json
    } else if named.eq_ignore_ascii_case("application/x-ndjson") {
        Media::Ndjson
    } else {
        return Err(wrong("the body's Content-Type is not JSON"));
    };
    let utf8 = |part: &str| match part.split_once('=') {
        Some((name, value)) if name.trim().eq_ignore_ascii_case("charset") => {
            value.trim().trim_matches('"').eq_ignore_ascii_case("utf-8")
        }
        _ => true,
    };
    if parts.all(utf8) {
        Ok(media)
    } else {
        Err(wrong("JSON is in UTF-8"))
    }
}

/// The name the client believes to talk to. A target with an authority of its own must agree with the header.
fn host(head: &request::Parts) -> Result<Authority, Box<Refusal>> {
    let bad = |detail: &str| Refusal::new(Code::BadHost, detail);
    let mut all = head.headers.get_all(header::HOST).iter();
    let (Some(value), None) = (all.next(), all.next()) else {
        return Err(bad("a request needs one Host header"));
    };
    let host = Authority::try_from(value.as_bytes())
        .ok()
        .filter(|host| !host.as_str().contains('@'))
        .ok_or_else(|| bad("the Host header is no name or address with a port"))?;
    match head.uri.authority() {
        Some(target) if !target.as_str().eq_ignore_ascii_case(host.as_str()) => {
            Err(bad("the request's target and its Host header differ"))
        }
        _ => Ok(host),
    }
}

fn is_ours(config: &Config, host: &Authority) -> bool {
    let name = host.host();
    let literal = name
        .strip_prefix('[')
        .and_then(|name| name.strip_suffix(']'))
        .unwrap_or(name);
    if let Ok(address) = literal.parse::<IpAddr>() {
        // Rebinding needs a name: where the server listens on all addresses, any literal one is honest.
        return address.is_loopback()
            || address == config.listen.ip()
            || config.listen.ip().is_unspecified();
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    name.eq_ignore_ascii_case("localhost")
        || config
            .allowed_hosts
            .iter()
            .any(|ours| ours.eq_ignore_ascii_case(name))
}

fn same_site(headers: &HeaderMap, host: &Authority) -> Result<(), Box<Refusal>> {
    let foreign = |what: &str| {
        Refusal::new(
            Code::CrossSite,
            format!("{what}: pages of other sites may not talk to this server"),
        )
    };
    for site in headers.get_all("sec-fetch-site") {
        if site != "same-origin" && site != "none" {
            return Err(foreign(
                "the browser says the request comes from another site",
            ));
        }
    }
    for origin in headers.get_all(header::ORIGIN) {
        let text = origin.to_str().unwrap_or_default();
        let authority = text
            .strip_prefix("http://")
            .or_else(|| text.strip_prefix("https://"));
        if !authority.is_some_and(|authority| authority.eq_ignore_ascii_case(host.as_str())) {
            return Err(foreign("the Origin is not this server"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use hyper::Request;

    use super::*;

    fn verdict(config: &Config, uri: &str, headers: &[(&str, &str)]) -> Result<(), Code> {
        let mut request = Request::builder().method("DELETE").uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (head, ()) = request.body(()).unwrap().into_parts();
        check(config, &head, false).map_err(|refusal| refusal.code)
    }

    #[test]
    fn a_host_must_be_a_name_of_ours() {
        let mut config = Config::new("/nowhere".into());
        config.allowed_hosts = vec!["jobs.example".into()];
        let ask = |host: &str| verdict(&config, "/jobs", &[("host", host)]);
        for good in [
            "127.0.0.1:7440",
            "localhost",
            "LOCALHOST:1",
            "[::1]:7440",
            "jobs.example.",
            "127.9.9.9",
        ] {
            assert_eq!(ask(good), Ok(()), "{good}");
        }
        for foreign in [
            "evil.example",
            "10.0.0.1",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "x",
        ] {
            assert_eq!(ask(foreign), Err(Code::HostNotAllowed), "{foreign}");
        }
        for broken in ["", "a b", "u@localhost", "localhost:x:y"] {
            assert_eq!(ask(broken), Err(Code::BadHost), "{broken:?}");
        }
        assert_eq!(verdict(&config, "/jobs", &[]), Err(Code::BadHost));
        let twice = [("host", "localhost"), ("host", "localhost")];
        assert_eq!(verdict(&config, "/jobs", &twice), Err(Code::BadHost));
        let target = "http://evil.example/jobs";
        assert_eq!(
            verdict(&config, target, &[("host", "localhost")]),
            Err(Code::BadHost)
        );
    }

    #[test]
    fn a_server_on_all_addresses_answers_to_addresses_but_not_to_any_name() {
        let mut config = Config::new("/nowhere".into());
        config.listen = "0.0.0.0:7440".parse().unwrap();
        assert_eq!(verdict(&config, "/", &[("host", "10.1.2.3:7440")]), Ok(()));
        let name = verdict(&config, "/", &[("host", "rebound.example")]);
        assert_eq!(name, Err(Code::HostNotAllowed));
    }

    #[test]
    fn other_sites_are_refused() {
        let config = Config::new("/nowhere".into());
        let ask = |name: &str, value: &str| {
            verdict(
                &config,
                "/jobs/1",
                &[("host", "localhost:7440"), (name, value)],
            )
        };
        assert_eq!(ask("origin", "http://localhost:7440"), Ok(()));
        assert_eq!(ask("sec-fetch-site", "same-origin"), Ok(()));
        assert_eq!(ask("sec-fetch-site", "none"), Ok(()));
        for origin in [
            "null",
            "http://evil.example",
            "http://localhost:8000",
            "http://localhost",
            "",
        ] {
            assert_eq!(ask("origin", origin), Err(Code::CrossSite), "{origin}");
        }
        for site in ["cross-site", "same-site", "huh"] {
            assert_eq!(ask("sec-fetch-site", site), Err(Code::CrossSite), "{site}");
        }
    }

    #[test]
    fn a_body_says_that_it_is_json() {
        let ask = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, value.parse().unwrap());
            media(&headers).map_err(|refusal| refusal.code)
        };
        assert_eq!(ask("application/json"), Ok(Media::Json));
        assert_eq!(ask("Application/JSON; charset=UTF-8"), Ok(Media::Json));
        assert_eq!(ask("application/x-ndjson"), Ok(Media::Ndjson));
        for other in [
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data",
            "application/json; charset=latin1",
        ] {
            assert_eq!(ask(other), Err(Code::MediaType), "{other}");
        }
        assert!(media(&HeaderMap::new()).is_err());
    }
}
